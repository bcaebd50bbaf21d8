"""The exact formulas in every dtype: the native function's output, and its gradient within a rounding or two."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import ACT2FN

from hf_invact.curves import CURVES, Curve, clipped_gelu, elu, leaky_relu, softplus
from hf_invact.ops import invert
from tests.helpers import (
    HALF_DTYPES,
    all_numbers,
    dtype_name,
    each_closed,
    each_half_dtype,
    exact_derivative,
    last_place,
    normal,
    output_and_gradient,
    record_saved,
)

DTYPES = (*HALF_DTYPES, torch.float32)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)

# Units in the last place of the exact derivative. In float32 the native function's own output is off by more than half
# a unit (softplus, expm1, erf). Where the derivative's last place is finer than the output's, this counts double.
ULPS = {torch.bfloat16: 2.0, torch.float16: 2.0, torch.float32: 3.0}


def eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def smallest(dtype: torch.dtype) -> float:
    info = torch.finfo(dtype)
    return info.smallest_normal * info.eps


def inside(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class Lost:
    """Inputs whose rounded output does not determine the last places of the derivative, and the bound there.

    Attributes:
        inputs: the open interval of inputs.
        error: bound on the absolute error there.
        why: what is lost.
    """

    inputs: Callable[[torch.dtype], tuple[float, float]]
    error: Callable[[torch.dtype], float]
    why: str


LOST: dict[str, tuple[Lost, ...]] = {
    "elu": (
        Lost(
            lambda dtype: (-math.inf, -math.log(8)),
            lambda dtype: 0.6 * eps(dtype),
            "y nears -1, and D = y + 1 < 1/8 has finer last places than y",
        ),
    ),
    "selu": (
        Lost(
            lambda dtype: (-math.inf, -1.2574),
            lambda dtype: eps(dtype),
            "y nears -1.758, and D = y + 1.758 < 1/2 has finer last places than y",
        ),
    ),
    "hardswish": (
        Lost(
            lambda dtype: (-2.25, -0.75) if dtype == torch.float32 else (-2.0, -1.0),
            lambda dtype: math.sqrt(eps(dtype) / 8),
            "next to the turning point, where |D| is a root of y's distance from its minimum",
        ),
    ),
    "relu2": (
        Lost(
            lambda dtype: (0.0, math.sqrt(torch.finfo(dtype).smallest_normal / 4)),
            lambda dtype: 1.01 * math.sqrt(2 * smallest(dtype)),
            "y is subnormal or 0, and has lost two binary digits",
        ),
        Lost(lambda dtype: (math.sqrt(torch.finfo(dtype).max), math.inf), lambda dtype: math.inf, "y overflows"),
    ),
    "laplace": (
        Lost(lambda dtype: (0.94, math.inf), lambda dtype: 8 * eps(dtype), "y nears 1, and D < 1 has finer places"),
        Lost(
            lambda dtype: (-math.inf, {torch.bfloat16: -0.6, torch.float16: -0.4, torch.float32: 0.6}[dtype]),
            lambda dtype: 1e-6,
            "1 + erf cancels in float32; in float16 y is subnormal",
        ),
    ),
    "sqrtsoftplus": (Lost(lambda dtype: (-math.inf, -87.3), lambda dtype: 6e-20, "softplus underflows in float32"),),
}


def numbers(dtype: torch.dtype) -> Tensor:
    """All finite numbers of a half-precision dtype; in float32 a dense choice and the numbers next to the kinks."""
    if dtype in HALF_DTYPES:
        x = all_numbers(dtype)
        return x[x.isfinite()]
    sizes = torch.logspace(-37, 38, 20_001)
    kinks = torch.tensor([-3.0, -1.5, 0.0, 3.0, 6.0, 20.0])
    beside = [torch.nextafter(kinks, torch.tensor(way)) for way in (-math.inf, math.inf)]
    return torch.cat([torch.linspace(-30, 30, 400_001), sizes, -sizes, kinks, *beside])


def between(x: Tensor, ends: tuple[float, float]) -> Tensor:
    return (x > ends[0]) & (x < ends[1])


def gradient(curve: Curve, x: Tensor) -> Tensor:
    _, dx = output_and_gradient(lambda leaf: invert(leaf, curve), x)
    return dx


@each_dtype
@each_closed
def test_gradient_is_exact_to_the_last_places(curve: Curve, dtype: torch.dtype) -> None:
    x = numbers(dtype)
    wide, exact = x.double(), exact_derivative(curve, x)
    error = (gradient(curve, x).double() - exact).abs()
    told = torch.ones_like(wide, dtype=torch.bool)
    for lost in LOST.get(curve.name, ()):
        within = between(wide, lost.inputs(dtype))
        told &= ~within
        assert (error[within] <= lost.error(dtype)).all(), f"{lost.why}: off by {error[within].max():.3g}"
    ulps = error / last_place(exact, dtype)
    worst = ulps.masked_fill(~told, 0.0).argmax()
    assert ulps[worst] <= ULPS[dtype], f"{ulps[worst]:.3g} last places at x = {wide[worst]:.9g}"


@each_dtype
@pytest.mark.parametrize("name", LOST)
def test_the_intervals_where_digits_are_lost_are_tight(name: str, dtype: torch.dtype) -> None:
    """Inside, near each end, some derivative exceeds the bar. Otherwise the intervals would exempt too much."""
    x = numbers(dtype).sort().values
    wide, exact = x.double(), exact_derivative(CURVES[name], x)
    ulps = (gradient(CURVES[name], x).double() - exact).abs() / last_place(exact, dtype)
    off = wide[(ulps > min(ULPS.values())) & (wide != 0)]
    for lost in LOST[name]:
        if name == "sqrtsoftplus" and dtype == torch.float16:
            continue  # there the derivative rounds to 0 in float16, as the output does
        for end in lost.inputs(dtype):
            if math.isfinite(end) and end != 0:
                distance = ((off - end).abs() / abs(end)).min()
                assert distance < 0.35, f"{lost.why}: nothing is lost near {end:g}"


def test_relu2_overflows_with_its_output() -> None:
    x = torch.tensor([255.0, 256.0, 65504.0], dtype=torch.float16)
    assert gradient(CURVES["relu2"], x).tolist() == [510.0, math.inf, math.inf]


def in_float32(formula: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: formula(x.to(inside(x.dtype))).to(x.dtype)


def laplace(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.erf((x - 0.707107).div(0.282095 * math.sqrt(2.0))))


# The native function of each output. The last three are formulas in Python: computed in float32, or in any dtype.
NATIVE: dict[str, tuple[Curve, Callable[[Tensor], Tensor]]] = {
    "softplus": (CURVES["softplus"], F.softplus),
    "softplus(2.5, 12)": (softplus(2.5, 12.0), lambda x: F.softplus(x, beta=2.5, threshold=12.0)),
    "elu": (CURVES["elu"], F.elu),
    "elu(0.3)": (elu(0.3), lambda x: F.elu(x, alpha=0.3)),
    "selu": (CURVES["selu"], F.selu),
    "leaky_relu": (CURVES["leaky_relu"], F.leaky_relu),
    "leaky_relu(0.3)": (leaky_relu(0.3), lambda x: F.leaky_relu(x, negative_slope=0.3)),
    "hardswish": (CURVES["hardswish"], F.hardswish),
    "relu6": (CURVES["relu6"], F.relu6),
    "mish": (CURVES["mish"], F.mish),
    "clipped_gelu": (CURVES["clipped_gelu"], ACT2FN["gelu_10"]),
    "relu2": (CURVES["relu2"], ACT2FN["relu2"]),
    "laplace": (CURVES["laplace"], in_float32(laplace)),
    "sqrtsoftplus": (CURVES["sqrtsoftplus"], in_float32(lambda x: F.softplus(x).sqrt())),
}
each_native = pytest.mark.parametrize(("curve", "native"), NATIVE.values(), ids=NATIVE)


@each_dtype
@each_native
def test_output_is_the_native_one_to_the_bit(
    curve: Curve, native: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    x = all_numbers(dtype) if dtype in HALF_DTYPES else numbers(dtype)
    y, _ = output_and_gradient(lambda leaf: invert(leaf, curve), x)
    torch.testing.assert_close(y, native(x), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["laplace", "sqrtsoftplus"])
def test_formulas_in_python_agree_with_those_of_transformers_in_float32(name: str) -> None:
    x = numbers(torch.float32)
    torch.testing.assert_close(CURVES[name].forward(x), ACT2FN[name](x), rtol=0, atol=0)


# Gradients at NaN, inf and -inf. Where the output is NaN (hardswish at -inf too) so is the slope, unless it is one of
# a few constants. (There the native gradients of a kernel's vectorised and scalar code disagree.)
SPECIAL = {
    "softplus": [math.nan, 1.0, 0.0],
    "elu": [math.nan, 1.0, 0.0],
    "selu": [math.nan, 1.0507, 0.0],
    "leaky_relu": [0.01, 1.0, 0.01],
    "hardswish": [math.nan, 1.0, math.nan],
    "relu2": [math.nan, math.inf, 0.0],
    "relu6": [1.0, 0.0, 0.0],
    "laplace": [math.nan, 0.0, 0.0],
    "sqrtsoftplus": [math.nan, 0.0, 0.0],
}
NATIVE_AT_MINUS_INFINITY = {"hardswish": 0.0, "sqrtsoftplus": math.nan}  # where ours differs


@pytest.mark.parametrize("copies", [1, 50], ids=["one", "many"])  # vectorized code, and the remainder after it
@each_closed
def test_gradient_at_nan_and_infinities(curve: Curve, copies: int) -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf]).repeat(copies)
    expected = torch.tensor(SPECIAL[curve.name]).repeat(copies)
    near = {"rtol": 1e-4, "atol": 1e-6, "equal_nan": True}
    torch.testing.assert_close(gradient(curve, x), expected, **near)
    _, native = output_and_gradient(curve.forward, x[~x.isnan()])
    at_infinities = expected[~x.isnan()]
    at_infinities[1::2] = NATIVE_AT_MINUS_INFINITY.get(curve.name, SPECIAL[curve.name][2])
    torch.testing.assert_close(native, at_infinities, **near)


@each_closed
def test_signed_zeros_have_the_native_gradient(curve: Curve) -> None:
    x = torch.tensor([0.0, -0.0])
    _, native = output_and_gradient(curve.forward, x)
    torch.testing.assert_close(gradient(curve, x), native)


@pytest.mark.parametrize(
    "curve",
    [softplus(0.5), softplus(3.0, 6.0), elu(0.25), elu(3.0), leaky_relu(0.5), leaky_relu(2.0)],
    ids=["softplus(0.5)", "softplus(3,6)", "elu(0.25)", "elu(3)", "leaky_relu(0.5)", "leaky_relu(2)"],
)
def test_parameters_reach_the_gradient(curve: Curve) -> None:
    x = 3 * normal(10_000)
    x = x[(x <= 2) | (x > 2.001)]  # softplus(3, 6) steps there, and some outputs occur twice
    error = (gradient(curve, x).double() - exact_derivative(curve, x)).abs().max()
    assert error < 1e-6


@each_closed
def test_keeps_the_output_alone_unless_the_curve_turns(curve: Curve) -> None:
    x = normal(800).requires_grad_()
    with record_saved() as saved:
        y = invert(x, curve)
    assert saved[0].data_ptr() == y.data_ptr()
    assert [tensor.untyped_storage().nbytes() for tensor in saved] == [3200, 100][: 1 + (curve.name == "hardswish")]


@each_half_dtype
def test_clipped_gelu_is_gelu_between_its_limits_and_flat_at_them(dtype: torch.dtype) -> None:
    curve = clipped_gelu(-0.125, 2.0)
    x = all_numbers(dtype)
    x = x[x.isfinite()]
    y, dx = output_and_gradient(lambda leaf: invert(leaf, curve), x)
    assert torch.equal(y, torch.clip(F.gelu(x), -0.125, 2.0))
    clipped = (y <= -0.125) | (y >= 2.0)
    assert clipped.sum() > 1000
    assert (dx[clipped] == 0).all()
    _, unclipped = output_and_gradient(lambda leaf: invert(leaf, CURVES["gelu"]), x)
    assert torch.equal(dx[~clipped], unclipped[~clipped])
