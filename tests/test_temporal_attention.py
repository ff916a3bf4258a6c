"""Every backend against float64, over the sizes, types and layouts that the branch may meet."""

import csv
import runpy
from importlib import import_module
from pathlib import Path

import pytest
import torch

from bt_adapter.temporal_attention import (
    BACKENDS,
    choose_backend,
    reference_attention,
    temporal_attention,
)
from bt_adapter.traffic import operation_bytes

SHAPES = [(1, t, 3, 3, 2, 64) for t in (1, 3, 5, 8, 12, 16, 33, 64, 100)]
# "triton" is in test_kernels.py, where its interpreter is mended.
PLAIN = ("reference", "bmm", "sdpa")
SHAPES += [(2, 8, 5, 3, 3, c) for c in (40, 64, 80)] + [(3, 4, 1, 3, 1, 2)]
EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float32, torch.float16, torch.bfloat16)}
LIMITS = {dtype: (16 if dtype == torch.float32 else 1.05) * eps for dtype, eps in EPS.items()}


def random_qkv(shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def relative(value, truth):
    return ((value - truth).abs().max() / truth.abs().max()).item()


def errors(qkv, backend):
    "Worst errors of output and gradient against the equation in float64, and of the maps."
    upstream = random_qkv(qkv[:, :, :, 0].shape, qkv.dtype, 1)
    source, exact = qkv.clone().requires_grad_(), qkv.double().requires_grad_()
    truth, true_maps = reference_attention(exact)
    (true_gradient,) = torch.autograd.grad(truth, exact, upstream.double())
    out = temporal_attention(source, backend=backend)
    assert out.dtype == qkv.dtype and out.shape == truth.shape
    (gradient,) = torch.autograd.grad(out, source, upstream)
    found = {"out": relative(out, truth), "gradient": relative(gradient, true_gradient)}
    if backend != "sdpa":
        maps = temporal_attention(qkv, True, backend)[1]
        found["maps"] = relative(maps, true_maps)
    return found


@pytest.mark.parametrize("backend", PLAIN)
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_gradients_and_maps_are_within_the_limits(shape, dtype, backend):
    found = errors(random_qkv(shape, dtype), backend)
    limit = LIMITS[dtype] * (1.5 if shape[1] > 64 else 1)  # sums of many rounded weights
    assert all(error <= limit for error in found.values()), found


@pytest.mark.parametrize("backend", ["bmm", "sdpa"])
def test_large_scores_stay_exact(backend):
    qkv = random_qkv((1, 16, 8, 3, 2, 64))
    qkv[:, :, :, 0] *= 8
    assert max(errors(qkv, backend).values()) <= 5e-6


@pytest.mark.parametrize("backend", PLAIN)
def test_strided_input_gives_what_contiguous_input_gives(backend):
    wide = random_qkv((4, 16, 9, 3, 2, 32))
    views = (wide[::2, ::2, 1:], wide.flip(1)[:, :, 2:7], wide.transpose(0, 1), wide[..., 8:24])
    for view in views:
        assert not view.is_contiguous()
        expected = temporal_attention(view.contiguous(), backend=backend)
        torch.testing.assert_close(temporal_attention(view, backend=backend), expected)


@pytest.mark.parametrize("backend", PLAIN)
def test_gradients_agree_with_finite_differences(backend):
    qkv = random_qkv((2, 3, 2, 3, 2, 4), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: temporal_attention(x, backend=backend), qkv)


@pytest.mark.parametrize("backend", ["reference", "bmm"])
def test_maps_carry_gradients(backend):
    qkv = random_qkv((1, 3, 2, 3, 2, 4), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: temporal_attention(x, True, backend), qkv)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of vmap over SDPA
@pytest.mark.parametrize("backend", [None, *PLAIN])
def test_full_graph_compile_autocast_and_vmap(backend):
    def attend(x):
        return temporal_attention(x, backend=backend)

    qkv = random_qkv((2, 5, 3, 3, 2, 16))
    expected = reference_attention(qkv)[0]
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(qkv), expected)
    halves = qkv.bfloat16()
    assert torch.equal(compiled(halves), attend(halves))
    torch.testing.assert_close(torch.func.vmap(attend)(qkv[:, None])[:, 0], expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative(attend(qkv), expected) < 2e-2


@pytest.mark.parametrize("fast", [torch.bfloat16, torch.float32], ids=str)
def test_the_choice_follows_type_gradients_length_and_processor(fast, monkeypatch):
    module = import_module(
        "bt_adapter.temporal_attention"
    )  # the package has a function of this name
    monkeypatch.setattr(module, "fast_dtype", lambda: fast)
    plain, trained = torch.zeros(1, 8, 2, 3, 1, 4), torch.zeros(1, 8, 2, 3, 1, 4).requires_grad_()
    long = torch.zeros(1, 32, 2, 3, 1, 4).requires_grad_()
    assert choose_backend(plain) == choose_backend(long) == "sdpa"
    assert choose_backend(trained) == "bmm"
    halves = (plain.bfloat16(), trained.bfloat16(), long.bfloat16())
    assert {choose_backend(x) for x in halves} == {"bmm" if fast == torch.bfloat16 else "sdpa"}
    assert choose_backend(plain, return_maps=True) == "bmm"
    assert choose_backend(plain.bfloat16().to("meta")) == "sdpa"  # the measurements are of CPUs
    with torch.no_grad():
        assert choose_backend(trained) == "sdpa"
    assert all(choose_backend(trained, backend=name) == name for name in BACKENDS)


@pytest.mark.parametrize(
    "shape",
    [(2, 8, 5, 3, 64), (2, 8, 5, 4, 2, 16), (2, 8, 5, 3, 0, 16), (0, 8, 5, 3, 2, 16)],
    ids=str,
)
def test_a_wrong_shape_is_one_sentence_with_the_right_one(shape):
    with pytest.raises(ValueError, match=r"^qkv must have the shape \(batch, frames, .*\.$"):
        temporal_attention(torch.zeros(shape))


def test_whole_numbers_are_refused():
    with pytest.raises(ValueError, match=r"^qkv must hold floating-point numbers, not torch.int64"):
        temporal_attention(torch.zeros(1, 2, 1, 3, 1, 4, dtype=torch.int64))


def test_an_unknown_backend_and_maps_that_no_one_has_are_refused():
    qkv = torch.zeros(1, 2, 1, 3, 1, 4)
    with pytest.raises(ValueError, match="one of reference, sdpa, bmm, triton"):
        temporal_attention(qkv, backend="loop")
    with pytest.raises(ValueError, match="makes no maps"):
        temporal_attention(qkv, return_maps=True, backend="sdpa")


def test_the_benchmark_runs_and_appends_its_rows(tmp_path, monkeypatch):
    script = str(Path(__file__).parent / "benchmarks" / "temporal_attention.py")
    sizes = "--batch 1 --frames 4 --patches 2 --width 8 --heads 2 --rounds 1".split()
    monkeypatch.setattr("sys.argv", [script, *sizes, "--csv", str(tmp_path / "rows.csv")])
    threads = torch.get_num_threads()
    for _ in range(2):
        runpy.run_path(script, run_name="__main__")
    torch.set_num_threads(threads)
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert len(rows) == 2 * 2 * 2 * (4 + 2)  # runs, types, modes; methods of core and layer
    assert sum(int(row["picked"]) for row in rows) == 2 * 2 * 2 * 2
    assert all(float(row["milliseconds"]) > 0 for row in rows)


def test_the_interpreter_is_wrong_in_bfloat16_unless_mended():
    pytest.importorskip("triton")
    from bt_adapter.kernels import mended_interpreter

    qkv = random_qkv((1, 8, 3, 3, 2, 16), torch.bfloat16)
    truth = reference_attention(qkv.double())[0]

    def error():
        return relative(temporal_attention(qkv, backend="triton"), truth)

    assert not error() < 0.1
    with mended_interpreter():
        assert error() < 8e-3
    assert not error() < 0.1


def test_a_gpu_gets_triton():
    assert set(BACKENDS) == {*PLAIN, "triton"}

    class OnGPU:
        device = torch.device("cuda")

    assert choose_backend(OnGPU()) == choose_backend(OnGPU(), True) == "triton"
    assert choose_backend(OnGPU(), backend="reference") == "reference"


def test_operation_bytes_count_what_moves_and_not_what_only_looks():
    x, y = torch.ones(4, 8), torch.ones(4, 8)
    u = x.numel() * x.itemsize
    assert operation_bytes(torch.add, x, y) == {"add": 3 * u}
    assert operation_bytes(lambda a: a.T.view(2, 4, 4)[:, 1].unsqueeze(0), x).total() == 0
    assert operation_bytes(lambda a: a.mT.contiguous(), x) == {"clone": 2 * u}
    assert operation_bytes(lambda a: a[:1].expand(100, 8).sum(), x)["sum"] <= u + 4
    assert operation_bytes(lambda a: a.add_(1), x) == {"add_": 2 * u}
    meta = torch.ones(4, 8, device="meta", requires_grad=True)
    moved = operation_bytes(lambda a: (a * a).sum().backward(), meta)
    assert moved["mul"] >= 3 * u and moved["sum"] == u + 4
