"""Number types: which one a device is fast in, and Muon in each."""

import copy
import warnings

import pytest
import torch

from bt_adapter import precision
from bt_adapter.backbone import load_clip
from bt_adapter.branch import BTAdapter
from bt_adapter.muon import Muon, orthogonalize
from bt_adapter.precision import autocast_context, chosen_dtype, fast_copy, fast_dtype

SHAPES = (48, 16), (16, 48), (32, 32), (1, 8)
SETTINGS = dict(lr=0.02, weight_decay=0.1)


def able(monkeypatch, bf16=True, capability="AVX512", **environment):
    """A processor that has bf16 instructions or not, as PyTorch sees it."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_a_processor_is_fast_in_what_it_may_multiply_in(monkeypatch):
    able(monkeypatch)
    assert fast_dtype() == fast_dtype(torch.device("cpu")) == torch.bfloat16
    for isa in ("AVX512_CORE_BF16", "avx512_core_amx", "DEFAULT"):
        able(monkeypatch, ONEDNN_MAX_CPU_ISA=isa)
        assert fast_dtype() == torch.bfloat16, isa
    for isa in ("AVX2", "avx512_core"):
        for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
            able(monkeypatch, **{name: isa})
            assert fast_dtype() == torch.float32, (name, isa)
    able(monkeypatch, capability="AVX2")
    assert fast_dtype() == torch.float32
    able(monkeypatch, bf16=False)
    assert fast_dtype() == torch.float32


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_without_bf16_is_fast_in_fp16(monkeypatch, native, dtype):
    asked = []

    def is_bf16_supported(including_emulation):
        asked.append(including_emulation)
        return native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert fast_dtype("cuda") == fast_dtype(torch.device("cuda", 0)) == dtype
    assert not any(asked)


def test_a_device_that_cannot_compute_is_told_and_left(monkeypatch):
    accelerator = torch.accelerator
    monkeypatch.setattr(accelerator, "is_available", lambda: True)
    for name in ("meta", "cpu"):  # one that has no numbers stands for one that cannot compute
        monkeypatch.setattr(
            accelerator, "current_accelerator", lambda name=name: torch.device(name)
        )
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            assert precision.usable_device.__wrapped__() == torch.device("cpu")
        assert [str(w.message).startswith("This meta device cannot") for w in seen] == (
            [True] if name == "meta" else []
        )


def test_a_type_that_is_imitated_is_told_once(monkeypatch):
    able(monkeypatch, bf16=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_fp16_supported", lambda: False, raising=False)
    precision._warn_emulated.cache_clear()
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with pytest.warns(UserWarning, match=f"no instructions for {name}"):
            assert chosen_dtype(name) == dtype
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen_dtype("bf16") == torch.bfloat16  # it has been said
        precision._warn_emulated.cache_clear()
        assert chosen_dtype("fp32") == chosen_dtype(None) == torch.float32
        assert chosen_dtype("fp16", "cuda") == torch.float16
        able(monkeypatch)
        assert chosen_dtype("bf16") == chosen_dtype(None) == torch.bfloat16


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, fp16, not 'fp8'"):
        chosen_dtype("fp8")


@pytest.mark.parametrize("fast", [torch.float32, torch.bfloat16])
def test_a_fast_copy_leaves_the_original_alone(monkeypatch, fast):
    monkeypatch.setattr(precision, "fast_dtype", lambda device: fast)
    layer = torch.nn.Linear(2, 2)
    found = fast_copy(layer)
    assert found.weight.dtype == fast and layer.weight.dtype == torch.float32
    assert (found is layer) == (fast == torch.float32) and fast_copy(found) is found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_in_a_type(dtype):
    with autocast_context(torch.device("cpu"), dtype):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
        assert not torch.backends.cuda.flash_sdp_enabled()  # plain attention


def gradients(steps):
    """Some gradients for each step, one of them with nothing in it."""
    generator = torch.Generator().manual_seed(1)
    drawn = [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(steps)]
    drawn[1][0] = torch.zeros(SHAPES[0])
    return drawn


def trained(make, drawn, dtype=torch.float32, state=None):
    """Matrices after a step along each gradient, and the optimizer's state."""
    generator = torch.Generator().manual_seed(0)
    shapes = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    matrices = [torch.nn.Parameter(matrix) for matrix in shapes]
    optimizer = make([dict(params=matrices[:2]), dict(params=matrices[2:], lr=0.05)])
    if state:
        optimizer.load_state_dict(copy.deepcopy(state))
    for some in drawn:
        for matrix, gradient in zip(matrices, some, strict=True):
            matrix.grad = gradient.to(dtype)
        optimizer.step()
        yield [matrix.detach().clone() for matrix in matrices]
    yield optimizer.state_dict()


def in_type(dtype):
    return lambda groups: Muon(groups, **SETTINGS, dtype=dtype)


def theirs(groups):
    return torch.optim.Muon(groups, **SETTINGS)


def test_muon_in_bf16_is_that_of_torch_bit_for_bit():
    *expected, their_state = trained(theirs, gradients(6))
    *found, own_state = trained(in_type(torch.bfloat16), gradients(6))
    for step, (a, b) in enumerate(zip(expected, found, strict=True)):
        assert all(map(torch.equal, a, b)), step
    assert their_state["param_groups"] == own_state["param_groups"]
    for a, b in zip(their_state["state"].values(), own_state["state"].values(), strict=True):
        assert a.keys() == b.keys() and torch.equal(a["momentum_buffer"], b["momentum_buffer"])


def test_states_of_the_two_muons_are_exchanged():
    start, rest = gradients(6)[:3], gradients(6)[3:]
    ours = in_type(torch.bfloat16)
    for first, second in ((theirs, ours), (ours, theirs)):
        *_, state = trained(first, start)
        *expected, _ = trained(first, rest, state=state)
        *found, _ = trained(second, rest, state=state)
        assert all(map(torch.equal, expected[-1], found[-1]))


def test_muon_in_fp32_is_near_that_in_float64():
    *exact, _ = trained(in_type(torch.float64), gradients(6), torch.float64)
    *single, _ = trained(in_type(torch.float32), gradients(6))
    *half, _ = trained(in_type(torch.bfloat16), gradients(6))
    for step, (right, found, rough) in enumerate(zip(exact, single, half, strict=True)):
        for a, b, c in zip(right, found, rough, strict=True):
            assert (a - b).abs().max() < 5e-6, step
            assert (a - b).abs().max() * 20 < (a - c).abs().max() < 0.01, step


def test_muon_multiplies_in_what_the_device_multiplies_in(monkeypatch):
    optimizer = Muon([torch.nn.Parameter(torch.ones(2, 2))])
    for fast, products in (
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
    ):
        monkeypatch.setattr("bt_adapter.muon.fast_dtype", lambda device, fast=fast: fast)
        assert optimizer.product_dtype(torch.device("cpu")) == products


def test_muon_leaves_matrices_without_gradients_and_gives_the_loss():
    used, idle = (torch.nn.Parameter(torch.eye(3)) for _ in range(2))
    optimizer = Muon([used, idle], lr=0.1)

    def closure():
        loss = used.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 3
    assert torch.equal(idle, torch.eye(3)) and not torch.equal(used, torch.eye(3))
    with pytest.raises(ValueError, match="2D"):
        Muon([torch.nn.Parameter(torch.ones(3))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orthogonalizing_changes_no_argument(dtype):
    matrix = torch.randn(5, 3, dtype=dtype)
    before = matrix.clone()
    orthogonalize(matrix, dtype)
    assert torch.equal(matrix, before)


def test_a_clip_and_an_adapter_in_an_imitated_type_say_so(monkeypatch):
    able(monkeypatch, bf16=False)
    precision._warn_emulated.cache_clear()
    with pytest.warns(UserWarning, match="no instructions for bf16"):
        assert load_clip("moving-shapes", precision="bf16").dtype == torch.bfloat16
    precision._warn_emulated.cache_clear()
    with pytest.warns(UserWarning, match="no instructions for bf16"):
        adapter = BTAdapter.from_pretrained("moving-shapes", precision="bf16")
    assert adapter.clip.dtype == torch.bfloat16
