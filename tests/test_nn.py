"""The modules: the functions, without parameters or state."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hf_invact import functional, nn
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
}
each_module = pytest.mark.parametrize(("module", "function", "text"), MODULES.values(), ids=MODULES)


@each_module
def test_applies_the_function(module: nn.InvertedActivation, function: Callable[[Tensor], Tensor], text: str) -> None:
    x = normal(64, 3)
    with record_saved() as saved:
        results = output_and_gradient(module, x)
    assert [tensor.untyped_storage().nbytes() for tensor in saved] == [x.numel() * 4, x.numel() // 8]
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


@pytest.mark.parametrize("module", [nn.GELU, nn.SiLU, nn.QuickGELU])
def test_an_unknown_backend_is_refused_with_the_known_ones(module: Callable[..., torch.nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"unknown backend 'fast'.*auto, eager"):
        module(backend="fast")


def test_an_unknown_approximation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'none' or 'tanh', got 'erf'"):
        nn.GELU(approximate="erf")
