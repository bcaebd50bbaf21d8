"""The compiled formulas against the eager backend."""

from __future__ import annotations

import shutil
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from hf_invact.curves import CURVES, GELU, SILU, Curve, Fit, elu
from hf_invact.ops import gate, invert, tells_output
from hf_invact.ops.eager import activation as eager
from hf_invact.ops.eager.derivative import derivative_of_unmultiplied
from hf_invact.ops.inductor import activation as inductor
from hf_invact.ops.inductor import compiler
from tests.helpers import (
    LAYOUTS,
    all_numbers,
    dtype_name,
    last_place,
    normal,
    output_and_gradients,
    threads,
)
from tests.ops.eager.test_unmultiply import HALF, pairs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"),
]
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
    monkeypatch.setattr(compiler, "CPU_PIECES", (LARGE_PIECE, PIECE))


def assert_close(result: Tensor, expected: Tensor, curve: Curve, dy: Tensor) -> None:
    """They differ by two roundings, and next to a turning point by as much as both estimates of the root."""
    assert (result.dtype, result.shape, result.stride()) == (expected.dtype, expected.shape, expected.stride())
    tolerance = max(2 * torch.finfo(expected.dtype).eps, 1e-5)
    apart = 0.02 * curve.output_error(result.dtype) ** 0.5 if isinstance(curve.inverse, Fit) else 0.0
    close = (result - expected).abs() <= tolerance * expected.abs() + (apart + 4e-6) * dy.abs()
    assert (close | (result.isnan() & expected.isnan())).all()


def assert_same_bits(side: Tensor | None, expected: Tensor | None) -> None:
    if side is None or expected is None:
        assert side is expected
    else:
        assert torch.equal(side, expected)


@pytest.mark.parametrize("size", [0, 9, PIECE, LARGE_PIECE + PIECE + 3])
@each_curve_and_dtype
def test_as_the_eager_backend(curve: Curve, dtype: torch.dtype, size: int) -> None:
    x, up, dy = (normal(size, dtype=dtype, seed=seed) for seed in range(3))
    (y, side), (expected, expected_side) = (backend.forward(x, curve) for backend in (inductor, eager))
    assert torch.equal(y, expected)
    assert_same_bits(side, expected_side)
    assert_close(inductor.backward(dy, y, side, curve), eager.backward(dy, y, expected_side, curve), curve, dy)
    if not tells_output(curve, dtype, dtype):
        return
    (product, side), (expected, expected_side) = (backend.gate_forward(x, up, curve) for backend in (inductor, eager))
    assert torch.equal(product, expected)
    assert_same_bits(side, expected_side)
    before = [tensor.clone() for tensor in (dy, product, up)]
    gradients = inductor.gate_backward(dy, product, up, side, curve)
    for result, of_eager in zip(gradients, eager.gate_backward(dy, product, up, expected_side, curve), strict=True):
        assert (result.dtype, result.shape) == (of_eager.dtype, of_eager.shape)
        # Where a product may come from two outputs of half precision, the backends may choose different ones.
        bar = 4 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 1e-5
        assert ((result - of_eager).double().abs() <= bar * (1 + dy.double().abs() * (1 + up.double().abs()))).all()
    assert all(torch.equal(*pair) for pair in zip((dy, product, up), before, strict=True))


def test_all_numbers() -> None:
    x = all_numbers(torch.bfloat16)
    y, side = inductor.forward(x, GELU)
    expected, expected_side = eager.forward(x, GELU)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(), expected.nan_to_num())
    assert_same_bits(side, expected_side)
    dy = torch.ones_like(y)
    assert_close(inductor.backward(dy, y, side, GELU), eager.backward(dy, y, expected_side, GELU), GELU, dy)


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

    compilations = Mock(side_effect=torch._inductor.compile)
    monkeypatch.setattr(torch._inductor, "compile", compilations)
    compiler._compiled.cache_clear()
    step(100)
    step(LARGE_PIECE)
    assert compilations.call_count == 2 * 2  # sizes, and directions
    for size in (1, 99, PIECE, 2 * LARGE_PIECE + 200):
        step(size)
    assert compilations.call_count == 2 * 2


def compiled_backward(like: Tensor, *, on_cpu: bool) -> Any:
    dtypes = (like.dtype,) * 3  # of the result and of both tensors
    return compiler._compiled(inductor._backward, GELU, dtypes, like.device, on_cpu, True, compiler.INLINED_OPERATIONS)


def test_another_number_of_threads_has_kernels_of_its_own() -> None:
    x, dy = normal(PIECE), normal(PIECE, seed=1)
    results = []
    for count in (1, 2):
        with threads(count):
            y, side = inductor.forward(x, GELU)
            results.append(inductor.backward(dy, y, side, GELU))
    kernels = compiled_backward(x, on_cpu=True).kernels
    assert {1, 2} <= {threads for threads, *_ in kernels}
    assert torch.equal(*results)


def test_a_kernel_works_in_other_modes_than_it_was_compiled_in() -> None:
    x, dy = normal(PIECE, dtype=torch.bfloat16), normal(PIECE, dtype=torch.bfloat16, seed=1)
    results = []
    for first in (torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu"), lambda: torch.device("meta")):
        compiler._compiled.cache_clear()
        for mode in (first, torch.inference_mode, torch.enable_grad):
            with mode():
                y, side = inductor.forward(x, SILU)
                results.append(inductor.backward(dy, y, side, SILU))
    assert all(torch.equal(result, results[0]) for result in results)
    assert results[0].device.type == "cpu"


@pytest.mark.parametrize("size", [PIECE, PIECE + 9])
def test_nothing_is_differentiated_within_a_kernel(size: int) -> None:
    x, dy = normal(size), normal(size, seed=1)
    y, side = inductor.forward(x, GELU)
    expected = inductor.backward(dy, y, side, GELU)
    with torch.enable_grad():
        result = inductor.backward(dy.requires_grad_(), y.requires_grad_(), side, GELU)
    assert not result.requires_grad
    assert torch.equal(result, expected)


def test_a_kernel_for_any_size_as_other_devices_have_it() -> None:
    kernel = compiled_backward(torch.empty(0), on_cpu=False)
    for size in (64, 96, 160):
        x, dy = normal(size), normal(size, seed=1)
        y, side = eager.forward(x, GELU)
        assert side is not None
        dx = torch.empty(size)
        kernel(side, dx, dy, y)
        assert_close(dx, eager.backward(dy, y, side, GELU), GELU, dy)


def test_the_memory_for_a_piece_is_bounded() -> None:
    size = LARGE_PIECE + PIECE + 3
    whole, rest = (0, LARGE_PIECE, LARGE_PIECE), (LARGE_PIECE + PIECE, size, PIECE)
    assert list(compiler._pieces(size, True, is_bounded=False)) == [whole, (LARGE_PIECE, rest[0], PIECE), rest]
    assert {padded for *_, padded in compiler._pieces(size, True, is_bounded=True)} == {PIECE}


def test_bits_that_begin_at_an_odd_byte() -> None:
    x, dy = normal(LARGE_PIECE), normal(LARGE_PIECE, seed=1)
    y, side = inductor.forward(x, GELU)
    assert side is not None
    moved = torch.cat([side[:1], side])[1:]
    assert torch.equal(inductor.backward(dy, y, moved, GELU), inductor.backward(dy, y, side, GELU))


def test_a_gradient_of_another_dtype_is_rounded_once() -> None:
    x, up = (normal(PIECE, dtype=torch.bfloat16, seed=seed) for seed in range(2))
    dy = normal(PIECE, seed=2)
    product, side = inductor.gate_forward(x, up, GELU)
    gradients = inductor.gate_backward(dy, product, up, side, GELU)
    for result, expected in zip(gradients, eager.gate_backward(dy, product, up, side, GELU), strict=True):
        assert result.dtype == torch.float32
        # Where a product may come from two outputs, the backends may choose different ones; elsewhere they agree.
        assert ((result - expected).abs() < 1e-5).float().mean() > 0.9


@pytest.mark.parametrize("of_up", [torch.float16, torch.bfloat16], ids=dtype_name)
def test_an_up_of_half_precision_beside_a_wide_gate(of_up: torch.dtype) -> None:
    x, dy, up = normal(PIECE), normal(PIECE, seed=1), (1e-4 * normal(PIECE, seed=2)).to(of_up)
    up[:5] = torch.tensor([0.0, -0.0, 1e-7, -1e-7, 1.0])
    results, expected = (
        output_and_gradients(lambda a, u: torch.ops.hf_invact.gate(a, u, "softplus", backend)[0], x, up, dy=dy)  # noqa: B023
        for backend in ("compile", "eager")
    )
    for result, of_eager in zip(results, expected, strict=True):
        torch.testing.assert_close(result, of_eager, rtol=1e-5, atol=1e-6)


def unmultiplied(curve: Curve, product: Tensor, up: Tensor) -> Tensor:
    lanes = compiler.lanes_of(product.device, (product.dtype,))
    return inductor._unmultiply(curve, lanes, None, torch.ones_like(product), up, product)


def test_unmultiplied_outputs_are_within_a_step_and_mostly_exact() -> None:
    (y, up, product), dtype = pairs(), HALF
    found = unmultiplied(GELU, product, up)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    smallest = torch.finfo(dtype).smallest_normal
    told = (product.abs() > smallest) & (y.abs() >= smallest)
    step, distance = last_place(y.double(), dtype)[told], (found.double() - y.double()).abs()[told]
    is_usual = (y.abs() < 2.0**100) & (product.abs() < 2.0**110)  # larger ones are not multiplied back
    is_usual = is_usual[told]
    assert (distance <= torch.where(is_usual, step / 2, step)).all()
    # Where two outputs are possible, the result is their midpoint. Measured: 0.7800.
    assert (distance == 0)[is_usual & (product.abs() < 2.0**100)[told]].double().mean() > 0.779


@pytest.mark.parametrize("curve", [GELU, SILU], ids=lambda curve: curve.name)
def test_next_to_the_turning_point_midpoints_have_their_own_derivatives(curve: Curve) -> None:
    dtype = HALF
    assert isinstance(curve.inverse, Fit)
    numbers = all_numbers(dtype).float()
    lowest = numbers[numbers > curve.inverse.y_min - curve.output_error(dtype)].sort().values[:3]
    y = torch.stack([lowest[:2], (lowest[:2] + lowest[1:]) / 2]).flatten()
    y, side = y.repeat(8), torch.zeros(4, dtype=torch.uint8)
    dgate, dup, dy, up = torch.empty(32), torch.empty(32), torch.ones(32), torch.ones(32, dtype=dtype)
    inductor._gate_backward(curve, compiler.lanes_of(y.device, (dtype,)), side, dgate, dup, dy, up, up, y)
    expected = derivative_of_unmultiplied(curve, up)(y, side)
    torch.testing.assert_close(dgate, expected, rtol=0, atol=1e-4)


def test_the_largest_output_stays_finite() -> None:
    up = all_numbers(HALF)
    up = up[(up.abs() > 1e-3) & (up.abs() < 1)]
    largest = torch.full_like(up, torch.finfo(HALF).max)
    assert torch.allclose(unmultiplied(GELU, largest * up, up), largest.float(), rtol=torch.finfo(HALF).eps)
