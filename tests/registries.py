"""Fixtures for tests of patching: registries that are restored, and a backend that counts its calls."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from hf_invact.curves import catalogue
from hf_invact.ops import backends
from hf_invact.ops.eager import activation as eager
from hf_invact.ops.operators import activation as operators
from hf_invact.sites.activations import blocks as registry
from hf_invact.sites.activations import recognize as activations
from hf_invact.sites.activations import register as registration


@pytest.fixture(autouse=True)
def own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_BLOCKS", dict(registry._BLOCKS))
    monkeypatch.setattr(activations, "_CURVE_OF_CLASS", dict(activations._CURVE_OF_CLASS))
    monkeypatch.setattr(activations, "_CURVE_OF_FUNCTION", dict(activations._CURVE_OF_FUNCTION))
    curves = dict(catalogue._CURVES)
    monkeypatch.setattr(catalogue, "_CURVES", curves)
    for module in (registration, sys.modules["hf_invact.curves"]):
        monkeypatch.setattr(module, "CURVES", MappingProxyType(curves))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Calls of the inverted activation's and gate's forward and backward by the backend "counting", which exists
    during the test. The probes of `patch_model` call it as well."""
    counted: Counter[str] = Counter()
    implementation = operators.implementation

    def counted_as(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            counted[name] += 1
            return function(*args)

        return call

    counting = SimpleNamespace(
        forward=counted_as("forward", eager.forward),
        backward=counted_as("backward", eager.backward),
        gate_forward=counted_as("forward", eager.gate_forward),
        gate_backward=counted_as("backward", eager.gate_backward),
        exact_backward=eager.exact_backward,
        exact_gate_backward=eager.exact_gate_backward,
    )
    monkeypatch.setattr(backends, "BACKENDS", (*backends.BACKENDS, "counting"))
    monkeypatch.setattr(
        operators, "implementation", lambda name: counting if name == "counting" else implementation(name)
    )
    return counted
