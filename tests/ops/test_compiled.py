"""The compiled formulas against the plain backend."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch._dynamo.utils
from torch import Tensor

from hf_invact.curves import CURVES, GELU, SILU, Curve, Fit, elu
from hf_invact.ops import BACKENDS, compiled, gate, invert
from hf_invact.ops.packing import unpack
from tests.helpers import (
    LAYOUTS,
    all_numbers,
    dtype_name,
    each_half_dtype,
    last_place,
    normal,
    output_and_gradients,
)
from tests.ops.test_quotient import pairs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"),
]
EAGER, COMPILE = BACKENDS["eager"], BACKENDS["compile"]
PIECE, LARGE_PIECE = 128, 512
# Fitted, in each dtype and with limits; and closed forms with bits and without. (Compiling takes seconds each.)
CURVES_AND_DTYPES = [
    (GELU, torch.float32),
    (SILU, torch.bfloat16),
    (CURVES["clipped_gelu"], torch.float16),
    (CURVES["hardswish"], torch.float32),
    (elu(), torch.bfloat16),
]
each_curve_and_dtype = pytest.mark.parametrize(
    ("curve", "dtype"), CURVES_AND_DTYPES, ids=lambda value: getattr(value, "name", None) or dtype_name(value)
)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "CPU_PIECES", (LARGE_PIECE, PIECE))


def assert_close(result: Tensor, expected: Tensor, curve: Curve, dy: Tensor) -> None:
    """Two roundings apart, and next to a turning point as far as both guesses of the root are."""
    assert (result.dtype, result.shape, result.stride()) == (expected.dtype, expected.shape, expected.stride())
    tolerance = max(2 * torch.finfo(expected.dtype).eps, 1e-5)
    apart = 0.02 * curve.output_error(result.dtype) ** 0.5 if isinstance(curve.inverse, Fit) else 0.0
    close = (result - expected).abs() <= tolerance * expected.abs() + (apart + 4e-6) * dy.abs()
    assert (close | (result.isnan() & expected.isnan())).all()


def assert_as_many(side: Tensor | None, expected: Tensor | None) -> None:
    """Side bits lie in another order, but there are as many of each."""
    if side is None or expected is None:
        assert side is expected
    else:
        assert side.shape == expected.shape
        assert unpack(side).sum() == unpack(expected).sum()


@pytest.mark.parametrize("size", [0, 9, PIECE, LARGE_PIECE + PIECE + 3])
@each_curve_and_dtype
def test_as_the_plain_backend(curve: Curve, dtype: torch.dtype, size: int) -> None:
    x, up, dy = (normal(size, dtype=dtype, seed=seed) for seed in range(3))
    (y, side), (expected, expected_side) = (backend.forward(x, curve) for backend in (COMPILE, EAGER))
    assert torch.equal(y, expected)
    assert_as_many(side, expected_side)
    assert_close(COMPILE.backward(dy, y, side, curve), EAGER.backward(dy, y, expected_side, curve), curve, dy)
    (product, side), (expected, expected_side) = (backend.gate_forward(x, up, curve) for backend in (COMPILE, EAGER))
    assert torch.equal(product, expected)
    assert_as_many(side, expected_side)
    before = [tensor.clone() for tensor in (dy, product, up)]
    gradients = COMPILE.gate_backward(dy, product, up, side, curve)
    for result, of_eager in zip(gradients, EAGER.gate_backward(dy, product, up, expected_side, curve), strict=True):
        assert (result.dtype, result.shape) == (of_eager.dtype, of_eager.shape)
        # Where a product is between two outputs of half precision, not both backends may take the same.
        bar = 4 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 1e-5
        assert ((result - of_eager).double().abs() <= bar * (1 + dy.double().abs() * (1 + up.double().abs()))).all()
    assert all(torch.equal(*pair) for pair in zip((dy, product, up), before, strict=True))


def test_all_numbers() -> None:
    x = all_numbers(torch.bfloat16)
    y, side = COMPILE.forward(x, GELU)
    expected, expected_side = EAGER.forward(x, GELU)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(), expected.nan_to_num())
    assert_as_many(side, expected_side)
    dy = torch.ones_like(y)
    assert_close(COMPILE.backward(dy, y, side, GELU), EAGER.backward(dy, y, expected_side, GELU), GELU, dy)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str) -> None:
    gate_input, up, dy = (LAYOUTS[layout]((2, 8, 3, 5), torch.float32, seed) for seed in range(3))
    for backend in ("compile", "eager"):
        results = output_and_gradients(lambda a, u: gate(a, u, GELU, backend=backend), gate_input, up, dy=dy)  # noqa: B023
        if backend == "compile":
            ours = results
    for result, expected in zip(ours, results, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=4e-6)


def test_has_one_derivative() -> None:
    x = normal(PIECE).requires_grad_()
    (gradient,) = torch.autograd.grad(invert(x, GELU, backend="compile").square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="an inverted gelu has no second derivative"):
        gradient.sum().backward()


def test_nothing_is_compiled_again_for_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(size: int) -> None:
        x = normal(size).requires_grad_()
        invert(x, GELU, backend="compile").sum().backward()

    step(100)
    step(LARGE_PIECE)
    before = len(torch._dynamo.utils.compilation_time_metrics.get("compile_inner", []))
    for size in (1, 99, PIECE, 2 * LARGE_PIECE + 200):
        step(size)
    assert len(torch._dynamo.utils.compilation_time_metrics.get("compile_inner", [])) == before


def test_a_kernel_for_any_size_as_other_devices_have_it() -> None:
    kernel = compiled._compiled(compiled._backward, GELU, torch.float32, False)
    for size in (64, 96, 160):
        x, dy = normal(size), normal(size, seed=1)
        y, side = EAGER.forward(x, GELU)
        dx = torch.empty(size)
        kernel([dx, dy, y, packed_in_planes(x < GELU.threshold(torch.float32))])
        assert_close(dx, EAGER.backward(dy, y, side, GELU), GELU, dy)


def packed_in_planes(flags: Tensor) -> Tensor:
    weights = 2 ** torch.arange(8)
    return (flags.view(8, -1) * weights.unsqueeze(1)).sum(dim=0).to(torch.uint8)


@each_half_dtype
def test_rebuilt_outputs_are_within_a_step_and_mostly_exact(dtype: torch.dtype) -> None:
    y, up, product = pairs(dtype)
    rebuilt, bend = compiled._rebuild(GELU, product, up)
    assert rebuilt.isfinite().all()
    smallest = torch.finfo(dtype).smallest_normal
    told = (product.abs() > smallest) & (y.abs() >= smallest)
    distance = (rebuilt.double() - y.double()).abs()[told]
    assert (distance <= last_place(y.double(), dtype)[told] / 2).all()
    assert (distance == 0).double().mean() > 0.779  # measured: 0.7803 in bfloat16, 0.7821 in float16
    is_between = rebuilt.to(dtype).float() != rebuilt
    expected = torch.where(is_between, GELU.bend(dtype, is_between=True).start, GELU.bend(dtype).start)
    assert torch.equal(torch.as_tensor(bend.start)[told], expected[told])


@each_half_dtype
def test_the_largest_output_is_rebuilt_as_a_number(dtype: torch.dtype) -> None:
    up = all_numbers(dtype)
    up = up[(up.abs() > 1e-3) & (up.abs() < 1)]
    largest = torch.full_like(up, torch.finfo(dtype).max)
    rebuilt, _ = compiled._rebuild(GELU, largest * up, up)
    assert torch.allclose(rebuilt, largest.float(), rtol=torch.finfo(dtype).eps)


@each_half_dtype
def test_outputs_of_whole_ranges_of_inputs_are_taken_where_they_can_have_been_it(dtype: torch.dtype) -> None:
    curve, up = CURVES["clipped_gelu"], torch.linspace(0.1, 3, 10_000, dtype=dtype)
    ten = torch.full_like(up, 10.0)
    rebuilt, _ = compiled._rebuild(curve, ten * up, up)
    assert (rebuilt == 10).all()
