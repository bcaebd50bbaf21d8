"""The functions against those of `torch.nn.functional`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_invact import functional
from hf_invact.curves import CURVES, Curve
from hf_invact.ops import Saving
from tests.helpers import (
    DTYPES,
    Case,
    all_numbers,
    dtype_name,
    each_case,
    each_half_dtype,
    each_saving,
    native_gate,
    normal,
    output_and_gradient,
    output_and_gradients,
    record_saved,
)


def quick_gelu(x: Tensor) -> Tensor:
    """Computed in at least float32, and rounded once."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.sigmoid(1.702 * wide)).to(x.dtype)


# By the curve's name: our function and the native one.
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "gelu": (functional.gelu, F.gelu),
    "gelu_tanh": (lambda x: functional.gelu(x, approximate="tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "silu": (functional.silu, F.silu),
    "quick_gelu": (functional.quick_gelu, quick_gelu),
    "mish": (functional.mish, F.mish),
    "hardswish": (functional.hardswish, F.hardswish),
    "softplus": (functional.softplus, F.softplus),
    "elu": (functional.elu, F.elu),
    "selu": (functional.selu, F.selu),
    "leaky_relu": (functional.leaky_relu, F.leaky_relu),
    "relu6": (functional.relu6, F.relu6),
    "relu2": (functional.relu2, lambda x: F.relu(x).square()),
    "laplace": (functional.laplace, lambda x: CURVES["laplace"].forward(x)),  # a formula, checked by its own tests
    "sqrtsoftplus": (functional.sqrtsoftplus, lambda x: CURVES["sqrtsoftplus"].forward(x)),
}
# Functions with parameters, called by position and by keyword.
WITH_PARAMETERS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "softplus": (lambda x: functional.softplus(x, 2.0, threshold=8.0), lambda x: F.softplus(x, 2.0, 8.0)),
    "elu": (lambda x: functional.elu(x, 0.5), lambda x: F.elu(x, 0.5)),
    "elu-keyword": (lambda x: functional.elu(x, alpha=2.0), lambda x: F.elu(x, 2.0)),
    "leaky_relu": (lambda x: functional.leaky_relu(x, 0.2), lambda x: F.leaky_relu(x, 0.2)),
    "leaky_relu-keyword": (
        lambda x: functional.leaky_relu(x, negative_slope=0.3),
        lambda x: F.leaky_relu(x, negative_slope=0.3),
    ),
}
TURNING = {FUNCTIONS[curve.name][0] for curve in CURVES.values() if curve.name in FUNCTIONS and curve.x_min is not None}
each_function = pytest.mark.parametrize(("ours", "native"), FUNCTIONS.values(), ids=FUNCTIONS)


def test_every_curve_has_a_function() -> None:
    assert set(FUNCTIONS) == set(CURVES) - {"clipped_gelu"}  # exists in Transformers alone, as a module


@pytest.mark.parametrize(("ours", "native"), WITH_PARAMETERS.values(), ids=WITH_PARAMETERS)
def test_parameters_are_those_of_the_native_function(
    ours: Callable[[Tensor], Tensor], native: Callable[[Tensor], Tensor]
) -> None:
    x = normal(1000)
    (y, dx), (native_y, native_dx) = output_and_gradient(ours, x), output_and_gradient(native, x)
    assert torch.equal(y, native_y)
    torch.testing.assert_close(dx, native_dx, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "name"),
    [(functional.softplus, "beta"), (functional.elu, "alpha"), (functional.leaky_relu, "negative_slope")],
    ids=["softplus", "elu", "leaky_relu"],
)
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_parameter_that_hides_the_input_is_refused(function: Callable[..., Tensor], name: str, value: float) -> None:
    with pytest.raises(
        ValueError, match=f"{function.__name__} can be inverted only for a positive {name}, got {value}"
    ):
        function(torch.ones(3), **{name: value})


@each_case
def test_output_is_bit_identical_to_the_native_functions(case: Case) -> None:
    ours, native = FUNCTIONS[case.curve.name]
    x = case.input().requires_grad_()
    y, expected = ours(x), native(x.detach())
    assert y.requires_grad
    assert (y.dtype, y.stride()) == (expected.dtype, expected.stride())
    assert torch.equal(y, expected)


@each_half_dtype
@each_function
def test_output_for_all_numbers_of_half_precision(
    ours: Callable[[Tensor], Tensor], native: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    x = all_numbers(dtype)
    torch.testing.assert_close(ours(x.clone().requires_grad_()), native(x), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@each_function
def test_is_the_function_that_keeps_its_output(
    ours: Callable[[Tensor], Tensor], native: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    x = normal(80, dtype=dtype).requires_grad_()
    with record_saved() as saved:
        y = ours(x)
    turns = saved[1:] != []
    assert [tensor.untyped_storage().nbytes() for tensor in saved] == [80 * x.element_size(), 10][: 1 + turns]
    assert turns == (ours in TURNING)
    (dx,) = torch.autograd.grad(y.sum(), x)
    _, native_dx = output_and_gradient(native, x.double())
    assert (dx.double() - native_dx).abs().max() < 0.03


@each_saving
@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_gate_by_the_name_of_its_activation(curve: Curve, saving: Saving) -> None:
    a, u = normal(100), normal(100, seed=1)
    results = output_and_gradients(lambda a, u: functional.gate(a, u, curve.name, saving=saving), a, u)
    native = output_and_gradients(native_gate(curve), a, u)
    assert torch.equal(results[0], native[0])
    torch.testing.assert_close(results, native, rtol=1e-5, atol=3e-4)
    assert saving == "output" or all(map(torch.equal, results, native))


def test_gate_defaults_to_silu_and_its_output() -> None:
    a, u = normal(80).requires_grad_(), normal(80, seed=1)
    with record_saved() as saved:
        y = functional.gate(a, u)
    assert torch.equal(y, F.silu(a) * u)
    assert [tensor.untyped_storage().nbytes() for tensor in saved] == [320, 320, 10]
    assert saved[0].data_ptr() == y.data_ptr()
    with record_saved() as saved:
        functional.gate(a, u, saving="inputs")
    assert [tensor.data_ptr() for tensor in saved] == [a.data_ptr(), u.data_ptr()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "SwiGLU"}, "unknown activation 'SwiGLU'; known: gelu, gelu_tanh, silu, "),
        ({"saving": "input"}, "saving must be one of 'output', 'inputs', got 'input'"),
        ({"backend": "fast"}, "unknown backend 'fast'; known: auto, eager"),
    ],
    ids=["activation", "saving", "backend"],
)
def test_gate_refuses_an_unknown_choice_with_the_known_ones(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        functional.gate(torch.ones(3), torch.ones(3), **options)


def test_gelu_defaults_to_the_exact_form() -> None:
    x = normal(1000)
    assert torch.equal(functional.gelu(x), functional.gelu(x, approximate="none"))
    assert not torch.equal(functional.gelu(x), functional.gelu(x, approximate="tanh"))


@pytest.mark.parametrize("backend", [None, "auto", "eager"])
@pytest.mark.parametrize("function", [functional.gelu, functional.silu, functional.hardswish, functional.elu])
def test_backend_by_name(function: Callable[..., Tensor], backend: str | None) -> None:
    x = normal(100)
    results = output_and_gradient(lambda leaf: function(leaf, backend=backend), x)
    assert all(map(torch.equal, results, output_and_gradient(function, x)))


@pytest.mark.parametrize("approximate", ["TANH", "erf", None])
def test_an_unknown_approximation_is_refused_with_the_known_ones(approximate: Any) -> None:
    with pytest.raises(ValueError, match=f"'none' or 'tanh', got {approximate!r}"):
        functional.gelu(torch.ones(3), approximate=approximate)


OF_SEVERAL = ("gate", "layer_norm", "rms_norm")  # arguments
ALL = [
    function
    for name, function in inspect.getmembers(functional, inspect.isfunction)
    if function.__module__ == functional.__name__ and not name.startswith("_") and name not in OF_SEVERAL
]


@pytest.mark.parametrize("function", ALL)
def test_an_unknown_backend_is_refused_with_the_known_ones(function: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"unknown backend 'fast'.*auto, eager"):
        function(torch.ones(3), backend="fast")
