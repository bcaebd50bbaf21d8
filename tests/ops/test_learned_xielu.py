"""xIELU from its output: the result, and the gradients of the input and of both parameters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.activations import XIELUActivation

from tests.helpers import (
    ARRANGEMENTS,
    LAYOUTS,
    all_numbers,
    each_dtype,
    each_half_dtype,
    normal,
)
from tests.learned import ALPHAS, Pass, each_alphas, exact_passes, inverted, passes, xielu

each_arrangement = pytest.mark.parametrize(("shape", "layout"), ARRANGEMENTS, ids=str)


def away(module: XIELUActivation, x: Tensor, distance: float = 0.05) -> Tensor:
    """Which inputs are neither next to the turning point nor where Transformers uses the slope of another branch."""
    alpha_n = (module.beta + F.softplus(module.alpha_n)).double()
    x_min = torch.log1p(-module.beta.double() / alpha_n)
    return ((x.double() - x_min).abs() > distance) & (x.abs() > 1e-5)


@each_dtype
@each_arrangement
def test_xielu_computes_the_native_result(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    module = xielu(ALPHAS[0], dtype)
    x = torch.atleast_1d(LAYOUTS[layout](shape, dtype, 0))
    got = passes(module, inverted(module), x, normal(*x.shape, dtype=dtype, seed=1))
    assert torch.equal(got.y, module(x))
    assert (got.dx.shape, got.dx.dtype) == (x.shape, dtype)
    exact = exact_passes(module, x, normal(*x.shape, dtype=dtype, seed=1))
    bound = {torch.float64: 1e-6, torch.float32: 3e-3, torch.bfloat16: 0.2, torch.float16: 0.05}[dtype]
    assert (got.dx.double() - exact.dx).abs().amax().item() <= bound if x.numel() else True


@pytest.mark.parametrize(
    ("dtype", "tight", "near", "of_parameters"),
    [(torch.float64, 2e-14, 1e-12, 1e-15), (torch.float32, 1e-5, 5e-4, 3e-8)],
    ids=["float64", "float32"],
)
@each_alphas
def test_xielu_gradients(
    alphas: tuple[float, float], dtype: torch.dtype, tight: float, near: float, of_parameters: float
) -> None:
    module = xielu(alphas, dtype)
    x, dy = 3 * normal(20_000, dtype=dtype), normal(20_000, dtype=dtype, seed=1)
    got, exact = passes(module, inverted(module), x, dy), exact_passes(module, x, dy)
    error = (got.dx.double() - exact.dx).abs() / (1 + exact.dx.abs())
    assert error[away(module, x)].max() < tight
    assert error[away(module, x, 0.0)].max() < near
    for found, expected in zip(got.parameters, exact.parameters, strict=True):
        assert abs(found.item() - expected.item()) <= of_parameters * x.numel()


@each_half_dtype
@each_alphas
def test_xielu_gradients_are_as_exact_as_the_native_ones(alphas: tuple[float, float], dtype: torch.dtype) -> None:
    module = xielu(alphas, dtype)
    x = 2 * normal(50_000, dtype=dtype)
    x = x[away(module, x, 0.0)]
    dy = (1 + normal(x.numel(), dtype=dtype, seed=1)) / 4  # whose sums do not overflow
    exact = exact_passes(module, x, dy)

    def errors(result: Pass) -> tuple[float, ...]:
        return (
            (result.dx.double() - exact.dx).square().mean().sqrt().item(),
            *(
                abs((found.double() - expected).item()) / x.numel()
                for found, expected in zip(result.parameters, exact.parameters, strict=True)
            ),
        )

    eps = torch.finfo(dtype).eps
    # The last one is nearly constant on the left, where its rounded output determines less.
    floors = (eps / 2 if alphas[1] < -10 else eps / 8, eps / 256, eps / 256)
    native, got = passes(module, module, x, dy), passes(module, inverted(module), x, dy)
    for reached, allowed, floor in zip(errors(got), errors(native), floors, strict=True):
        assert reached <= 1.3 * allowed + floor


@settings(max_examples=60, deadline=None)
@given(
    alphas=st.tuples(st.floats(-30, 30), st.floats(-30, 30)),
    x=st.lists(st.floats(-50, 50), min_size=1, max_size=20),
)
def test_xielu_of_any_parameters(alphas: tuple[float, float], x: list[float]) -> None:
    module = xielu(alphas, torch.float64)
    inputs = torch.tensor([number for number in x if number == 0 or abs(number) > 1e-4], dtype=torch.float64)
    dy = torch.ones_like(inputs)
    got, exact = passes(module, inverted(module), inputs, dy), exact_passes(module, inputs, dy)
    assert torch.equal(got.y, exact.y)
    torch.testing.assert_close(got.dx, exact.dx, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.parameters, exact.parameters, rtol=1e-6, atol=1e-4)


@each_dtype
def test_xielu_of_zero_has_the_native_slope(dtype: torch.dtype) -> None:
    """Transformers' formula uses the slope of another branch there, and zeros are common."""
    module = xielu(ALPHAS[0], dtype)
    x = torch.tensor([0.0, -0.0, 1.0] * 7, dtype=dtype)
    native, got = (passes(module, function, x, torch.ones_like(x)) for function in (module, inverted(module)))
    assert native.dx[0] < 0
    torch.testing.assert_close(got.dx, native.dx, rtol=4 * torch.finfo(dtype).eps, atol=0)


@each_half_dtype
@each_alphas
def test_xielu_of_every_number(alphas: tuple[float, float], dtype: torch.dtype) -> None:
    module = xielu(alphas, dtype)
    x = all_numbers(dtype)
    native, got = (passes(module, function, x, torch.ones_like(x)) for function in (module, inverted(module)))
    finite = native.dx.isfinite() & native.y.isfinite()
    assert got.dx[finite].isfinite().all()
    assert got.dx[native.dx.isnan() & ~x.isfinite()].isnan().all()
    assert ((native.dx.isnan()) & ~x.isfinite()).sum() > 100
