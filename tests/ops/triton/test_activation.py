"""Triton's kernels against the eager backend: compiled if there is a GPU, else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_invact import inverted_activations
from hf_invact.curves import CURVES, GELU, SILU, Curve, fit_curve
from hf_invact.ops.eager import activation as eager
from hf_invact.ops.eager.unmultiply import away_from_zero
from hf_invact.ops.operators.activation import implementation
from tests.helpers import (
    CASES,
    FITTED,
    GATED,
    HALF_DTYPES,
    PRODUCT_DTYPES,
    Case,
    all_numbers,
    assert_gradient_within,
    each_half_dtype,
    error_bar,
    exact_derivative,
    normal,
)
from tests.models import MODEL_NAMES, loss_and_gradients, tiny_model

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# NumPy's warnings come from the interpreter.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),
    *([pytest.mark.gpu] if DEVICE == "cuda" else []),
]
needs_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WRITTEN_IN_TRITON = (*FITTED, CURVES["clipped_gelu"])
TRITON = implementation("triton")

# A program handles 1,024 elements: sizes on both sides of that.
AROUND_A_BLOCK = [Case(SILU, dtype, (size,)) for dtype in DTYPES for size in (1023, 1024, 1025, 2047, 2049)]
TRITON_CASES = [case for case in CASES if case.curve in WRITTEN_IN_TRITON and case.dtype in DTYPES]

GATE_CASES = [case for case in [*TRITON_CASES, *AROUND_A_BLOCK] if case.curve in GATED and case.dtype in PRODUCT_DTYPES]

each_case = pytest.mark.parametrize("case", [*TRITON_CASES, *AROUND_A_BLOCK], ids=str)
each_curve = pytest.mark.parametrize("curve", WRITTEN_IN_TRITON, ids=lambda curve: curve.name)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """New tensors are filled with NaN (bytes: 255), which shows elements that a kernel does not write."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def kernels() -> ModuleType:
    from hf_invact.ops.triton import kernels

    return kernels


def assert_same_forward(result: Tensor, expected: Tensor) -> None:
    """The interpreter has another exponential function, whose result may round to a neighbour."""
    if DEVICE == "cuda" and expected.dtype in HALF_DTYPES:
        assert torch.equal(result.isnan(), expected.isnan())
        assert torch.equal(result.nan_to_num(), expected.nan_to_num())
    else:
        tolerance = 2 * torch.finfo(expected.dtype).eps
        torch.testing.assert_close(result, expected, rtol=tolerance, atol=1e-6, equal_nan=True)
    assert (result.stride(), result.dtype) == (expected.stride(), expected.dtype)


def assert_same_gradient(result: Tensor, expected: Tensor, atol: float = 4e-6) -> None:
    """The same formula, whose float32 operations are rounded in another order."""
    tolerance = 1e-5 if expected.dtype == torch.float32 else torch.finfo(expected.dtype).eps
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=atol, equal_nan=True)
    assert (result.stride(), result.dtype) == (expected.stride(), expected.dtype)


@each_case
def test_activation(case: Case) -> None:
    x, dy = case.input().to(DEVICE), case.input(seed=1).to(DEVICE)
    expected, expected_side = eager.forward(x, case.curve)
    y, side = TRITON.forward(x, case.curve)
    assert_same_forward(y, expected)
    assert torch.equal(side, expected_side)
    dx = TRITON.backward(dy, expected, side, case.curve)
    assert_same_gradient(dx, eager.backward(dy, expected, side, case.curve))


@pytest.mark.parametrize("case", GATE_CASES, ids=str)
def test_gate(case: Case) -> None:
    gate, up, dy = (case.input(seed=seed).to(DEVICE) for seed in range(3))
    expected, expected_side = eager.gate_forward(gate, up, case.curve)
    product, side = TRITON.gate_forward(gate, up, case.curve)
    assert_same_forward(product, expected)
    assert torch.equal(side, expected_side)
    gradients = TRITON.gate_backward(dy, expected, up, side, case.curve)
    for result, of_eager in zip(gradients, eager.gate_backward(dy, expected, up, side, case.curve), strict=True):
        assert result.stride() == of_eager.stride()
        # Where a product may come from two outputs, a single rounding decides which one is chosen.
        bar = 4 * torch.finfo(case.dtype).eps
        assert ((result - of_eager).double().abs() <= bar * (1 + dy.double().abs() * (1 + up.double().abs()))).all()


@pytest.mark.parametrize("curve", [GELU, SILU], ids=lambda curve: curve.name)
def test_unmultiplied_outputs_are_those_of_the_eager_backend(curve: Curve) -> None:
    gate, up, dy = (normal(20_000, dtype=torch.bfloat16, seed=seed).to(DEVICE) for seed in range(3))
    product, side = eager.gate_forward(gate, up, curve)
    gradients = (backend.gate_backward(dy, product, up, side, curve) for backend in (TRITON, eager))
    for result, of_eager in zip(*gradients, strict=True):
        assert (result == of_eager).double().mean() > 0.95


@each_half_dtype
@each_curve
def test_all_numbers(curve: Curve, dtype: torch.dtype) -> None:
    x = all_numbers(dtype).to(DEVICE)
    expected, expected_side = eager.forward(x, curve)
    y, side = TRITON.forward(x, curve)
    is_small = x.abs() < 1e4  # the interpreter's overflows differ
    assert_same_forward(y[is_small] if DEVICE == "cpu" else y, expected[is_small] if DEVICE == "cpu" else expected)
    assert torch.equal(side, expected_side)
    dy = torch.ones_like(x)
    dx, of_eager = (backend.backward(dy, expected, side, curve) for backend in (TRITON, eager))
    assert torch.equal(dx.isnan(), of_eager.isnan())
    assert_same_gradient(dx, of_eager)


@each_dtype
@each_curve
def test_derivative(curve: Curve, dtype: torch.dtype) -> None:
    x, dy = (normal(20_000, dtype=dtype, seed=seed).to(DEVICE) for seed in range(2))
    y, side = eager.forward(x, curve)
    dx = TRITON.backward(dy, y, side, curve).cpu()
    bar = error_bar(GELU if curve.limits else curve, dtype)
    bar = replace(bar, max=1.05 * bar.max)  # a few inputs next to the turning point reach the bar
    assert_gradient_within(bar, dx, dy.cpu(), exact_derivative(curve, x.cpu()))


@each_dtype
def test_writes_nothing_beyond_its_results(dtype: torch.dtype, kernels: ModuleType) -> None:
    from hf_invact.ops.triton.activation import ACTIVATIONS
    from hf_invact.ops.triton.constants import constants_of
    from hf_invact.ops.triton.launch import launch_elementwise

    size, room = 1027, 4096
    x = normal(size, dtype=dtype).to(DEVICE)
    y, side = (
        torch.full((room,), 7.0, dtype=dtype, device=DEVICE),
        torch.full((room,), 7, dtype=torch.uint8, device=DEVICE),
    )
    constants = {"FIT": constants_of(GELU, dtype)}
    of_the_forward = {**constants, "ACTIVATION": ACTIVATIONS["gelu"], "THRESHOLD": GELU.threshold(dtype)}
    launch_elementwise(kernels.forward, x, y, side, **of_the_forward)
    assert (y[size:] == 7).all()
    assert (side[129:] == 7).all()
    dx = torch.full_like(y, 7.0)
    launch_elementwise(kernels.backward, x, y, side, dx, **constants)
    assert (dx[size:] == 7).all()
    assert (dx[:size] != 7).all()


@pytest.mark.parametrize(
    ("dtype", "of_up"),
    [(torch.bfloat16,) * 2, (torch.float32,) * 2, (torch.float32, torch.float16), (torch.float32, torch.bfloat16)],
)
def test_small_factors_keep_the_output(dtype: torch.dtype, of_up: torch.dtype) -> None:
    gate = normal(64, dtype=dtype).to(DEVICE)
    up = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e-4, -1e-4, 1.0, -1.0] * 8, dtype=of_up, device=DEVICE)
    product, side = TRITON.gate_forward(gate, up, SILU)
    assert_same_forward(product, SILU.forward(gate) * away_from_zero(up))
    dgate, dup = TRITON.gate_backward(torch.ones_like(gate), product, up, side, SILU)
    torch.testing.assert_close(dup, SILU.forward(gate), rtol=4 * torch.finfo(dtype).eps, atol=1e-4)
    assert dgate.isfinite().all()


@each_case
def test_gradients_from_inputs(case: Case) -> None:
    gate, up, dy = (case.input(seed=seed).to(DEVICE) for seed in range(3))
    tolerance = 2 * torch.finfo(case.dtype).eps
    expected = eager.exact_backward(dy, gate, case.curve), *eager.exact_gate_backward(dy, gate, up, case.curve)
    results = TRITON.exact_backward(dy, gate, case.curve), *TRITON.exact_gate_backward(dy, gate, up, case.curve)
    for result, of_eager in zip(results, expected, strict=True):
        torch.testing.assert_close(result, of_eager, rtol=max(tolerance, 1e-5), atol=1e-5 if tolerance > 1e-5 else 1e-6)
        assert result.stride() == of_eager.stride()


OWN_FUNCTIONS = {
    "turns": lambda x: x * torch.sigmoid(2 * x),
    "turns-right-of-0": lambda x: F.silu(x - 2),
    "rises": F.softplus,
}


@pytest.mark.parametrize("function", OWN_FUNCTIONS.values(), ids=OWN_FUNCTIONS)
def test_a_users_own_curve(function: object) -> None:
    curve = fit_curve("own", function, None, max_error=1e-4)
    gate, up, dy = (normal(1500, dtype=torch.bfloat16, seed=seed).to(DEVICE) for seed in range(3))
    (y, side), (expected, expected_side) = (backend.forward(gate, curve) for backend in (TRITON, eager))
    assert torch.equal(y, expected)
    assert side is expected_side is None or torch.equal(side, expected_side)
    assert_same_gradient(TRITON.backward(dy, y, side, curve), eager.backward(dy, y, side, curve))
    product, side = TRITON.gate_forward(gate, up, curve)
    assert torch.equal(product, eager.gate_forward(gate, up, curve)[0])
    gradients, of_eager = (backend.gate_backward(dy, product, up, side, curve) for backend in (TRITON, eager))
    for result, other in zip(gradients, of_eager, strict=True):
        torch.testing.assert_close(result, other, rtol=0.05, atol=0.02)


@pytest.mark.gpu
@needs_a_gpu
@each_half_dtype
@each_curve
def test_forward_is_pytorchs_own(curve: Curve, dtype: torch.dtype) -> None:
    x = all_numbers(dtype).to(DEVICE)
    y, _ = TRITON.forward(x, curve)
    expected = curve.forward(x)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(), expected.nan_to_num())


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_patched_model_runs_on_the_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_invact.ops.triton import activation

    launched: list[str] = []
    run = activation.launch_elementwise

    def counted(kernel: Any, *tensors: Tensor, **constants: Any) -> None:
        launched.append(kernel.__name__)
        run(kernel, *tensors, **constants)

    monkeypatch.setattr(activation, "launch_elementwise", counted)
    model = tiny_model(name).to(DEVICE)
    plain_loss, plain_gradients = loss_and_gradients(model)
    with inverted_activations(model):
        loss, gradients = loss_and_gradients(model)
    assert {name.removeprefix("gate_") for name in launched} == {"forward", "backward"}
    torch.testing.assert_close(loss, plain_loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients, plain_gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@needs_a_gpu  # with 20 GB
def test_more_elements_than_32_bits_count() -> None:
    size = (1 << 31) + 4096
    x = torch.full((size,), -2.0, dtype=torch.bfloat16, device=DEVICE)
    x[-3:] = 1.0
    y, side = TRITON.forward(x, SILU)
    assert torch.equal(y[-4:], SILU.forward(x[-4:]))
    assert side[-1].item() == 0b00011111
    dx = TRITON.backward(torch.ones_like(y), y, side, SILU)
    torch.testing.assert_close(dx[-4:].double(), exact_derivative(SILU, x[-4:]), rtol=0.01, atol=0.01)
