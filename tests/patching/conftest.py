"""What the tests of patching share: registries that forget, and a backend that counts its calls."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from torch import Tensor

from hf_invact.curves import catalogue
from hf_invact.ops import backends
from hf_invact.patching import activations, registration, registry


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
    """Calls of the operation's forward and backward by the backend "counting", which exists during the test."""
    counted: Counter[str] = Counter()
    eager = backends.BACKENDS["eager"]

    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        counted["forward"] += 1
        return eager.forward(*args)

    def backward(*args: Any) -> Tensor:
        counted["backward"] += 1
        return eager.backward(*args)

    counting = replace(eager, name="counting", forward=forward, backward=backward)
    monkeypatch.setattr(backends, "BACKENDS", {**backends.BACKENDS, "counting": counting})
    return counted
