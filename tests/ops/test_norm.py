"""Norms that save their output, or their input: results, and that they compose with PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_invact.norms import LAYER_NORM, LLAMA, RMS_NORM, NormForm
from hf_invact.ops import NormSaving, normalize
from hf_invact.ops.eager import norm as eager_norm
from hf_invact.ops.operators import norm as operators
from tests.helpers import (
    DTYPES,
    dtype_name,
    each_dtype,
    each_layout,
    normal,
    record_saved,
)
from tests.ops.norms import (
    CHANNELS,
    EPS,
    SHAPE,
    Norm,
    each_form,
    each_norm_saving,
    each_of_three,
    input_of,
    norm_of,
    run,
)

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
TOLERANCES = {FP32: 2e-6, FP64: 1e-6, BF16: 1.5e-2, FP16: 2e-3}
each_pair = pytest.mark.parametrize(
    ("of_x", "of_weight"), [*((dtype, dtype) for dtype in DTYPES), (BF16, FP32), (FP16, FP32)], ids=dtype_name
)


def assert_close(found: tuple[Tensor, ...], norm: Norm, x: Tensor, dtype: torch.dtype) -> None:
    """To the exact gradients, as whole tensors."""
    dy = normal(*x.shape, dtype=found[0].dtype, seed=9)
    for gradient, exact in zip(found[1:], norm.exact_gradients(x, dy), strict=True):
        assert (gradient.double() - exact).norm() <= TOLERANCES[dtype] * exact.norm()


@each_pair
@each_norm_saving
@each_form
def test_results(form: NormForm, saving: NormSaving, of_x: torch.dtype, of_weight: torch.dtype) -> None:
    norm, x = norm_of(form, (CHANNELS,), of_x, of_weight), input_of(dtype=of_x)
    found, native = (run(norm, function, x) for function in (norm.ours(saving), norm.native))
    assert torch.equal(found[0], native[0])
    assert [(each.dtype, each.shape) for each in found] == [(each.dtype, each.shape) for each in native]
    assert_close(found, norm, x, of_x)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=dtype_name)
@each_layout
@each_norm_saving
@each_of_three
def test_layouts(
    form: NormForm, saving: NormSaving, layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager_norm, "CPU_PIECE", 7 * CHANNELS)
    norm, x = norm_of(form, (CHANNELS,), dtype), input_of(layout, dtype)
    found, native = (run(norm, function, x) for function in (norm.ours(saving), norm.native))
    assert torch.equal(found[0], native[0])
    assert found[0].stride() == native[0].stride()
    assert_close(found, norm, x, dtype)


@each_norm_saving
@each_of_three
def test_several_dimensions(form: NormForm, saving: NormSaving) -> None:
    norm, x = norm_of(form, SHAPE[-2:], FP32), input_of()
    found = run(norm, norm.ours(saving), x)
    assert torch.equal(found[0], norm.native(x, *norm.parameters))
    assert_close(found, norm, x, FP32)


@each_dtype
@each_norm_saving
@each_of_three
def test_rows_of_zeros_infinities_and_nan(form: NormForm, saving: NormSaving, dtype: torch.dtype) -> None:
    norm, x = norm_of(form, (CHANNELS,), dtype), normal(6, CHANNELS, dtype=dtype)
    x[1], x[2, 3], x[3, 4], x[4, 5] = 0.0, torch.inf, torch.nan, -torch.inf
    found, native = (run(norm, function, x) for function in (norm.ours(saving), norm.native))
    assert torch.equal(found[0].isnan(), native[0].isnan())
    assert torch.equal(found[0].nan_to_num(), native[0].nan_to_num())
    is_finite = torch.tensor([True, True, False, False, False, True])
    assert torch.equal(found[1].isnan().any(-1), native[1].isnan().any(-1))
    torch.testing.assert_close(
        found[1][is_finite], native[1][is_finite], rtol=2e-2, atol=2e-2 * native[1][1].abs().max()
    )


@pytest.mark.parametrize("shape", [(0, CHANNELS), (2, 0, CHANNELS), (CHANNELS,)], ids=str)
@each_norm_saving
@each_of_three
def test_no_rows_and_a_single_one(form: NormForm, saving: NormSaving, shape: tuple[int, ...]) -> None:
    norm, x = norm_of(form, (CHANNELS,), FP32), normal(*shape)
    found, native = (run(norm, function, x) for function in (norm.ours(saving), norm.native))
    for one, other in zip(found, native, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 64, 200])
@each_of_three
def test_narrow_norms(form: NormForm, channels: int) -> None:
    norm, x = norm_of(form, (channels,), FP32), normal(9, channels)
    found, native = (run(norm, function, x) for function in (norm.ours(), norm.native))
    for one, other in zip(found, native, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("form", "has_bias"), [(LAYER_NORM, True), (LAYER_NORM, False), (LLAMA, False)])
def test_parameters_that_are_missing(form: NormForm, has_bias: bool) -> None:
    """Both, or the weight alone, or the bias alone."""
    norm = Norm(form, None, normal(CHANNELS, seed=3) if has_bias else None)
    found, native = (run(norm, function, input_of()) for function in (norm.ours(), norm.native))
    for one, other in zip(found, native, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@each_form
def test_is_the_native_function_without_a_gradient(form: NormForm, monkeypatch: pytest.MonkeyPatch) -> None:
    implementation = Mock()
    monkeypatch.setattr(operators, "implementation", implementation)
    norm, x = norm_of(form, (CHANNELS,), FP32), input_of()
    with record_saved() as saved:
        outputs = [norm.ours()(x, *norm.parameters)]
        with torch.no_grad():
            outputs.append(norm.ours()(x.clone().requires_grad_(), *norm.parameters))
    assert saved == []
    assert implementation.mock_calls == []
    assert all(torch.equal(y, norm.native(x, *norm.parameters)) for y in outputs)


@pytest.mark.parametrize("requires_grad", [True, False])
def test_unknown_names_are_refused(requires_grad: bool) -> None:
    x = torch.ones(3, requires_grad=requires_grad)
    with pytest.raises(ValueError, match=r"unknown backend 'cuda'.*auto, eager"):
        normalize(x, None, None, LLAMA, EPS, backend="cuda")
    with pytest.raises(ValueError, match="saving must be one of 'output', 'input', got 'inputs'"):
        normalize(x, None, None, LLAMA, EPS, saving="inputs")  # type: ignore[arg-type]


def test_pytorch_raises_its_own_errors() -> None:
    x = normal(3, 8).requires_grad_()
    with pytest.raises(RuntimeError, match="normalized_shape"):
        normalize(x, torch.ones(7), None, LAYER_NORM, EPS)
    with pytest.raises(RuntimeError, match="size of tensor"):
        normalize(x, torch.ones(7), None, LLAMA, EPS)


@each_norm_saving
@pytest.mark.parametrize("form", [RMS_NORM, LAYER_NORM], ids=lambda form: form.name)
def test_gradcheck(form: NormForm, saving: NormSaving) -> None:
    norm, x = norm_of(form, (5,), FP64), normal(4, 5, dtype=FP64).requires_grad_()
    leaves = (x, *(each.requires_grad_() for each in norm.parameters))
    assert torch.autograd.gradcheck(norm.ours(saving), leaves)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=dtype_name)
@each_norm_saving
@each_of_three
def test_autocast(form: NormForm, saving: NormSaving, dtype: torch.dtype) -> None:
    """Also around the backward pass, where products of matrices would be in half precision."""
    norm, x = norm_of(form, (CHANNELS,), FP32), input_of(dtype=dtype)
    expected = run(norm, norm.ours(saving), x)
    with torch.autocast("cpu", BF16):
        found, native = (run(norm, function, x) for function in (norm.ours(saving), norm.native))
    assert all(map(torch.equal, found, expected))
    assert found[0].dtype == native[0].dtype
    assert torch.equal(found[0], native[0])


def test_no_autocast_in_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU it would round products of matrices and vectors."""
    dtypes: list[torch.dtype] = []
    for name in ("backward", "exact_backward"):
        function = getattr(operators.eager, name)
        monkeypatch.setattr(
            operators.eager,
            name,
            lambda *each, function=function: (dtypes.append((torch.eye(2) @ torch.eye(2)).dtype), function(*each))[1],
        )
    norm, x = norm_of(LLAMA, (CHANNELS,), FP32), input_of()
    with torch.autocast("cpu", BF16):
        assert (torch.eye(2) @ torch.eye(2)).dtype == BF16
        for saving in ("output", "input"):
            run(norm, norm.ours(saving), x)
    assert dtypes == [FP32, FP32]


@pytest.fixture
def float32_autocast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On a CPU, autocast as on a GPU: layer_norm is computed in float32."""
    library = torch.library.Library("aten", "IMPL")

    def in_float32(*arguments: Any) -> Any:
        with torch._C._DisableAutocast():
            return F.layer_norm(*(each.float() if isinstance(each, Tensor) else each for each in arguments[:5]))

    library.impl("layer_norm", in_float32, "AutocastCPU")
    from hf_invact.ops import norm as module

    module._cached_result_dtype.cache_clear()
    yield
    library._destroy()
    module._cached_result_dtype.cache_clear()


@pytest.mark.usefixtures("float32_autocast")
@each_norm_saving
def test_autocast_to_float32(saving: NormSaving) -> None:
    norm, x = norm_of(LAYER_NORM, (CHANNELS,), FP32), input_of(dtype=BF16)
    with torch.autocast("cpu", BF16):
        found = run(norm, norm.ours(saving), x)
    assert found[0].dtype == FP32
    assert torch.equal(found[0], norm.native(x.float(), *norm.parameters))
    assert found[1].dtype == BF16


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@each_norm_saving
@each_of_three
def test_compiled_in_one_graph(form: NormForm, saving: NormSaving, dynamic: bool) -> None:
    torch._dynamo.reset()
    norm = norm_of(form, (CHANNELS,), FP32)
    compiled = torch.compile(norm.ours(saving), backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for shape in (SHAPE, (3, 8, 3, CHANNELS)):
        x = input_of(shape=shape)
        assert all(map(torch.equal, run(norm, compiled, x), run(norm, norm.ours(saving), x)))


# DTensors


def distributed(mesh: Any, tensor: Tensor, *placements: Any) -> Any:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.detach(), mesh, list(placements)).requires_grad_()


@pytest.mark.usefixtures("process_group")
@each_of_three
def test_distributed_tensors(form: NormForm, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard

    mesh, norm, x = init_device_mesh("cpu", (1,)), norm_of(form, (CHANNELS,), FP32), input_of()
    expected = run(norm, norm.ours(), x)
    calls: list[str] = []
    forward = operators.eager.forward
    monkeypatch.setattr(operators.eager, "forward", lambda *each: (calls.append("ours"), forward(*each))[1])
    cases = [(Shard(1), 1), (Replicate(), 1)]
    if form is LLAMA:  # PyTorch's own functions refuse it
        cases.append((Shard(3), 0))
    for placement, count in cases:
        calls.clear()
        leaves = [distributed(mesh, x, placement), *(distributed(mesh, each, Replicate()) for each in norm.parameters)]
        y = norm.ours()(*leaves)
        y.backward(distributed(mesh, normal(*SHAPE, seed=9), placement))
        assert calls == ["ours"] * count
        found = [y.detach().full_tensor(), *(leaf.grad.full_tensor() for leaf in leaves)]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
