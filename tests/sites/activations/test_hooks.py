"""Hooks of others on an activation: they run, with the same arguments and effect as in the unpatched model."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback
from transformers.activations import XIELUActivation

from hf_invact import InvActConfig, InvertedActivationsCallback, patch_model, unpatch_model
from hf_invact.memory import SavedActivations
from hf_invact.sites.hooks import hook_of_others
from tests.learned import two_blocks
from tests.models import ACTIVATIONS, batch, tiny_model
from tests.trainer.helpers import arguments, losses, make_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.* is not inverted while a hook:UserWarning")


class Doubled(torch.autograd.Function):
    """The identity, with twice the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0]


class Seen:
    """What hooks record: the modules that they are called with, and terms of the loss."""

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []
        self.values: list[Tensor] = []
        self.penalties: list[Tensor] = []

    def look(self, module: nn.Module, value: Any) -> None:
        self.modules.append(module)
        assert torch.is_tensor(value)
        self.values.append(value.detach().clone())


Register = Callable[[nn.Module, Seen], RemovableHandle]


def penalty(module: nn.Module, args: Any, out: Tensor, *, seen: Seen) -> None:
    seen.look(module, out)
    seen.penalties.append(out.abs().mean())


HOOKS: dict[str, Register] = {
    "looks": lambda act, seen: act.register_forward_hook(lambda module, args, out: seen.look(module, out)),
    "penalises": lambda act, seen: act.register_forward_hook(functools.partial(penalty, seen=seen)),
    "edits": lambda act, seen: act.register_forward_hook(lambda module, args, out: out.clamp(max=0.5)),
    "edits in place": lambda act, seen: act.register_forward_hook(lambda module, args, out: out.mul_(0.5)),
    "edits the gradient": lambda act, seen: act.register_forward_hook(lambda module, args, out: Doubled.apply(out)),
    "keyword arguments": lambda act, seen: act.register_forward_hook(
        lambda module, args, kwargs, out: seen.look(module, out), with_kwargs=True, always_call=True, prepend=True
    ),
    "before": lambda act, seen: act.register_forward_pre_hook(lambda module, args: (args[0] - 0.1,)),
    "backward": lambda act, seen: act.register_full_backward_hook(lambda module, dx, dy: (3 * dx[0],)),
    "before backward": lambda act, seen: act.register_full_backward_pre_hook(
        lambda module, dy: seen.look(module, dy[0])
    ),
    "old backward": lambda act, seen: act.register_backward_hook(lambda module, dx, dy: seen.look(module, dy[0])),
}
each_hook = pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS)
Run = tuple[Tensor, dict[str, Tensor | None], list[Tensor]]


def activations(model: Any) -> list[nn.Module]:
    """The activations of the layers, as the model holds them now."""
    layers = model.model.layers if hasattr(model, "model") else [layer.mlp for layer in model.transformer.h]
    return [layer.mlp.act_fn if hasattr(layer, "mlp") else layer.act for layer in layers]


def run(model: Any, seen: Seen) -> Run:
    """The loss and the gradients of a step, and what the hooks saw in it."""
    for notes in vars(seen).values():
        notes.clear()
    torch.manual_seed(0)
    model.zero_grad()
    loss = model(**batch(model)).loss + sum(seen.penalties)
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}, seen.values[:]


def assert_same(got: Run, expected: Run) -> None:
    for one, other in ((got[0], expected[0]), (got[1], expected[1])):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert len(got[2]) == len(expected[2])
    assert all(map(torch.equal, got[2], expected[2]))


@pytest.mark.parametrize("when", ["before patching", "after patching"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@each_hook
def test_a_hook_does_what_it_does_in_the_unpatched_model(register: Register, name: str, when: str) -> None:
    model, seen = tiny_model(name), Seen()
    originals = activations(model)
    handles = [register(act, seen) for act in originals]
    expected = run(model, seen)
    if when == "after patching":
        for handle in handles:
            handle.remove()
    patch_model(model, ACTIVATIONS)
    assert not seen.values[len(expected[2]) :], "the probe has called it"
    if when == "after patching":
        handles = [register(act, seen) for act in activations(model)]
    assert_same(run(model, seen), expected)
    assert all(any(module is original for original in originals) for module in seen.modules)
    unpatch_model(model)
    assert_same(run(model, seen), expected)
    for handle in handles:
        handle.remove()
    assert [hook_of_others(act) for act in originals] == [None, None]


@pytest.mark.parametrize("make", [lambda: two_blocks("prelu"), lambda: two_blocks("xielu")], ids=["prelu", "xielu"])
def test_a_hook_on_an_activation_with_parameters_may_edit_its_result(make: Callable[[], nn.Module]) -> None:
    def gradients(model: nn.Module) -> list[Tensor]:
        loss = model(torch.ones(2, 5, 16)).square().sum()
        return list(torch.autograd.grad(loss, list(model.parameters())))

    plain, model = make(), make()
    model.load_state_dict(plain.state_dict())
    patch_model(model, ACTIVATIONS)
    for each in (plain, model):
        for module in each.modules():
            if isinstance(module, (nn.PReLU, XIELUActivation)):
                module.register_forward_hook(lambda module, args, out: out.mul_(0.5))
    assert all(map(torch.equal, gradients(model), gradients(plain)))


def test_a_site_with_a_hook_is_left_alone_with_that_reason() -> None:
    model = tiny_model("llama")
    model.model.layers[0].mlp.act_fn.register_forward_hook(lambda module, args, out: None)
    first, second = patch_model(model, ACTIVATIONS).sites
    assert first.plan is None
    assert first.reason.startswith(
        "left alone: other code has a hook on it (tests.sites.activations.test_hooks.test_a_site_with"
    )
    assert second.plan == "gate-output"


def test_a_hook_that_is_added_later_is_reported_once_and_its_removal_saves_again() -> None:
    model = tiny_model("llama")
    with SavedActivations(model) as plain:
        model(**batch(model))
    patch_model(model, ACTIVATIONS)
    with SavedActivations(model) as patched:
        model(**batch(model))
    handles = [act.register_forward_hook(lambda module, args, out: None) for act in activations(model)]
    with warnings.catch_warnings(record=True) as caught, SavedActivations(model) as hooked:
        warnings.simplefilter("default")
        with torch.no_grad():
            model(**batch(model))
        assert caught == []
        model(**batch(model))
    (warning,) = caught
    assert str(warning.message).startswith(
        "SiLUActivation is not inverted while other code has a hook on it (tests.sites"
    )
    assert hooked.total_bytes == plain.total_bytes > patched.total_bytes
    for handle in handles:
        handle.remove()
    with SavedActivations(model) as again:
        model(**batch(model))
    assert again.total_bytes == patched.total_bytes


def test_hooks_on_all_modules() -> None:
    model, seen = tiny_model("llama"), Seen()
    patch_model(model, ACTIVATIONS)
    handle = register_module_forward_hook(
        lambda module, args, out: seen.look(module, out) if "SiLU" in type(module).__name__ else None
    )
    try:
        patched = run(model, seen)
        unpatch_model(model)
        assert_same(patched, run(model, seen))
        assert len(patched[2]) == 2
    finally:
        handle.remove()


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


def halve(module: nn.Module, args: Any, out: Tensor) -> Tensor:
    return out / 2


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_hooks_of_a_copy_are_its_own(copied: Callable[[Any], Any]) -> None:
    model, nothing = tiny_model("llama"), Seen()
    expected = run(model, nothing)
    patch_model(model, ACTIVATIONS)
    patched = run(model, nothing)
    twin = copied(model)
    for act in activations(twin):
        act.register_forward_hook(halve)
    assert run(twin, nothing)[0] != expected[0]
    assert_same(run(model, nothing), patched)
    unpatch_model(twin)
    assert [len(act._forward_hooks) for act in activations(twin)] == [1, 1]


class Penalty(TrainerCallback):
    """Registers hooks after the Trainer is created and before it trains."""

    def __init__(self) -> None:
        self.calls = 0

    def count(self, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        self.calls += 1
        return out.clamp(max=0.3)


def test_a_hook_registered_between_the_trainer_and_its_training(tmp_path: Path) -> None:
    found = []
    for flag in (False, True):
        model, hook = tiny_model("llama"), Penalty()
        args = arguments(tmp_path, use_inverted_activations=flag)
        trainer = make_trainer(
            model, args, InvertedActivationsCallback(InvActConfig(sites=("activation",), backend="eager"))
        )
        for act in activations(model):
            act.register_forward_hook(hook.count)
        trainer.train()
        found.append((losses(trainer), hook.calls))
    assert found[0] == found[1]
    assert found[0][1] == 6


def test_hooks_of_others_by_name() -> None:
    class Callable_:
        def __call__(self, module: nn.Module, args: Any, out: Tensor) -> None:
            pass

    module = nn.SiLU()
    assert hook_of_others(module) is None

    def fetch(module: nn.Module, args: Any) -> None:
        pass

    fetch.__module__ = "deepspeed.runtime.zero.parameter_offload"
    module.register_forward_pre_hook(fetch)
    assert hook_of_others(module) is None
    module.register_forward_pre_hook(functools.partial(Callable_(), out=torch.zeros(1)))
    assert str(hook_of_others(module)).endswith("test_hooks_of_others_by_name.<locals>.Callable_")
