"""Finds the norms of a model: modules that were registered, and those whose results are those of a known form."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator

from torch import nn

from ...norms import Recognized, UnsuitableNorm, recognize
from ..fsdp import is_fsdp1, is_in_fsdp
from ..patched_class import settings_of
from ..replaced import replaced_by_copies
from .patched import PatchedNorm
from .register import registered

_NAMES = re.compile("(layer|rms)_?norm", re.IGNORECASE)
_SHARDED = "{} has sharded its weights, so it cannot be run"
_SIMPLE = (bool, int, float, str, tuple, type(None))
_found: dict[Hashable, Recognized | str] = {}


def find_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Recognized | str]]:
    """The norms that a model calls, each once, in model order.

    Yields:
        The qualified name of the module that holds it, that module, under which name, and what the norm computes; why
        nobody knows, where its class is named like a norm.
    """
    seen = replaced_by_copies(model)
    in_fsdp = {module for module in model.modules() if is_in_fsdp(module)}
    flat = in_fsdp if in_fsdp and is_fsdp1(model) else set()
    for holder_name, holder in model.named_modules():
        for name, module in holder.named_children():
            if module not in seen and (found := norm_of(module, module in flat)) is not None:
                seen.add(module)
                yield holder_name, holder, name, found


def norm_of(module: nn.Module, is_flattened: bool = False) -> Recognized | str | None:
    """What a norm computes, or why it is not known; None for what is no norm.

    Args:
        is_flattened: whether FSDP1 holds its weights, of which each process has another part.
    """
    if (settings := settings_of(module, PatchedNorm)) is not None:
        norm: Recognized = settings["norm"]
        return norm
    if (norm_or_reason := registered(module)) is not None:
        return norm_or_reason
    is_named = _NAMES.search(type(module).__name__) is not None
    if is_named and any(hasattr(weight, "ds_id") for weight in module._parameters.values()):
        return _SHARDED.format("ZeRO-3")
    if is_flattened:
        return _SHARDED.format("FSDP1") if is_named else None
    if not (is_named or _looks_like_one(module)):
        return None
    key = _key(module)
    found = _found[key] if key in _found else _recognized(module)
    if key is not None:
        _found[key] = found
    return found if is_named or isinstance(found, Recognized) else None


def _looks_like_one(module: nn.Module) -> bool:
    """Whether it has a weight for each channel, maybe a bias, and no more. PyTorch's own are known by name."""
    weights = [weight for weight in module._parameters.values() if weight is not None]
    if module._modules or module._buffers or not 0 < len(weights) <= 2 or type(module).__module__.startswith("torch."):
        return False
    return all(weight.dim() == 1 and weight.shape == weights[0].shape for weight in weights)


def _recognized(module: nn.Module) -> Recognized | str:
    try:
        return recognize(module)
    except UnsuitableNorm as error:
        return str(error)
    except Exception as error:  # whatever a foreign forward raises: reported as the reason
        return f"{type(module).__name__} could not be run: {type(error).__name__}: {error}"


def _key(module: nn.Module) -> Hashable | None:
    """Equal for modules that compute the same; None if nobody knows."""
    attributes = {name: value for name, value in vars(module).items() if name[0] != "_" and name != "training"}
    if not all(isinstance(value, _SIMPLE) for value in attributes.values()):
        return None
    weights = [(name, None if weight is None else weight.shape) for name, weight in module._parameters.items()]
    return type(module), tuple(weights), tuple(attributes.items()), len(module._modules), len(module._buffers)
