"""The kernels, interpreted and compiled: numbers, bytes, machine code, and faults to be found."""

import csv
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from bt_adapter import kernels
from bt_adapter.kernels import (
    GPUS,
    attention_backward_op,
    attention_op,
    compile_report,
    compile_reports,
    enter_backward_op,
    enter_eagerly,
    enter_op,
    fused_attention,
    fused_gate_norm,
    readers,
    roofline,
    tile_for,
    trace,
)
from bt_adapter.temporal_attention import reference_attention, temporal_attention

ROOT = Path(__file__).resolve().parents[1]
EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float32, torch.float16, torch.bfloat16)}
LIMITS = {dtype: (16 if dtype == torch.float32 else 1.05) * eps for dtype, eps in EPS.items()}
SHAPES = [(1, t, 3, 3, 2, 64) for t in (1, 3, 5, 8, 12, 16, 33, 64, 100)]
SHAPES += [(2, 8, 5, 3, 3, c) for c in (40, 64, 80)] + [(3, 5, 1, 3, 1, 2)]
pytestmark = pytest.mark.usefixtures("mended")


def noise(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def relative(value, truth):
    return ((value - truth).abs().max() / truth.abs().max()).item()


def kernel_or_beyond(qkv):
    "What the dispatcher calls: the kernel, and SDPA beyond its longest tile."
    return temporal_attention(qkv, backend="triton")


def errors(attention, qkv):
    "Largest errors of output and gradient against the equation in float64."
    source, exact = qkv.clone().requires_grad_(), qkv.double().requires_grad_()
    upstream = noise(*qkv[:, :, :, 0].shape, dtype=qkv.dtype, seed=1)
    out, truth = attention(source), reference_attention(exact)[0]
    (grad,) = torch.autograd.grad(out, source, upstream)
    (true_grad,) = torch.autograd.grad(truth, exact, upstream.double())
    return relative(out, truth), relative(grad, true_grad)


# --- numbers ---


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_errors_are_within_the_precision_of_the_type(shape, dtype):
    assert max(errors(kernel_or_beyond, noise(*shape, dtype=dtype))) <= LIMITS[dtype]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("frames", [8, 16, 33])
def test_large_logits_stay_exact(frames):
    qkv = noise(1, frames, 4, 3, 2, 64)
    qkv[:, :, :, 0] *= 8
    assert max(errors(kernel_or_beyond, qkv)) <= 5e-6


@pytest.mark.usefixtures("poisoned")
def test_strided_inputs_and_gradients_are_read_where_they_lie():
    wide = noise(4, 10, 9, 3, 2, 32)
    views = (wide[::2, ::2, 1:4], wide[:2, :5, ::3], wide[:1].transpose(1, 2), wide[:1, ..., 8:24])
    for view in (*views, wide[:2, :3, :2, ..., ::2]):
        assert not view.is_contiguous()
        source = view.detach().requires_grad_()
        out = fused_attention(source)[0]
        upstream = noise(*reversed(out.shape)).permute(4, 3, 2, 1, 0)
        (grad,) = torch.autograd.grad(out, source, upstream)
        plain = view.detach().contiguous().requires_grad_()
        expected = reference_attention(plain)[0]
        (expected_grad,) = torch.autograd.grad(expected, plain, upstream)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(grad, expected_grad, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("frames", [5, 8, 33])
def test_maps_and_their_gradient(frames):
    results = []
    for attention in (fused_attention, reference_attention):
        qkv = noise(2, frames, 3, 3, 2, 16).requires_grad_()
        out, maps = attention(qkv, True) if attention is fused_attention else attention(qkv)
        loss = (out * out.sin()).sum() + maps.square().sum()
        results.append((out, maps, *torch.autograd.grad(loss, qkv)))
    for ours, expected in zip(*results):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_gradients_agree_with_finite_differences_in_float64():
    qkv = noise(1, 3, 2, 3, 1, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: fused_attention(x, True), qkv)


def far_apart(dtype=torch.float16):
    "Three clips, of which the last begins beyond 2^31 numbers; what is between is never touched."
    far = 2**30 + 2**12
    memory = torch.empty(2 * far + 2**12, dtype=dtype)
    qkv = memory.as_strided((3, 2, 1, 3, 1, 16), (far, 48, 48, 16, 16, 1))
    return qkv.copy_(noise(3, 2, 1, 3, 1, 16))


def test_a_clip_may_begin_beyond_two_to_the_31_numbers():
    qkv = far_apart()
    (found,) = trace(fused_attention, qkv)
    assert not found.outside
    expected = reference_attention(qkv)[0]
    torch.testing.assert_close(fused_attention(qkv)[0], expected, atol=2e-3, rtol=0)


# --- an operation among PyTorch's ---


@pytest.mark.parametrize("maps", [False, True])
def test_opcheck(maps):
    qkv = noise(1, 3, 2, 3, 2, 16).requires_grad_()
    torch.library.opcheck(attention_op, (qkv, maps))
    d_maps = noise(1, 2, 2, 3, 3) if maps else None
    arguments = (qkv.detach(), noise(1, 3, 2, 2, 16), d_maps)
    torch.library.opcheck(attention_backward_op, arguments)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_compile_autocast_and_torch_func():
    def loss(x):
        return temporal_attention(x, backend="triton").sin().sum()

    qkv = noise(2, 5, 3, 3, 2, 16)
    expected = reference_attention(qkv)[0]
    plain = qkv.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reference_attention(plain)[0].sin().sum(), plain)
    close = dict(atol=1e-5, rtol=1e-5)
    compiled = torch.compile(kernel_or_beyond, fullgraph=True, backend="aot_eager")
    source = qkv.clone().requires_grad_()
    out = compiled(source)
    torch.testing.assert_close(out, expected, **close)
    torch.testing.assert_close(torch.autograd.grad(out.sin().sum(), source)[0], gradient, **close)
    torch.testing.assert_close(torch.func.grad(loss)(qkv), gradient, **close)
    torch.testing.assert_close(torch.func.vmap(kernel_or_beyond)(qkv[:, None])[:, 0], expected)
    each = torch.func.vmap(torch.func.grad(loss))(qkv[:, None])[:, 0]
    torch.testing.assert_close(each, gradient, **close)
    with torch.autocast("cpu", torch.bfloat16):
        out = kernel_or_beyond(qkv)
    assert out.dtype == torch.bfloat16 and relative(out, expected) < 2e-2


def test_second_derivatives_are_right_or_refused():
    def loss(attention):
        return lambda x: attention(x)[0].sin().sum()

    def twice(attention):
        return torch.func.grad(lambda x: torch.func.grad(loss(attention))(x).square().sum())

    qkv = noise(1, 3, 2, 3, 1, 4)
    expected = twice(reference_attention)(qkv)
    torch.testing.assert_close(twice(fused_attention)(qkv), expected, atol=1e-5, rtol=1e-5)
    qkv.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(fused_attention)(qkv), qkv, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(gradient.sum(), qkv)


def test_only_qkv_is_saved():
    saved = []
    qkv = noise(1, 4, 2, 3, 1, 16).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        fused_attention(qkv, True)
    assert [x.data_ptr() for x in saved] == [qkv.data_ptr()]


# --- bytes ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 8, 5, 3, 2, 16), (1, 5, 7, 3, 2, 40), (1, 33, 2, 3, 1, 16)])
def test_no_byte_moves_that_need_not(shape, dtype):
    qkv = noise(*shape, dtype=dtype)
    upstream = noise(*qkv[:, :, :, 0].shape, dtype=dtype)
    u = upstream.numel() * upstream.itemsize
    (forward,) = trace(fused_attention, qkv)
    (backward,) = trace(attention_backward_op, qkv, upstream, None)
    assert (forward.loaded, forward.unique_loaded) == (3 * u, 3 * u)
    assert (forward.stored, forward.unique_stored) == (u, u)
    assert (backward.loaded, backward.unique_loaded) == (4 * u, 4 * u)
    assert (backward.stored, backward.unique_stored) == (3 * u, 3 * u)
    assert forward.outside == backward.outside == 0
    (explicit,) = trace(fused_attention, qkv, True)
    maps = shape[0] * shape[2] * shape[4] * shape[1] ** 2 * qkv.itemsize
    assert (explicit.loaded, explicit.stored) == (3 * u, u + maps)
    assert explicit.duplicate_stores == explicit.outside == 0


def test_the_trace_keeps_what_is_out_of_bounds_from_happening():
    import triton.language as tl

    @kernels.jit
    def stray(x, out):
        place = tl.arange(0, 8)
        tl.store(out + place, tl.load(x + place))
        tl.store(out, 0.0)

    stray.fn.__globals__["tl"] = tl
    x, out = torch.ones(4), torch.zeros(8)
    (found,) = trace(lambda: stray[(1,)](x, out[:6]))
    assert (found.outside, found.duplicate_stores) == (4 + 2, 4)
    assert out.tolist() == [0, 1, 1, 1, 0, 0, 0, 0]  # what was not read is zero


@pytest.mark.parametrize("frames, rows", [(8, 16), (3, 16), (17, 32)])
def test_who_reads_what(frames, rows):
    wide = noise(2, frames, 10, 3, 2, 32)
    qkv, heads, fit = wide[:, :, ::2], 2, rows // frames
    found = readers(lambda: fused_attention(qkv), qkv)
    assert found.shape == qkv.shape
    for clip, patch, head in ((0, 0, 0), (0, 4, 1), (1, 0, 0), (1, 4, 1)):
        program = (clip * 5 + patch) // fit * heads + head
        assert (found[clip, :, patch, :, head] == program).all()
    found = readers(lambda: fused_attention(qkv), wide)
    assert (found[:, :, 1::2] == -1).all() and (found[:, :, ::2] >= 0).all()
    assert (readers(lambda: None, qkv) == -1).all()


@pytest.mark.parametrize(
    "function, x, told",
    [
        (None, torch.zeros(3), "a function that launches kernels, not None"),
        (print, [1, 2], r"with numbers on the CPU, not of \[1, 2\]"),
        (print, torch.zeros(2, 0), r"not of shape \(2, 0\) on cpu"),
        (print, torch.zeros(3, device="meta"), r"not of shape \(3,\) on meta"),
        (print, torch.zeros(1).expand(3), "share an address"),
    ],
)
def test_readers_refuse_in_one_sentence(function, x, told):
    with pytest.raises(ValueError, match=told) as refused:
        readers(function, x)
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


# --- faults ---

FAULTS = {
    "scale": ("* (1.4426950408889634 * N**-0.5)", "* (1.4426950408889634 * N**-0.45)"),
    "base of the power": ("1.4426950408889634", "1.0"),
    "patches mix": (
        "scores = tl.where(slot[:, None] == slot[None, :], scores",
        "scores = tl.where(slot[:, None] >= slot[None, :] - 1, scores",
    ),
    "no maximum": ("scores - tl.max(scores, 1)[:, None]", "scores"),
    "tail is not masked": (" & (series < count)", ""),
    "padding is not masked": ("(slot < ROWS // T) & ", ""),
    "columns are not masked": (
        "& (tl.arange(0, WIDE) < N)[None, :]",
        "& (tl.arange(0, WIDE) < WIDE)[None, :]",
    ),
    "key for value": (
        "value = load_rows(qkv, source + 2 * strides[3]",
        "value = load_rows(qkv, source + strides[3]",
    ),
    "loaded twice": (
        "    weights = softmax(query, key, slot, N)\n",
        "    query = load_rows(qkv, source, there, WIDE, FACTORS)\n"
        "    weights = softmax(query, key, slot, N)\n",
    ),
    "written in another order": (
        "token = ((clip * T + frame) * patches + patch) * H + head",
        "token = ((clip * patches + patch) * T + frame) * H + head",
    ),
    "a stray store": (
        "dot(weights.to(FACTORS), value), WIDE)\n",
        "dot(weights.to(FACTORS), value), WIDE)\n"
        "    tl.store(out + count * T * H * N + head, 0.0)\n",
    ),
    "no mean taken off": (" - tl.sum(weights * d_weights, 1)[:, None]", ""),
    "gradient of keys not transposed": ("dot(tl.trans(d_scores), query)", "dot(d_scores, query)"),
    "gradient of queries not scaled": ("dot(d_scores, key) * N**-0.5", "dot(d_scores, key)"),
    "gradient of values misplaced": ("token + 2 * H * N", "token + H * N"),
    "maps of other patches": (
        "same = (slot[:, None] == slot[None, :]) & real[:, None]",
        "same = (slot[:, None] >= 0) & real[:, None]",
    ),
    "gradient of maps ignored": ("d_weights += tl.load(", "d_weights += 0 * tl.load("),
    "offsets of 32 bits": (".to(tl.int64)", ".to(tl.int32)"),
}


def module_with(fault, folder):
    "The kernels with one fault, as a package whose operations have names of their own."
    files = {path.name: path.read_text() for path in Path(kernels.__file__).parent.glob("*.py")}
    before, after = FAULTS[fault] if fault else ("", "")
    assert any(before in text for text in files.values()), f"the kernels have changed: {before}"
    name = "fault_" + re.sub(r"\W", "_", folder.name)  # which no other test has
    package = folder / name
    package.mkdir()
    for file, text in files.items():
        text = text.replace(before, after) if fault else text
        text = text.replace("bt_adapter::", f"{name}::").replace("from ..", "from bt_adapter.")
        (package / file).write_text(text)
    spec = importlib.util.spec_from_file_location(name, package / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def found_by(module, dtype):
    "The checks that a module's kernels do not pass."
    found = set()
    cases = [noise(2, 3, 4, 3, 2, 12, dtype=dtype), noise(1, 8, 3, 3, 1, 16, dtype=dtype)]
    cases.append(cases[1] * torch.tensor([64.0, 1, 1]).to(dtype)[:, None, None])
    for qkv, slack in zip(cases, (2, 2, 50)):  # large scores are less exact
        upstream = noise(*qkv[:, :, :, 0].shape, dtype=dtype)
        d_maps = noise(*reference_attention(qkv)[1].shape, dtype=dtype)
        source, exact = qkv.clone().requires_grad_(), qkv.double().requires_grad_()
        results = []

        def run(source=source, upstream=upstream, d_maps=d_maps, results=results):
            out, maps = module.fused_attention(source, True)
            grads = torch.autograd.grad([out, maps], source, [upstream, d_maps])
            results.extend([out, maps, *grads])

        forward, backward = module.trace(run)
        truth = reference_attention(exact)
        upstreams = [upstream.double(), d_maps.double()]
        truths = [*truth, *torch.autograd.grad(truth, exact, upstreams)]
        for name, value, true in zip(("output", "maps", "gradient"), results, truths):
            if not relative(value, true) <= slack * LIMITS[dtype]:  # NaN is no pass
                found.add(name)
        u, m = upstream.numel() * qkv.itemsize, d_maps.numel() * qkv.itemsize
        if (forward.loaded, forward.stored) != (3 * u, u + m):
            found.add("bytes")
        if (backward.loaded, backward.stored) != (4 * u + m, 3 * u):
            found.add("bytes")
        if forward.outside or backward.outside:
            found.add("bounds")
        if forward.duplicate_stores or backward.duplicate_stores:
            found.add("duplicates")
    return found


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_every_fault_is_found(fault, dtype, tmp_path):
    module = module_with(fault, tmp_path)
    if fault == "offsets of 32 bits":
        torch.use_deterministic_algorithms(False)  # nobody fills 4 GiB
        (seen,) = module.trace(module.fused_attention, far_apart())
        assert seen.outside
    elif fault is None:
        assert not found_by(module, dtype)
    else:
        assert found_by(module, dtype)


# --- machine code ---


def python(command, **environment):
    "Run Python code in a new process, without the interpreter unless told."
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment = inherited | {"PYTHONPATH": str(ROOT)} | environment
    run = dict(capture_output=True, text=True, env=environment, check=True)
    return subprocess.run([sys.executable, "-c", command], **run)


def judge(cc, t, maps, pair):
    "What the issue of speed demands of the machine code of one case."
    registers = {75: (96, 96)}.get(cc, (72, 88) if t == 8 else (255, 255))
    for report, most, passes in zip(pair, registers, (4, 7)):
        assert report.spills == 0 and report.registers <= most
        assert cc == 75 or t != 8 or report.shared <= 8192
        if not maps:
            assert report.all_128
        if not maps and report.rows % t == 0:
            tile = report.rows * 64 * 2  # bytes of u in one program
            assert report.bytes == passes * tile


CASES = [(80, "fp16", 8), (89, torch.bfloat16, 8), (90, "fp16", 64), (75, torch.float16, 32)]
CASES += [(90, "bf16", 8, True)]


def test_compiled_for_gpus_that_are_not_here():
    for case, pair in zip(CASES, compile_reports(CASES)):
        cc, _, t, *maps = case
        assert [r.name for r in pair] == ["attention_forward", "attention_backward"]
        assert cc == 75 or all(r.instructions_per_byte < 0.1 for r in pair)
        judge(cc, t, any(maps), pair)
        if t == 8:  # whatever the rows of a tile hold
            assert [r.products for r in pair] == [{"HMMA.16816": n} for n in (16, 40)]


def test_a_tile_of_eight_rows_is_too_small_for_the_compiler():
    command = """
import torch, triton
from bt_adapter.kernels import report
from bt_adapter.kernels.operation import Tile, arguments, tl
qkv = torch.empty(2, 8, 256, 3, 16, 64, dtype=torch.float16, device="meta")
out = qkv[:, :, :, 0].contiguous()
for rows in (16, 8):
    given = arguments(qkv, Tile(rows, 1, tl.float16), False, out=out, maps=out)
    try:
        print(report.compiled(report.attention_forward, given, 80, 1).rows)
    except triton.CompilationError as error:
        print(error.__cause__)
"""
    compiled, refused = python(command).stdout.split("\n", 1)
    assert compiled == "16" and "K >= 16" in refused


def test_the_table_of_all_compilations():
    with (ROOT / "tests/benchmarks/kernels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert next(iter(rows[0])) == "date"  # empty in rows that are older than the column
    halves = [r for r in rows if r["cc"] != "75" and r["type"] != "fp32"]
    grid = [r for r in halves if r["maps"] == "0"]
    kinds = {(r["cc"], r["type"], r["frames"], r["kernel"]) for r in grid}
    assert len(grid) == len(kinds) == 60
    assert {r["frames"] for r in grid} == {"8", "12", "16", "32", "64"}
    assert all(r["spills"] == "0" for r in rows) and all(r["bits"] == "128" for r in grid)
    assert len(halves) == 2 * len(grid)  # as many with maps
    assert max(int(r["registers"]) for r in rows if r["cc"] == "75") <= 96


@pytest.mark.parametrize(
    "case, words",
    [
        ((80, "int8", 8), "dtype must be one of fp16, bf16, fp32, fp64"),
        ((80, torch.float64, 8), "There is no kernel for fp64"),
        ((75, "bf16", 8), "There is no kernel for bf16"),
        ((90, "fp16", 65), "There is no kernel for fp16, 65 frames"),
        (("80", "fp16", 8), "cc and t must be whole numbers"),
        ((80, "fp16", 0), "cc and t must be whole numbers"),
    ],
)
def test_a_report_for_no_kernel_is_refused(case, words):
    with pytest.raises(ValueError, match=words):
        compile_report(*case)


def test_the_roofline_names_what_binds():
    report = kernels.KernelReport("attention_forward", 64, 0, 4096, {128: 16}, 8192, 353, 1, 16)
    shape = 16, 8, 256, 16, 64
    u = 16 * 8 * 256 * 1024 * 2
    for name, gpu in GPUS.items():
        terms = roofline(name, report, shape)
        assert terms["memory"] == pytest.approx(1e6 * 4 * u / (gpu.bandwidth * 1e9))
        assert max(terms, key=terms.get) == "memory"
    report.instructions *= 100
    terms = roofline("H100", report, shape)
    assert max(terms, key=terms.get) == "instructions"
    with pytest.raises(ValueError, match="gpu must be one of T4, L4, A100, H100"):
        roofline("V100", report, shape)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to time on")
def test_nothing_is_timed_without_a_gpu(tmp_path):
    script = [sys.executable, ROOT / "tests/benchmarks/kernels.py", "--times", tmp_path / "t.csv"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 1 and not (tmp_path / "t.csv").exists()
    assert done.stderr == "There is no GPU here: nothing was timed.\n"


# --- where it cannot run ---


def test_triton_without_a_gpu_falls_back_and_says_so_once():
    command = """
import warnings
import torch
from bt_adapter.temporal_attention import reference_attention, temporal_attention
qkv = torch.randn(1, 4, 2, 3, 2, 16)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for maps in (False, True, False):
        out = temporal_attention(qkv, maps, "triton")
    COMPILED
said = [str(w.message) for w in said if "kernels" in str(w.message)]
assert said == [EXPECTED], said
torch.testing.assert_close(out, reference_attention(qkv)[0])
"""
    compiled = "torch.compile(lambda x: temporal_attention(x, backend='triton'), fullgraph=True, "
    compiled += "backend='aot_eager')(qkv)"
    no_gpu = "The kernels need a GPU, and these tensors are on 'cpu'. Another backend takes over."
    python(command.replace("EXPECTED", repr(no_gpu)).replace("COMPILED", compiled))
    absent = "import sys\nsys.modules['triton'] = None\n"
    no_triton = "The kernels need triton, which is not installed here. Another backend takes over."
    python(absent + command.replace("EXPECTED", repr(no_triton)).replace("COMPILED", "pass"))


@pytest.mark.parametrize(
    "shape", [(2, 8, 5, 3, 64), (2, 8, 5, 4, 2, 16), (2, 8, 5, 3, 0, 16)], ids=str
)
def test_a_wrong_shape_is_one_sentence_with_the_right_one(shape):
    with pytest.raises(ValueError, match=r"^qkv must have the shape \(batch, frames, .*\.$"):
        fused_attention(torch.zeros(shape))


def test_what_no_kernel_takes_is_refused_by_name():
    with pytest.raises(ValueError, match="no kernel for 65 frames"):
        fused_attention(torch.zeros(1, 65, 1, 3, 1, 16))
    with pytest.raises(ValueError, match="heads of width 256"):
        fused_attention(torch.zeros(1, 4, 1, 3, 1, 256))
    assert (
        tile_for(torch.float64, 8, 64, 80) is None and tile_for(torch.float32, 33, 64, 80) is None
    )


# --- rows: gate, gather, norm ---


def row_case(first, masked, dtype=torch.float32, width=24, batch=2):
    "State as a view without CLS, branch or place, indices, mix, norm, shift."
    state = noise(batch, 3, 8, width, dtype=dtype)[:, :, 1:]
    weight, bias, shift = noise(3, width, seed=4).unbind()
    if first is None:
        return state, None, None, None, None, (weight, bias), 1e-5, shift
    keep = torch.tensor([[0, 2, 6], [1, 2, 4]])[:batch] if masked else None
    kept = 3 if masked else 7
    branch = None if first else noise(batch, 3, kept, width, dtype=dtype, seed=1)
    place = noise(7, width, dtype=dtype, seed=2) if first else None
    mix = noise(3, width, seed=3) if first else torch.rand(width)
    return state, branch, keep, mix, place, (weight, bias), 1e-5, shift


def row_results(enter, case, upstream, kind=None):
    state, branch, keep, mix, place, norm, eps, shift = case
    cast = lambda x: x if x is None or kind is None else x.to(kind)  # noqa: E731
    leaf = lambda x: x if x is None else cast(x).clone().requires_grad_()  # noqa: E731
    branch, mix, weight, bias, shift = map(leaf, (branch, mix, *norm, shift))
    state = cast(state) if mix is not None else leaf(state)
    outs = enter(state, branch, keep, mix, cast(place), (weight, bias), eps, shift)
    used = [x for x in (state, branch, mix, weight, bias, shift) if x is not None]
    used = [x for x in used if x.requires_grad]
    return [*outs, *torch.autograd.grad(outs, used, [cast(x) for x in upstream])]


def exactly(state, branch, keep, mix, place, norm, eps, shift):
    "Eq. 3 or 4 and a layer norm, in float64."
    clips = torch.arange(len(state))[:, None, None]
    frames = torch.arange(state.shape[1])[:, None]
    seen = state if keep is None else state[clips, frames, keep[:, None]]
    x = seen
    if branch is not None:
        x = mix * branch + (1 - mix) * seen
    elif place is not None:
        x = seen + mix[:, None] + (place if keep is None else place[keep][:, None])
    return x + shift, torch.nn.functional.layer_norm(x, x.shape[-1:], *norm, eps)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize(
    "first, masked", [(False, False), (False, True), (True, False), (True, True), (None, False)]
)
def test_rows_are_exact(first, masked, dtype):
    case = row_case(first, masked, dtype)
    shape = (2, 3, 3 if masked else 7, 24)
    upstream = [noise(*shape, dtype=dtype, seed=s) for s in (5, 6)]
    ours = row_results(fused_gate_norm, case, upstream)
    truth = row_results(exactly, case, upstream, torch.float64)
    assert max(relative(x, y) for x, y in zip(ours, truth, strict=True)) <= LIMITS[dtype]


def test_rows_step_by_step_are_the_same():
    for first, masked in ((False, True), (True, False), (None, False)):
        case = row_case(first, masked)
        ours, eager = fused_gate_norm(*case), enter_eagerly(*case)
        torch.testing.assert_close(ours, eager, atol=1e-5, rtol=1e-5)


def test_rows_move_no_byte_twice():
    case = row_case(False, True, width=64)
    u = 2 * 3 * 3 * 64 * 4
    (forward,) = trace(fused_gate_norm, *case)
    vectors, indices = 4 * 64 * 4, 2 * 3 * 8
    assert forward.unique_loaded == 2 * u + vectors + indices
    assert forward.stored == forward.unique_stored == 2 * u and not forward.outside
    upstream = [noise(2, 3, 3, 64), noise(2, 3, 3, 64)]
    _, backward = trace(row_results, fused_gate_norm, case, upstream)
    sums = 3 * 4 * 64 * 4
    assert backward.unique_loaded == 4 * u + 2 * 64 * 4 + indices
    assert backward.stored == backward.unique_stored == u + sums and not backward.outside


@pytest.mark.parametrize("first", [False, True])
def test_opcheck_of_rows(first):
    state, branch, keep, mix, place, norm, eps, shift = row_case(first, True)
    for x in (mix, *norm, shift, *([] if first else [branch])):
        x.requires_grad_()
    torch.library.opcheck(enter_op, (state, branch, keep, mix, place, *norm, shift, eps))
    detached = [x if x is None else x.detach() for x in (state, branch, keep, mix, place, norm[0])]
    upstream = [noise(2, 3, 3, 24), noise(2, 3, 3, 24)]
    torch.library.opcheck(enter_backward_op, (*detached, *upstream, eps))


ROW_FAULTS = {
    "wrong frame": (
        "frame * strides[1] + patch * strides[2]\n    seen",
        "patch * strides[2]\n    seen",
    ),
    "mask ignored": ("patch = spot if keep is None else", "patch = spot if keep is not None else"),
    "tail is not masked": ("there = (column < D) & (row < count)", "there = column < D"),
    "variance of WIDE numbers": (
        "tl.sum(centered * centered, 0) / D",
        "tl.sum(centered * centered, 0) / WIDE",
    ),
    "residual forgotten": ("d_x += factor *", "d_x = factor *"),
    "gate's gradient": ("else d_x * other", "else d_x"),
    "norm sees the shift": (
        "hat, _ = normalize_row(residual.to(tl.float32), eps",
        "hat, _ = normalize_row(residual.to(tl.float32) + shift, eps",
    ),
    "sums overwritten": (
        "(frame * tl.num_programs(0) + tl.program_id(0)) * 4",
        "tl.program_id(0) * 4",
    ),
}


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("fault", [None, *ROW_FAULTS])
def test_every_fault_in_rows_is_found(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "FAULTS", ROW_FAULTS)
    module, bad = module_with(fault, tmp_path), False
    for first in (False, True):
        case, results = row_case(first, True, width=24), []
        upstream = [noise(2, 3, 3, 24, seed=s) for s in (5, 6)]
        launches = module.trace(
            lambda c=case, u=upstream, r=results: r.extend(
                row_results(module.fused_gate_norm, c, u)
            )
        )
        truth = row_results(exactly, case, upstream, torch.float64)
        bad |= any(t.outside or t.duplicate_stores for t in launches)
        bad |= not all(relative(a, b) <= 2e-6 for a, b in zip(results, truth, strict=True))
    assert bad == (fault is not None)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(state=torch.zeros(2, 3, 24)), r"state must be \(b, t, l, d\)"),
        (dict(branch=torch.zeros(2, 3, 7, 24)), r"branch must be \(2, 3, 3, 24\) on cpu"),
        (dict(branch=torch.zeros(2, 3, 3, 24).half()), "branch must be torch.float32 as the state"),
        (dict(mix=torch.zeros(3, 24)), r"mix must be \(24,\)"),
        (dict(branch=None), "Give mix with either"),
        (dict(branch=None, mix=None), "or none of them"),
        (dict(place=torch.zeros(7, 24), mix=torch.zeros(3, 24)), "Give mix with either"),
        (dict(mix=torch.zeros(24, device="meta")), "on cpu beside a state"),
    ],
)
def test_rows_that_do_not_belong_together_are_refused(change, words):
    names = ("state", "branch", "keep", "mix", "place", "norm", "eps", "shift")
    case = dict(zip(names, row_case(False, True))) | change
    with pytest.raises(ValueError, match=words):
        fused_gate_norm(**case)


@pytest.mark.parametrize("keep", [[[0, 2, 7], [1, 2, 4]], [[0, 2, 6], [-1, 2, 4]]], ids=str)
@pytest.mark.parametrize("first", [False, True])
def test_places_that_are_not_there_are_never_read(first, keep):
    case = list(row_case(first, True))
    case[2] = torch.tensor(keep)

    def refused():
        with pytest.raises(ValueError, match=r"^keep must hold whole numbers from 0 to 6"):
            fused_gate_norm(*case)

    assert trace(refused) == []  # no kernel began
    mask = torch.zeros(2, 7, dtype=torch.bool).scatter(1, row_case(first, True)[2], True)
    case[2] = mask[:, :3]
    with pytest.raises(ValueError, match=r"^keep must list the places that stay, not mark them"):
        fused_gate_norm(*case)
