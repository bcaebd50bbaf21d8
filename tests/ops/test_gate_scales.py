"""Gates of large and small numbers: their gradients compared with the unpatched ones, for all pairs of dtypes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_invact.curves import CURVES, Curve
from hf_invact.ops.eager.derivative import TABLE_FROM
from tests.helpers import (
    each_curve,
    each_gated,
    each_half_dtype,
    inverted_gate,
    native_gate,
    normal,
    output_and_gradients,
)

# Relative to the native error. Measured: in bfloat16 up to 2.0, because of the few numbers next to a turning point (by
# chance more with only a thousand numbers), and in float16 1.
ALLOWED = 2.3
DRAWS = 4000
LARGEST = 6e4
powers = st.floats(-8, 4.75)


def operator(curve: Curve) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, u: torch.ops.hf_invact.gate(a, u, curve.name, "eager")[0]


def assert_as_exact_as_native(
    function: Callable[[Tensor, Tensor], Tensor], curve: Curve, a: Tensor, u: Tensor, dy: Tensor
) -> None:
    """The gradients are finite where the native ones are, with at most `ALLOWED` times their error."""
    native = output_and_gradients(native_gate(curve), a, u, dy=dy)
    exact = output_and_gradients(native_gate(curve), a.double(), u.double(), dy=dy.double())
    results = output_and_gradients(function, a, u, dy=dy)
    assert [result.dtype for result in results] == [gradient.dtype for gradient in native]
    for result, of_native, of_float64 in zip(results[1:], native[1:], exact[1:], strict=True):
        told = of_native.isfinite() & of_float64.isfinite()
        assert result[told].isfinite().all()
        size = of_float64[told].norm()
        error, native_error = ((each.double() - of_float64)[told].norm() for each in (result, of_native))
        # The error of the derivative from a float32 output.
        rounding = 2e-6 if result.dtype == torch.float32 else torch.finfo(result.dtype).eps / 4
        assert error <= ALLOWED * torch.maximum(native_error, rounding * size), f"{error / size} {native_error / size}"


@settings(max_examples=20, deadline=None)
@given(of_gate=powers, of_up=powers, seed=st.integers(0, 99))
@each_half_dtype
@each_curve
def test_half_precision_at_every_scale(
    curve: Curve, dtype: torch.dtype, of_gate: float, of_up: float, seed: int
) -> None:
    a, u = (
        (10**power * normal(DRAWS, dtype=torch.float64, seed=seed + index)).clamp(-LARGEST, LARGEST).to(dtype)
        for index, power in enumerate((of_gate, of_up))
    )
    assert_as_exact_as_native(inverted_gate(curve), curve, a, u, normal(DRAWS, dtype=dtype, seed=seed + 2))


@each_half_dtype
@pytest.mark.parametrize(("name", "limit"), [("relu6", 6.0), ("clipped_gelu", 10.0), ("hardswish", 3.0)])
def test_one_step_below_a_limit_the_slope_is_that_below(name: str, limit: float, dtype: torch.dtype) -> None:
    below = torch.nextafter(torch.tensor(limit, dtype=dtype), torch.tensor(0.0, dtype=dtype))
    u, dy = normal(1000, dtype=dtype), normal(1000, dtype=dtype, seed=1)
    assert_as_exact_as_native(inverted_gate(CURVES[name]), CURVES[name], below.expand(1000), u, dy)


@pytest.mark.parametrize("of_up", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("of_gate", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [1000, TABLE_FROM + 9], ids=["small", "large"])
@pytest.mark.parametrize("name", ["gelu", "softplus", "relu6"])
def test_every_pair_of_dtypes(name: str, size: int, of_gate: torch.dtype, of_up: torch.dtype) -> None:
    a, u = normal(size, dtype=of_gate), (1e-4 * normal(size, dtype=torch.float64, seed=1)).to(of_up)
    u[:5] = 0
    dy = normal(size, dtype=torch.promote_types(of_gate, of_up), seed=2)
    assert_as_exact_as_native(operator(CURVES[name]), CURVES[name], a, u, dy)


@each_gated
def test_in_float16_the_product_is_the_native_one_to_the_bit(curve: Curve) -> None:
    a, u = normal(1000, dtype=torch.float16), 1e-4 * normal(1000, dtype=torch.float16, seed=1)
    y, *_ = output_and_gradients(inverted_gate(curve), a, u)
    assert torch.equal(y, native_gate(curve)(a, u))
