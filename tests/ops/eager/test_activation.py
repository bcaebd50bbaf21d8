"""The eager backend: side bits and gradients against exact values, for every layout, size of pieces and threads."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_invact.curves import GELU, QUICK_GELU, RELU2, SILU, Curve
from hf_invact.ops import buffers, invert
from hf_invact.ops.bits import packed_size, unpack
from hf_invact.ops.buffers import flat
from hf_invact.ops.eager import activation as eager
from tests.helpers import (
    DTYPES,
    FOUR_DIMENSIONS,
    SMALL_PIECE,
    Case,
    all_numbers,
    assert_gradient_within,
    dtype_name,
    each_case,
    each_curve,
    each_dtype,
    each_fitted,
    each_half_dtype,
    each_layout,
    error_bar,
    exact_derivative,
    normal,
    output_and_gradient,
    rounded_rms,
    threads,
)

DRAWS = 2_000_000


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "CPU_PIECE", SMALL_PIECE)


@pytest.fixture(scope="module")
def draws() -> Tensor:
    return normal(DRAWS, dtype=torch.float64)


def is_left(side: Tensor, y: Tensor) -> Tensor:
    """The side bits as bools, shaped as `y`."""
    flags = torch.empty_strided(y.size(), y.stride(), dtype=torch.bool)
    flat(flags).copy_(unpack(side)[: y.numel()])
    return flags


def derivative(y: Tensor, side: Tensor | None, curve: Curve) -> Tensor:
    """``D(y, side)`` in float64, not rounded to the dtype of `y`."""
    wide = torch.promote_types(y.dtype, torch.float32)
    return eager.backward(torch.ones_like(y, dtype=wide), y, side, curve).double()


def rms(error: Tensor) -> float:
    return error.square().mean().sqrt().item()


@each_case
def test_forward(case: Case) -> None:
    x = case.input()
    y, side = eager.forward(x, case.curve)
    assert torch.equal(y, case.curve.forward(x))
    assert (side is None) == (case.curve.x_min is None)
    if side is not None:
        assert side.dtype == torch.uint8
        assert side.shape == (packed_size(x.numel()),)
        assert torch.equal(is_left(side, y), x.double() < case.curve.x_min)


@each_case
def test_backward(case: Case) -> None:
    x, dy = case.input(), case.input(seed=1)
    y, side = eager.forward(x, case.curve)
    dx = eager.backward(dy, y, side, case.curve)
    assert (dx.shape, dx.dtype, dx.stride()) == (x.shape, x.dtype, y.stride())
    assert_gradient_within(error_bar(case.curve, case.dtype), dx, dy, exact_derivative(case.curve, x))


@each_case
def test_pieces_do_not_change_a_bit(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    x, dy = case.input(), case.input(seed=1)
    y, side = eager.forward(x, case.curve)
    dx = eager.backward(dy, y, side, case.curve)
    monkeypatch.setattr(buffers, "CPU_PIECE", SMALL_PIECE)
    y_of_pieces, side_of_pieces = eager.forward(x, case.curve)
    assert torch.equal(y_of_pieces, y)
    assert side is side_of_pieces is None or torch.equal(side_of_pieces, side)
    assert torch.equal(eager.backward(dy, y, side, case.curve), dx)


@pytest.mark.parametrize("layout_of_dy", ["expanded", "transposed", "every_second"])
@each_layout
@each_dtype
def test_layout_of_dy_does_not_change_a_bit(
    dtype: torch.dtype, layout: str, layout_of_dy: str, small_pieces: None
) -> None:
    y, side = eager.forward(Case(SILU, dtype, FOUR_DIMENSIONS, layout).input(), SILU)
    dy = Case(SILU, dtype, FOUR_DIMENSIONS, layout_of_dy).input(seed=1)
    dx = eager.backward(dy, y, side, SILU)
    assert torch.equal(dx, eager.backward(torch.empty_like(y).copy_(dy), y, side, SILU))


@each_dtype
@each_curve
def test_backward_changes_none_of_its_arguments(curve: Curve, dtype: torch.dtype) -> None:
    dy = normal(1000, dtype=dtype, seed=1)
    y, side = eager.forward(normal(1000, dtype=dtype), curve)
    arguments = [dy, y] if side is None else [dy, y, side]
    before = [tensor.clone() for tensor in arguments]
    eager.backward(dy, y, side, curve)
    assert all(map(torch.equal, arguments, before))


@pytest.mark.parametrize("gradient_dtype", DTYPES, ids=lambda dtype: f"gradient_{dtype_name(dtype)}")
@each_dtype
@pytest.mark.parametrize("curve", [SILU, RELU2], ids=lambda curve: curve.name)
def test_a_gradient_of_another_dtype_changes_no_argument(
    curve: Curve, dtype: torch.dtype, gradient_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers, "CPU_PIECE", SMALL_PIECE)
    x, up = (normal(3_001, dtype=dtype, seed=seed) for seed in range(2))
    dy = normal(3_001, dtype=gradient_dtype, seed=2)
    y, side = eager.forward(x, curve)
    product, gate_side = eager.gate_forward(x, up, curve)
    arguments = [dy, y, product, up]
    before = [tensor.clone() for tensor in arguments]
    slope = eager.backward(torch.ones_like(y), y, side, curve)
    dx = eager.backward(dy, y, side, curve)
    eager.gate_backward(dy, product, up, gate_side, curve)
    assert all(map(torch.equal, arguments, before))
    assert dx.dtype == gradient_dtype
    tolerance = 2 * max(torch.finfo(dtype).eps, torch.finfo(gradient_dtype).eps)
    torch.testing.assert_close(dx.double(), dy.double() * slope.double(), rtol=tolerance, atol=1e-7)


@each_dtype
@each_curve
def test_threads_do_not_change_a_bit(curve: Curve, dtype: torch.dtype) -> None:
    x = normal(100_003, dtype=dtype)  # more than one thread's share
    y = curve.forward(x)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            _, side = eager.forward(x, curve)
            results.append((side, eager.backward(torch.ones_like(y), y, side, curve)))
    for side, dx in results[1:]:
        assert side is results[0][0] is None or torch.equal(side, results[0][0])
        assert torch.equal(dx, results[0][1])


@each_dtype
@each_fitted
def test_derivative_on_normal_inputs(curve: Curve, dtype: torch.dtype, draws: Tensor) -> None:
    bar = error_bar(curve, dtype)
    x = draws.to(dtype)
    y, side = eager.forward(x, curve)
    error = derivative(y, side, curve) - exact_derivative(curve, x)
    away = (x.double() - curve.x_min).abs() > 0.05
    assert error.abs().max() < bar.max
    assert error[away].abs().max() < bar.max_away
    assert rms(error) < bar.rms
    assert error.mean().abs() < bar.bias


@each_half_dtype
@each_fitted
def test_gradient_on_normal_inputs(curve: Curve, dtype: torch.dtype, draws: Tensor) -> None:
    x = draws.to(dtype)
    y, side = eager.forward(x, curve)
    error = eager.backward(torch.ones_like(y), y, side, curve).double() - exact_derivative(curve, x)
    bar = error_bar(curve, dtype)
    assert error.abs().max() < bar.max
    assert rms(error) < rounded_rms(bar, dtype)


@each_half_dtype
@each_fitted
def test_all_numbers_of_half_precision(curve: Curve, dtype: torch.dtype) -> None:
    x = all_numbers(dtype)
    y, side = eager.forward(x, curve)
    dx = eager.backward(torch.ones_like(y), y, side, curve)
    exact = exact_derivative(curve, x)
    finite = exact.isfinite()
    assert torch.equal(finite, x.isfinite())
    assert dx[finite].isfinite().all()
    assert (dx.double() - exact)[finite].abs().max() < error_bar(curve, dtype).max


@pytest.mark.parametrize("branch", ["left", "right"])
@each_fitted
def test_float32_arithmetic_on_a_dense_grid_of_outputs(curve: Curve, branch: str) -> None:
    """Each output is a float32 number, and the derivative is compared at its exact inverse: no rounding of y here."""
    end = curve.x_min + (25 if branch == "right" else -15)
    y = curve.forward(torch.linspace(curve.x_min, end, 20_001, dtype=torch.float64)).float().unique()
    y = y[(y.double() > curve.inverse.y_min / curve.scale) & (y != 0)]
    flat_end, steep_end = (torch.full(y.shape, x, dtype=torch.float64) for x in (curve.x_min, end))
    for _ in range(60):
        middle = (flat_end + steep_end) / 2
        nearer = curve.forward(middle) < y.double()
        flat_end, steep_end = torch.where(nearer, middle, flat_end), torch.where(nearer, steep_end, middle)
    side = torch.full((packed_size(y.numel()),), 255 if branch == "left" else 0, dtype=torch.uint8)
    error = (derivative(y, side, curve) - exact_derivative(curve, middle)).abs()
    assert y.numel() > 5_000
    assert error[(middle - curve.x_min).abs() > 0.01].max() < 2e-6
    # Next to the turning point it is the derivative at the midpoint of the outputs that round to y.
    assert error.max() < 4e-5


@pytest.mark.parametrize("copies", [1, 50], ids=["one", "many"])  # vectorized code, and the remainder after it
@each_dtype
@each_fitted
def test_gradient_is_nan_where_the_native_one_is(curve: Curve, dtype: torch.dtype, copies: int) -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -3.0, 30.0], dtype=dtype).repeat(copies)
    _, native = output_and_gradient(curve.forward, x)
    _, dx = output_and_gradient(lambda leaf: invert(leaf, curve), x)
    assert torch.equal(dx.isnan(), native.isnan())
    assert dx.isnan().tolist() == [True, True, True, False, False, False] * copies


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=dtype_name)
def test_output_that_overflows_inside_has_a_gradient(dtype: torch.dtype) -> None:
    """quick_gelu's formula scales the output first, which makes the largest finite numbers infinite."""
    x = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min], dtype=dtype)
    y, side = eager.forward(x, QUICK_GELU)
    assert eager.backward(torch.ones_like(y), y, side, QUICK_GELU).tolist() == pytest.approx([1, 0], abs=1e-6)


def test_real_and_fake_tensors_take_turns() -> None:
    def gradient() -> Tensor:
        _, dx = output_and_gradient(lambda leaf: invert(leaf, GELU), torch.ones(16))
        return dx

    before = gradient()
    with FakeTensorMode():
        assert gradient().shape == (16,)
    assert torch.equal(gradient(), before)


def test_meta_as_the_default_device_leaves_real_tensors_alone() -> None:
    x = torch.ones(16)
    expected = output_and_gradient(lambda leaf: invert(leaf, GELU), x)
    with torch.device("meta"):
        results = output_and_gradient(lambda leaf: invert(leaf, GELU), x)
    assert all(map(torch.equal, results, expected))
