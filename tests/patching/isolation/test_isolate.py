"""While a block is probed, nothing but its forward pass runs."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.nn.modules.module import register_module_forward_hook, register_module_full_backward_hook
from torch.nn.utils import prune, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from hf_invact import PatchReport, patch_model
from hf_invact.patching.isolation.undisturbed import undisturbed
from tests.models import tiny_model
from tests.patching.structures import STRUCTURES

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
]


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.act(self.up(x)))
        return y


def figures(report: PatchReport) -> list[tuple[str | None, int | None, int | None, str]]:
    return [(site.plan, site.before, site.after, site.reason) for site in report.sites]


MEASURED = figures(patch_model(nn.Sequential(MLP(), nn.Tanh())))


def test_no_hook_of_a_module_or_a_weight_runs() -> None:
    fired: list[str] = []
    model = nn.Sequential(MLP(), nn.Tanh())

    def note(kind: str) -> Callable[..., None]:
        return lambda *args: fired.append(kind)

    for module in (
        model,
        model[0],
        model[0].up,
        model[0].down,
    ):  # a hook on the activation itself prevents its inversion
        module.register_forward_hook(note("forward"))
        module.register_forward_hook(note("always"), always_call=True)
        module.register_forward_pre_hook(note("pre-forward"))
        module.register_full_backward_hook(note("backward"))
        module.register_full_backward_pre_hook(note("pre-backward"))
    for weight in model.parameters():
        weight.register_hook(note("weight"))
        weight.register_post_accumulate_grad_hook(note("accumulated"))
    report = patch_model(model)
    assert fired == []
    assert figures(report) == MEASURED
    model(torch.randn(2, 8, requires_grad=True)).sum().backward()
    kinds = {"forward", "always", "pre-forward", "backward", "pre-backward", "weight", "accumulated"}
    assert set(fired) == kinds


def test_no_hook_of_all_modules_runs() -> None:
    fired: list[str] = []
    model, x = MLP(), torch.randn(2, 8)
    of_all = [
        register_module_forward_hook(lambda *args: fired.append("forward")),
        register_module_full_backward_hook(lambda *args: fired.append("backward")),
    ]
    try:
        with undisturbed(model, torch.device("cpu")):
            torch.autograd.grad(model(x).sum(), list(model.parameters()))
    finally:
        for handle in of_all:
            handle.remove()
    assert fired == []


@pytest.mark.parametrize(
    "change",
    [weight_norm, spectral_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.5)],
    ids=["weight norm", "spectral norm", "pruned"],
)
def test_hooks_that_set_the_weight_are_part_of_the_forward_pass(change: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(MLP(), nn.Tanh())
    change(model[0].up)
    change(model[0].down)
    hooks = [dict(module._forward_pre_hooks) for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    (site,) = patch_model(model).sites
    assert (site.plan, site.reason) == ("output", "")
    assert [dict(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model(torch.randn(2, 8)).sum().backward()


def test_a_compiled_block_is_not_compiled_for_a_probe() -> None:
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        compiled.append(1)
        return graph.forward

    block = MLP()
    block.compile(backend=backend)
    wrapped = torch.compile(MLP(), backend=backend)
    assert figures(patch_model(nn.ModuleList([block, nn.Sequential(wrapped, nn.Linear(8, 8))]))) == MEASURED * 2
    assert not compiled


@pytest.mark.parametrize("name", [structure.name for structure in STRUCTURES])
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_checkpointing_of_transformers_changes_no_decision(name: str, use_reentrant: bool) -> None:
    (structure,) = (each for each in STRUCTURES if each.name == name)
    expected = figures(patch_model(structure.model()))
    model = structure.model()
    if not model.supports_gradient_checkpointing:
        pytest.skip("it cannot be checkpointed")
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    flags = [vars(module).get("gradient_checkpointing") for module in model.modules()]
    functions = [vars(module).get("_gradient_checkpointing_func") for module in model.modules()]
    assert figures(patch_model(model)) == expected
    assert [vars(module).get("gradient_checkpointing") for module in model.modules()] == flags
    assert [vars(module).get("_gradient_checkpointing_func") for module in model.modules()] == functions


@pytest.mark.parametrize("impl", CheckpointImpl)
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_checkpoint_wrappers_change_no_decision(name: str, impl: CheckpointImpl) -> None:
    expected = figures(patch_model(tiny_model(name)))
    model = tiny_model(name)
    layers = {"llama": "LlamaDecoderLayer", "bert": "BertLayer"}
    apply_activation_checkpointing(
        model,
        checkpoint_wrapper_fn=functools.partial(checkpoint_wrapper, checkpoint_impl=impl),
        check_fn=lambda module: type(module).__name__ == layers[name],
    )
    assert any("_checkpoint_wrapped_module" in key for key, _ in model.named_modules())
    assert figures(patch_model(model)) == expected


class Flagged(MLP):
    """Checkpoints its own forward pass, as many older models do."""

    use_checkpointing = True

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (
            checkpoint(super().forward, x, use_reentrant=False) if self.use_checkpointing else super().forward(x)
        )
        return y


def bound(module: nn.Module) -> nn.Module:
    """As fairscale does."""

    def checkpointed_forward(forward: Callable[..., Tensor], module: Any, *args: Any) -> Tensor:
        result: Tensor = checkpoint(forward, module(), *args, use_reentrant=False)
        return result

    module.forward = functools.partial(checkpointed_forward, type(module).forward, weakref.ref(module))
    return module


def test_flags_named_after_checkpointing_are_turned_off() -> None:
    assert figures(patch_model(nn.Sequential(Flagged(), nn.Tanh()))) == MEASURED


def test_a_layer_whose_forward_is_bound_to_a_checkpointed_one() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.act = nn.Linear(8, 32), nn.GELU()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.act(self.up(x))
            return y

    layer = bound(nn.Sequential(Inner(), nn.Linear(32, 8)))
    forward = layer.forward
    assert figures(patch_model(nn.ModuleList([layer]))) == MEASURED
    assert layer.forward is forward


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_a_block_whose_checkpointing_cannot_be_turned_off_is_reported(use_reentrant: bool) -> None:
    class Always(MLP):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = checkpoint(super().forward, x, use_reentrant=use_reentrant)
            return y

    (site,) = patch_model(nn.Sequential(Always(), nn.Tanh())).sites
    why = "Always runs it without gradients, or checkpoints or offloads in a way that cannot be turned off"
    assert site.reason == f"left alone: not measured ({why})"
