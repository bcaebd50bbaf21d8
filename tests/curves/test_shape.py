"""What is found out about a function, and which functions are refused for which reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_invact.curves import CURVES, UnsuitableActivation, fit_curve
from hf_invact.curves.shape import Function, Shape, examine


def autograd(function: Function) -> Function:
    def derivative(x: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(function(leaf).sum(), leaf)[0]

    return derivative


def shape_of(function: Function) -> Shape:
    return examine(function, autograd(function))


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu", "mish"])
def test_finds_the_turning_point_of_the_catalogue(name: str) -> None:
    curve = CURVES[name]
    shape = examine(curve.forward, curve.derivative)
    assert shape.x_min == pytest.approx(curve.inverse.x_min, abs=1e-9)
    assert shape.y_min == pytest.approx(curve.inverse.y_min, abs=1e-15)


def test_finds_the_ends() -> None:
    shape = shape_of(F.silu)
    slope = autograd(F.silu)(torch.tensor([shape.right_end], dtype=torch.float64)).item()
    assert 15 < shape.right_end < 25
    assert slope == pytest.approx(1, abs=1e-7)
    assert abs(F.silu(torch.tensor(shape.left_end, dtype=torch.float64)).item()) < 1e-12


@pytest.mark.parametrize(
    ("function", "y_min"),
    [(F.softplus, 0.0), (F.elu, -1.0), (torch.tanh, -1.0)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_function_that_only_rises_has_no_turning_point(function: Callable[[Tensor], Tensor], y_min: float) -> None:
    shape = shape_of(function)
    assert shape.x_min is None
    assert shape.y_min == pytest.approx(y_min, abs=1e-12)


def doubled_in_place(x: Tensor) -> Tensor:
    return x.mul_(2)


REFUSED: dict[str, tuple[Function, str]] = {
    "sine": (torch.sin, r"it has \d+ turning points, near x = .*: one bit tells two sides"),
    "two_turning_points": (lambda x: F.silu(x) ** 2, r"it has 2 turning points, near x = -1\.2\d+, -0\.00"),
    "maximum": (lambda x: -F.silu(x), r"it turns at a maximum, near x = -1\.28"),
    "falls": (lambda x: F.softplus(-x), "it falls"),
    "constant": (lambda x: x * 0, "it is constant"),
    "jump": (F.hardshrink, r"it jumps at x = -0\.5, from -0\.5 to 0"),
    "kink": (lambda x: F.leaky_relu(x - 1) * 2, r"its slope jumps at x = 1, from 0\.02 to 2"),
    "parabola": (torch.square, "its slope has not settled at x = 10000"),
    "no_limit": (lambda x: x + F.softplus(x), "it has no limit on the left"),
    "shifted": (lambda x: F.silu(x) - 1, r"does not rise to 0 from below: y is -1\.278 there and -1 at"),
    "undefined": (torch.log, "value or slope at x = -32 is not finite"),
    "softmax": (lambda x: torch.softmax(x, -1), "not element-wise, or random"),
    "dropout": (F.dropout, "not element-wise, or random"),
    "sum": (lambda x: x.sum(), r"not a tensor with its input's shape and dtype: \(\), torch.float64"),
    "float32": (lambda x: x.float(), r"torch.float32"),
    "no_tensor": (lambda x: x.tolist(), "not a tensor with its input's shape and dtype: list"),
    "in_place": (doubled_in_place, "it writes to its input"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_says_why_a_function_cannot_be_inverted(name: str) -> None:
    function, why = REFUSED[name]
    with pytest.raises(UnsuitableActivation, match=why):
        examine(function, lambda x: x) if name in ("in_place", "no_tensor") else shape_of(function)


def test_a_derivative_of_another_function_is_refused() -> None:
    with pytest.raises(UnsuitableActivation, match=r"not that of the function: at x = .* the function's slope is"):
        examine(F.silu, lambda x: autograd(F.silu)(x) + 0.01 * torch.exp(-(x**2)))


def test_a_derivative_that_overflows_far_away_is_accepted() -> None:
    def telu(x: Tensor) -> Tensor:
        return x * torch.tanh(torch.exp(x))

    assert not autograd(telu)(torch.tensor([800.0], dtype=torch.float64)).isfinite()
    assert shape_of(telu).x_min == pytest.approx(-1.07886, abs=1e-5)


def test_a_kink_of_the_second_derivative_is_refused_by_the_error_of_the_fit() -> None:
    with pytest.raises(UnsuitableActivation, match=r"best fit of its derivative is off by 0\.00\d+, more than 1e-05"):
        fit_curve("softsign", F.softsign, None, 1e-5)
