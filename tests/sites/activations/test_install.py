"""The module that replaces an activation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_invact.curves import SILU
from hf_invact.sites.activations import install
from hf_invact.sites.activations.patched import PatchedActivation
from hf_invact.sites.activations.plans import GATE_OUTPUT, OUTPUT
from hf_invact.sites.kind import original_of
from tests.helpers import normal


def block(activation: Any) -> Any:
    module: Any = nn.Module()
    module.before, module.act, module.after = nn.Linear(2, 2), activation, nn.Linear(2, 2)
    return module


ACTIVATIONS: dict[str, Callable[[], Any]] = {"module": nn.SiLU, "function": lambda: F.silu}
each_activation = pytest.mark.parametrize("make", ACTIVATIONS.values(), ids=ACTIVATIONS)


@each_activation
def test_install_and_restore(make: Callable[[], Any]) -> None:
    original = make()
    module = block(original)
    children, attributes = list(module._modules), list(vars(module))
    install.install(module, "act", SILU, "eager", OUTPUT)
    assert isinstance(module.act, PatchedActivation)
    assert (module.act.curve, module.act.backend, module.act.plan) == (SILU, "eager", OUTPUT)
    assert install.installed_plan(module, "act") is OUTPUT
    assert original_of(module.act) is original
    assert list(install.patched(module)) == [("", module, "act")]
    install.restore(module, "act")
    assert module.act is original
    assert list(install.patched(module)) == []
    assert install.installed_plan(module, "act") is None
    assert (list(module._modules), list(vars(module))) == (children, attributes)


@each_activation
def test_install_over_a_patched_activation_keeps_the_first_original(make: Callable[[], Any]) -> None:
    original = make()
    module = block(original)
    install.install(module, "act", SILU, "auto", OUTPUT)
    install.install(module, "act", SILU, "eager", GATE_OUTPUT)
    assert (module.act.backend, module.act.plan) == ("eager", GATE_OUTPUT)
    assert module.act.original is original


def test_what_other_code_notes_on_an_activation_stays_when_it_is_patched_again_and_restored() -> None:
    """As ZeRO-3 does, whose hooks count on the module on which they were registered."""
    module = block(nn.SiLU())
    module.act.noted_before = 1
    install.install(module, "act", SILU, "auto", OUTPUT)
    patched = module.act
    patched.noted = 2
    install.install(module, "act", SILU, "eager", GATE_OUTPUT)
    assert module.act is patched
    patched.noted = 3
    install.restore(module, "act")
    assert (module.act.noted_before, module.act.noted) == (1, 3)
    assert not {"curve", "backend", "plan", "original"} & {*vars(module.act)}


def test_restore_leaves_what_is_not_patched() -> None:
    module = block(original := nn.ReLU())
    install.restore(module, "act")
    assert module.act is original
    assert original_of(original) is original


@each_activation
def test_the_original_is_no_submodule(make: Callable[[], Any]) -> None:
    patched = PatchedActivation(make(), SILU, "auto")
    assert list(patched.children()) == []
    assert patched.state_dict() == {}


@pytest.mark.parametrize("training", [True, False])
def test_mode_of_the_original_is_taken_over_and_given_back(training: bool) -> None:
    original = nn.SiLU().train(training)
    module = block(original)
    install.install(module, "act", SILU, "auto", OUTPUT)
    assert module.act.training is training
    module.train(not training)
    install.restore(module, "act")
    assert original.training is not training


@pytest.mark.parametrize("needs_gradient", [True, False])
def test_the_original_computes_where_no_gradient_is_needed(needs_gradient: bool) -> None:
    asked: list[Tensor] = []

    def original(x: Tensor) -> Tensor:
        asked.append(x)
        return F.silu(x)

    patched = PatchedActivation(original, SILU, "auto")
    x = normal(8).requires_grad_(needs_gradient)
    y = patched(x)
    assert torch.equal(y, F.silu(x))
    assert y.requires_grad is needs_gradient
    assert len(asked) == (not needs_gradient)
    with torch.no_grad():
        patched(x)
    assert len(asked) == 1 + (not needs_gradient)


def test_prints_what_it_does_and_what_it_replaces() -> None:
    assert repr(PatchedActivation(nn.SiLU(), SILU, "eager")) == (
        "PatchedActivation(curve='silu', backend='eager', plan='output', original=SiLU())"
    )


def test_a_copy_keeps_a_copy_of_the_original() -> None:
    patched = PatchedActivation(nn.SiLU(), SILU, "eager")
    twin = copy.deepcopy(patched)
    assert type(twin.original) is nn.SiLU
    assert twin.original is not patched.original
    assert (twin.curve.name, twin.backend) == ("silu", "eager")


@each_activation
def test_what_is_there_is_put_back_after_a_trial(make: Callable[[], Any]) -> None:
    original = make()
    module = block(original)
    install.install(module, "act", SILU, "eager", OUTPUT)
    installed = module.act
    with install.suspended(module, "act"):
        install.install(module, "act", SILU, "eager", GATE_OUTPUT, strict=True)
        assert (module.act.plan, module.act.is_strict, module.act.original) == (GATE_OUTPUT, True, original)
    with install.suspended(module, "act"):
        assert module.act is original
    with pytest.raises(RuntimeError, match="inside"), install.suspended(module, "act"):
        raise RuntimeError("inside")
    assert module.act is installed
