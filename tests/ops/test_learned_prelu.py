"""PReLU from its output: the result, and the gradients of the input and of the weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hf_invact.ops import SMALLEST_SLOPE, prelu_is_invertible
from tests.helpers import (
    ARRANGEMENTS,
    FOUR_DIMENSIONS,
    HALF_DTYPES,
    LAYOUTS,
    each_dtype,
    each_layout,
    normal,
)
from tests.learned import MODULES, exact_passes, inverted, passes, prelu

each_arrangement = pytest.mark.parametrize(("shape", "layout"), ARRANGEMENTS, ids=str)


def assert_same_prelu(module: nn.PReLU, x: Tensor, dy: Tensor) -> None:
    """Equal results and input gradients; weight gradients within the rounding of the outputs."""
    native, got = passes(module, module, x, dy), passes(module, inverted(module), x, dy)
    assert torch.equal(got.y, native.y)
    assert torch.equal(got.dx, native.dx)
    assert x.numel() == 0 or got.dx.stride() == native.dx.stride()
    exact, size = exact_passes(module, x, dy), exact_passes(module, -x.abs(), dy.abs())
    tolerance = torch.finfo(x.dtype).eps * (size.parameters[0].abs() + exact.parameters[0].abs()) + 1e-300
    assert ((got.parameters[0].double() - exact.parameters[0]).abs() <= tolerance).all()


@each_dtype
@each_arrangement
def test_prelu(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    assert_same_prelu(prelu(0.3, dtype=dtype), LAYOUTS[layout](shape, dtype, 0), normal(*shape, dtype=dtype, seed=1))


@each_dtype
@pytest.mark.parametrize("shape", [(5, 8), (3, 8, 7), FOUR_DIMENSIONS, (0, 8), (3, 8, 0)], ids=str)
def test_prelu_with_a_weight_for_each_channel(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    module = MODULES["prelu_of_channels"](dtype)
    for layout in ("contiguous", "transposed", "every_second"):
        assert_same_prelu(module, LAYOUTS[layout](shape, dtype, 0), normal(*shape, dtype=dtype, seed=1))


@each_dtype
@each_layout
def test_prelu_with_a_weight_for_each_channel_in_every_layout(layout: str, dtype: torch.dtype) -> None:
    x = LAYOUTS[layout](FOUR_DIMENSIONS, dtype, 0)
    assert_same_prelu(MODULES["prelu_of_channels"](dtype), x, LAYOUTS["channels_last"](FOUR_DIMENSIONS, dtype, 1))


@settings(max_examples=60, deadline=None)
@given(
    weight=st.floats(SMALLEST_SLOPE, 1e4, width=16),
    x=st.lists(st.floats(-100, 100, width=16), min_size=1, max_size=20),
    dtype=st.sampled_from([torch.float32, *HALF_DTYPES]),
)
def test_prelu_of_any_number(weight: float, x: list[float], dtype: torch.dtype) -> None:
    module = prelu(weight, dtype=dtype)
    inputs = torch.tensor(x, dtype=dtype)
    dy = normal(len(x), dtype=dtype)
    native, got = passes(module, module, inputs, dy), passes(module, inverted(module), inputs, dy)
    assert torch.equal(got.dx, native.dx)
    # Digits that an output loses below the smallest normal number are lost as well, divided by the slope.
    info = torch.finfo(dtype)
    lost = info.eps * inputs.double().abs() + info.smallest_normal * info.eps / weight
    tolerance = (dy.double().abs() * lost).sum() + info.eps * abs(native.parameters[0].item())
    tolerance += info.smallest_normal * info.eps  # the rounding of the result
    exact = exact_passes(module, inputs, dy)
    if native.y.isfinite().all():
        assert abs(got.parameters[0].item() - exact.parameters[0].item()) <= tolerance


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((0.25,), True),
        ((0.25, 2.0), True),
        ((0.25, 0.0), False),
        ((-0.1,), False),
        ((1e-6,), False),
        ((float("nan"), 1.0), False),
    ],
    ids=str,
)
def test_prelu_is_invertible_while_every_weight_is_positive(weights: tuple[float, ...], expected: bool) -> None:
    assert prelu_is_invertible(torch.tensor(weights)) is expected
