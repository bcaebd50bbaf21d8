"""The modules: the functions, without parameters or state."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hf_invact import functional, nn
from hf_invact.curves import CURVES
from tests.helpers import normal, output_and_gradient, record_saved

# A module, the function it applies, and how it prints.
MODULES: dict[str, tuple[nn.InvertedActivation, Callable[[Tensor], Tensor], str]] = {
    "gelu": (nn.GELU(), functional.gelu, "GELU(curve='gelu', backend='auto')"),
    "gelu_tanh": (
        nn.GELU("tanh", backend="eager"),
        lambda x: functional.gelu(x, "tanh"),
        "GELU(curve='gelu_tanh', backend='eager')",
    ),
    "silu": (nn.SiLU(backend="eager"), functional.silu, "SiLU(curve='silu', backend='eager')"),
    "quick_gelu": (nn.QuickGELU(), functional.quick_gelu, "QuickGELU(curve='quick_gelu', backend='auto')"),
    "mish": (nn.Mish(), functional.mish, "Mish(curve='mish', backend='auto')"),
    "hardswish": (nn.Hardswish(backend="eager"), functional.hardswish, "Hardswish(curve='hardswish', backend='eager')"),
    "softplus": (nn.Softplus(), functional.softplus, "Softplus(curve='softplus', backend='auto')"),
    "softplus(2, 8)": (
        nn.Softplus(2.0, threshold=8.0),
        lambda x: functional.softplus(x, 2.0, 8.0),
        "Softplus(curve='softplus', backend='auto')",
    ),
    "elu(0.5)": (nn.ELU(0.5), lambda x: functional.elu(x, 0.5), "ELU(curve='elu', backend='auto')"),
    "selu": (nn.SELU(), functional.selu, "SELU(curve='selu', backend='auto')"),
    "leaky_relu(0.2)": (
        nn.LeakyReLU(negative_slope=0.2),
        lambda x: functional.leaky_relu(x, 0.2),
        "LeakyReLU(curve='leaky_relu', backend='auto')",
    ),
    "relu6": (nn.ReLU6(), functional.relu6, "ReLU6(curve='relu6', backend='auto')"),
    "relu2": (nn.ReLUSquared(), functional.relu2, "ReLUSquared(curve='relu2', backend='auto')"),
    "laplace": (nn.Laplace(), functional.laplace, "Laplace(curve='laplace', backend='auto')"),
    "sqrtsoftplus": (nn.SqrtSoftplus(), functional.sqrtsoftplus, "SqrtSoftplus(curve='sqrtsoftplus', backend='auto')"),
}
each_module = pytest.mark.parametrize(("module", "function", "text"), MODULES.values(), ids=MODULES)


@each_module
def test_applies_the_function(module: nn.InvertedActivation, function: Callable[[Tensor], Tensor], text: str) -> None:
    x = normal(64, 3)
    with record_saved() as saved:
        results = output_and_gradient(module, x)
    assert [tensor.untyped_storage().nbytes() for tensor in saved] == [
        x.numel() * 4,
        *([] if module.curve.x_min is None else [x.numel() // 8]),
    ]
    assert all(map(torch.equal, results, output_and_gradient(function, x)))


@each_module
def test_has_no_state(module: nn.InvertedActivation, function: Callable[[Tensor], Tensor], text: str) -> None:
    assert list(module.parameters()) == []
    assert list(module.buffers()) == []
    assert module.state_dict() == {}


@each_module
def test_prints_its_curve_and_backend(
    module: nn.InvertedActivation, function: Callable[[Tensor], Tensor], text: str
) -> None:
    assert repr(module) == text


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
@each_module
def test_copies_apply_the_same_function(
    module: nn.InvertedActivation,
    function: Callable[[Tensor], Tensor],
    text: str,
    duplicate: Callable[[nn.InvertedActivation], nn.InvertedActivation],
) -> None:
    twin = duplicate(module)
    assert repr(twin) == text
    assert all(map(torch.equal, output_and_gradient(twin, normal(99)), output_and_gradient(function, normal(99))))


@pytest.mark.parametrize("module", sorted({type(module) for module, _, _ in MODULES.values()}, key=str))
def test_the_backend_is_the_one_that_was_chosen(module: Callable[..., nn.InvertedActivation]) -> None:
    with pytest.raises(ValueError, match=r"unknown backend 'fast'.*auto, eager"):
        module(backend="fast")
    chosen = module(backend="eager")
    assert chosen.backend == "eager"
    chosen.backend = "fast"
    with pytest.raises(ValueError, match=r"unknown backend 'fast'.*auto, eager"):
        chosen(normal(3))


def test_an_unknown_approximation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'none' or 'tanh', got 'erf'"):
        nn.GELU(approximate="erf")


def test_every_curve_with_a_function_has_a_module() -> None:
    curves = {module.curve.name for module, _, _ in MODULES.values()}
    assert curves == set(CURVES) - {"clipped_gelu"}


@pytest.mark.parametrize(
    ("module", "name"),
    [(nn.Softplus, "beta"), (nn.ELU, "alpha"), (nn.LeakyReLU, "negative_slope")],
    ids=["Softplus", "ELU", "LeakyReLU"],
)
def test_a_parameter_that_hides_the_input_is_refused_at_once(module: Callable[..., torch.nn.Module], name: str) -> None:
    with pytest.raises(ValueError, match=f"can be inverted only for a positive {name}, got -0.5"):
        module(**{name: -0.5})
