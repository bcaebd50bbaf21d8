"""Checkpoints as few layers of a model as are asked for, each by Transformers' own switch, and undoes it exactly.

The first layers are checkpointed. They are the last to be recomputed in the backward pass, when what all later layers
have kept is freed, so that what a layer keeps while it is recomputed comes on top of the least.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..sites.errors import PatchingError

_SWITCH, _FUNCTION = "gradient_checkpointing", "_gradient_checkpointing_func"
_CHANGE = "_hf_invact_checkpointing"  # a layer's switch before and after

NON_REENTRANT: Callable[..., Any] = partial(checkpoint, use_reentrant=False)


def checkpointable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """By qualified name, the layers that can be checkpointed one by one, in the order of the model."""
    layers: dict[str, nn.Module] = {}
    for name, module in _switched(model):
        if not any(name.startswith(f"{outer}.") for outer in layers):
            layers[name] = module
    return layers


def first_layers(model: nn.Module, count: int | None) -> tuple[str, ...]:
    """The names of as many layers.

    Raises:
        PatchingError: the model has fewer.
    """
    layers = [*checkpointable_layers(model)]
    if count and count > len(layers):
        found = f"{len(layers)} layers" if layers else "no layers"
        raise PatchingError(
            f"checkpoint_layers={count}, but {type(model).__name__} has {found} that Transformers can checkpoint one "
            "by one (its GradientCheckpointingLayer)"
        )
    return tuple(layers[: count or 0])


def set_checkpoints(model: nn.Module, names: Iterable[str], function: Callable[..., Any] | None = None) -> None:
    """Have these layers checkpointed, and no other, until `restore_checkpoints`.

    Args:
        names: of layers, see `first_layers`.
        function: calls a layer's forward function with its arguments, checkpointed. Default: what the model has
            already, if that is not reentrant; else PyTorch's.
    """
    restore_checkpoints(model)
    chosen = {model.get_submodule(name) for name in names}
    layers = {layer for _, layer in _switched(model)}
    for module in (*layers, *(_stacks(model, layers) if chosen else ())):
        before = _switch_of(module)
        is_on = module in chosen or module not in layers
        if is_on:
            vars(module)[_FUNCTION] = function or _present_function(module) or NON_REENTRANT
        vars(module)[_SWITCH] = is_on
        vars(module)[_CHANGE] = before, _switch_of(module)


def restore_checkpoints(model: nn.Module) -> None:
    """Undo `set_checkpoints`, but in layers whose checkpointing was switched since: a Trainer does when it begins."""
    for module in model.modules():
        before, after = vars(module).pop(_CHANGE, (None, None))
        if before is not None and _switch_of(module) == after:
            vars(module).update(before)
            for name in after.keys() - before.keys():
                del vars(module)[name]


def _switch_of(layer: nn.Module) -> dict[str, Any]:
    return {name: vars(layer)[name] for name in (_SWITCH, _FUNCTION) if name in vars(layer)}


def _present_function(layer: nn.Module) -> Callable[..., Any] | None:
    """As `gradient_checkpointing_enable` has set it, with the user's options, if they are those of no reentrant one."""
    present = vars(layer).get(_FUNCTION)
    is_kept = isinstance(present, partial) and present.keywords.get("use_reentrant") is False
    return present if is_kept else None


def _stacks(model: nn.Module, layers: Collection[nn.Module]) -> Iterator[nn.Module]:
    """The models around layers, which use no cache where their own switch is on (in older Transformers)."""
    for module in model.modules():
        if hasattr(module, _SWITCH) and module not in layers and any(each in layers for each in module.modules()):
            yield module


def _switched(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that have Transformers' switch, also those within another layer, where their model supports it."""
    from transformers import PreTrainedModel
    from transformers.modeling_layers import GradientCheckpointingLayer  # heavy, so not at import

    refused: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and not module.supports_gradient_checkpointing:
            refused.append(f"{name}." if name else "")
        elif isinstance(module, GradientCheckpointingLayer) and not name.startswith(tuple(refused)):
            yield name, module
