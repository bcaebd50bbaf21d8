"""Patches a model's blocks in place, and puts everything back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from ..curves import Curve
from ..nn import InvertedActivation
from . import slot
from .activations import describe, inverse_of, reason_to_leave, supported_activations
from .config import InvActConfig
from .registry import find_blocks, registered_blocks
from .report import PatchReport, Site
from .slot import LearnedActivation


class PatchingError(ValueError):
    """The model, or a part of it that was asked for, cannot be patched. The model is as it was before the call."""


@dataclass(frozen=True)
class _Candidate:
    block: nn.Module
    attribute: str
    site: Site
    inverse: Curve | type[LearnedActivation] | None


def patch_model(model: nn.Module, config: InvActConfig | None = None) -> PatchReport:
    """Have the activations of a model's blocks keep their output for the backward pass instead of their input.

    Works in place, on the instances of this model alone. Parameters, state-dict keys and results without gradients
    are unaffected. Calling it again is calling it once; with another config it applies that one.

    Args:
        model: any module that holds blocks that are known (see `register_block`).
        config: what to patch, and how.

    Returns:
        What was done at each site. ``print`` it.

    Raises:
        PatchingError: no block matches, a pattern matches nothing, or a block holds an activation that is not known.
            The model is then left as it was.
    """
    config = config or InvActConfig()
    candidates = _select(model, config)
    for candidate in candidates:
        if candidate.inverse is None:
            slot.restore(candidate.block, candidate.attribute)
        else:
            slot.install(candidate.block, candidate.attribute, candidate.inverse, config.backend)
    return PatchReport(tuple(candidate.site for candidate in candidates))


def unpatch_model(model: nn.Module) -> None:
    """Put every original activation object back. A model that is not patched is left alone."""
    for module in model.modules():
        for attribute in slot.patched_attributes(module):
            slot.restore(module, attribute)


@contextmanager
def inverted_activations(model: nn.Module, config: InvActConfig | None = None) -> Iterator[PatchReport]:
    """Patch a model inside the context; afterwards it is unpatched, also when an exception leaves it.

    Raises:
        PatchingError: as `patch_model`.
    """
    report = patch_model(model, config)
    try:
        yield report
    finally:
        unpatch_model(model)


def activation_sites(model: nn.Module) -> list[str]:
    """Qualified names of the activations in the blocks that are known, patched or not."""
    return [_join(name, block.activation) for name, _, block in find_blocks(model)]


def _select(model: nn.Module, config: InvActConfig) -> list[_Candidate]:
    blocks = list(find_blocks(model))
    if not blocks:
        raise PatchingError(_nothing_found(model))
    names = [name for name, _, _ in blocks]
    for pattern in (*config.include, *config.exclude):
        if not _matches(names, pattern):
            raise PatchingError(f"the pattern {pattern!r} matches none of the model's blocks: {_shorten(names)}")
    chosen = {name for pattern in config.include for name in _matches(names, pattern)}
    chosen -= {name for pattern in config.exclude for name in _matches(names, pattern)}
    if not chosen:
        raise PatchingError(f"include={config.include} without exclude={config.exclude} leaves no block to patch")
    candidates = [
        _candidate(name, module, block.activation, excluded=name not in chosen) for name, module, block in blocks
    ]
    if not any(candidate.inverse for candidate in candidates):
        raise PatchingError(f"nothing to invert:\n{PatchReport(tuple(candidate.site for candidate in candidates))}")
    return candidates


def _candidate(name: str, module: nn.Module, attribute: str, *, excluded: bool) -> _Candidate:
    if not hasattr(module, attribute):
        raise PatchingError(
            f"{name}: this {type(module).__name__} has no attribute {attribute!r}, in which its registration says that "
            "it holds its activation; register the block with the right one"
        )
    activation = slot.original_of(getattr(module, attribute))
    inverse, reason = None, ""
    if excluded:
        reason = "left alone: excluded by the config"
    elif why := reason_to_leave(activation):
        reason = f"left alone: {why}"
    elif isinstance(activation, InvertedActivation):
        reason = "left alone: inverted already, by the model itself"
    else:
        _check_forward_is_its_own(name, module)
        _check_forward_is_its_own(_join(name, attribute), activation)
        inverse = _known_inverse(_join(name, attribute), activation)
    site = Site(
        _join(name, attribute), type(module).__name__, describe(activation), inverse.name if inverse else None, reason
    )
    return _Candidate(module, attribute, site, inverse)


def _check_forward_is_its_own(name: str, module: object) -> None:
    """Liger, for one, binds a forward to a block that never calls the block's activation."""
    wrapped_by_accelerate = hasattr(module, "_hf_hook")  # whose forward calls the module's own
    if isinstance(module, nn.Module) and "forward" in vars(module) and not wrapped_by_accelerate:
        raise PatchingError(
            f"{name}: another library has replaced the forward of this {describe(module)}; "
            "apply only one of the two, or exclude the block with InvActConfig(exclude=[...])"
        )


def _known_inverse(name: str, activation: object) -> Curve | type[LearnedActivation]:
    inverse = inverse_of(activation)
    if inverse is None:
        raise PatchingError(
            f"{name}: the activation {describe(activation)} is not known. Supported: "
            f"{', '.join(supported_activations())}. If it computes one of these, say so with "
            "hf_invact.register_activation; or exclude the block with InvActConfig(exclude=[...])"
        )
    return inverse


def _nothing_found(model: nn.Module) -> str:
    known = ", ".join(block.cls.rpartition(".")[2] for block in registered_blocks())
    likely = sorted({type(module).__name__ for module in model.modules() if _holds_an_activation(module)})
    found = f"blocks with an activation: {', '.join(likely)}" if likely else "no block with an activation"
    return (
        f"no block to patch in {type(model).__name__}. Known blocks: {known}. Found {found}. "
        "Register a block of your own with hf_invact.register_block(BlockClass, activation='its attribute')"
    )


def _holds_an_activation(module: nn.Module) -> bool:
    return any(inverse_of(child) is not None for child in module.children())


def _matches(names: Sequence[str], pattern: str) -> list[str]:
    return [name for name in names if fnmatchcase(name, pattern)]


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 4 else [*names[:2], "...", names[-1]])


def _join(block: str, attribute: str) -> str:
    return f"{block}.{attribute}" if block else attribute
