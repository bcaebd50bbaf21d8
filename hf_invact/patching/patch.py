"""Patches a model's blocks in place, and puts everything back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from ..nn import InvertedActivation
from ..ops import check_device
from . import slot
from .activations import describe, inverse_of, reason_to_leave, supported_activations
from .config import InvActConfig
from .conflicts import WAYS_OUT, find_conflicts, replaced_forward
from .errors import PatchingError
from .hooks import hook_of_others
from .planner import Decision, Planner, rule
from .plans import PLANS, Plan
from .present import present, remember
from .registry import Found, find_activations
from .report import PatchReport, Site
from .requirements import require_module, require_weights
from .sharding import plain_name
from .slot import Inverse


@dataclass(frozen=True)
class _Candidate:
    found: Found
    inverse: Inverse | None
    decision: Decision

    @property
    def site(self) -> Site:
        found, decision = self.found, self.decision
        activation = describe(slot.original_of(getattr(found.module, found.attribute)))
        plan = decision.plan.name if decision.plan else None
        curve = self.inverse.name if self.inverse and decision.plan else None
        block = type(found.module).__name__
        return Site(
            plain_name(found.site), block, activation, curve, plan, decision.before, decision.after, decision.reason
        )


def patch_model(model: nn.Module, config: InvActConfig | None = None) -> PatchReport:
    """Have the blocks of a model keep less for the backward pass around their activations.

    Each kind of block is run on a few tokens with each plan (see `InvActConfig`), and what keeps least is installed if
    results and gradients stay the same. No hook runs then, and what the run changes is put back (see `undisturbed`);
    random numbers come from generators of its own, so that another thread may draw from PyTorch's at the same time, but
    not from Python's, NumPy's or a GPU's in the blocks that do.
    Works in place, on the instances of this model alone. Parameters, state-dict keys and results without gradients
    are unaffected. Calling it again is calling it once; with another config it applies that one.

    Args:
        model: any module that holds blocks that are known (see `register_block`).
        config: what to patch, and how.

    Returns:
        What was done at each site. ``print`` it.

    Raises:
        PatchingError: it is no module, or has no weights yet; no block matches, a pattern matches nothing, a block
            holds an activation that is not known, a backend that was chosen by name cannot run where the model is, or
            nothing would be inverted though the config demands a plan or requires it. The model is then left as it was.
    """
    require_module(model)
    require_weights(model)
    config = config or InvActConfig()
    candidates = _select(model, config)
    report = PatchReport(tuple(candidate.site for candidate in candidates))
    _check_demands(report, config)
    for candidate in candidates:
        block, attribute, plan = candidate.found.module, candidate.found.attribute, candidate.decision.plan
        if candidate.inverse is None or plan is None:
            slot.restore(block, attribute)
        else:
            slot.install(block, attribute, candidate.inverse, config.backend, plan)
            remember(block, attribute, candidate.decision, config)
    return report


def unpatch_model(model: nn.Module) -> None:
    """Put every original activation object back. A model that is not patched is left alone.

    Raises:
        PatchingError: it is no module.
    """
    require_module(model)
    for _, block, attribute in slot.patched(model):
        slot.restore(block, attribute)


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
    """Qualified names of the activations that `patch_model` finds, patched or not.

    Raises:
        PatchingError: it is no module.
    """
    require_module(model)
    return [found.site for found in find_activations(model)]


def _select(model: nn.Module, config: InvActConfig) -> list[_Candidate]:
    everything, conflicts = list(find_activations(model)), find_conflicts(model)
    if not (everything or conflicts):
        raise PatchingError(_nothing_found(model))
    names = [*(found.name for found in everything), *conflicts]
    for pattern in (*config.include, *config.exclude):
        if not _matches(names, pattern):
            raise PatchingError(f"the pattern {pattern!r} matches none of the model's blocks: {_shorten(names)}")
    chosen = {name for pattern in config.include for name in _matches(names, pattern)}
    chosen -= {name for pattern in config.exclude for name in _matches(names, pattern)}
    if not chosen:
        raise PatchingError(f"include={config.include} without exclude={config.exclude} leaves no block to patch")
    for name in conflicts:
        if name in chosen:
            raise PatchingError(f"{name}: {conflicts[name]}, or exclude the block with InvActConfig(exclude=[...])")
    for found in everything:
        _require_attribute(found)
    _require_backend(model, config.backend)
    by_rule = [_plan_by_rule(found) for found in everything]
    standing = present(model, everything, config)
    planner = Planner(model, config)
    with ExitStack() as originals:
        for found in everything:
            originals.enter_context(slot.restored(found.module, found.attribute))
        candidates = [
            _candidate(planner, found, plan, stands, is_excluded=found.name not in chosen)
            for found, plan, stands in zip(everything, by_rule, standing, strict=True)
        ]
    if not any(candidate.inverse for candidate in candidates):
        sites = tuple(candidate.site for candidate in candidates)
        reasons = "; ".join(dict.fromkeys(site.reason for site in sites))
        raise PatchingError(f"nothing to invert ({reasons}):\n{PatchReport(sites)}")
    return candidates


def _check_demands(report: PatchReport, config: InvActConfig) -> None:
    if report.patched or not (config.require or config.plan in PLANS):
        return
    demand = f"plan={config.plan!r} is demanded" if config.plan in PLANS else "require=True"
    raise PatchingError(f"refused, since {demand}: {report.summary()}\n{report}")


def _require_backend(model: nn.Module, backend: str) -> None:
    try:
        check_device(backend, model.parameters())
    except RuntimeError as error:
        raise PatchingError(str(error)) from None


def _require_attribute(found: Found) -> None:
    if not hasattr(found.module, found.attribute):
        raise PatchingError(
            f"{found.name}: this {type(found.module).__name__} has no attribute {found.attribute!r}, in which its "
            "registration says that it holds its activation; register the block with the right one"
        )


def _plan_by_rule(found: Found) -> Plan | None:
    """What to do where nothing can be measured: what is done already (the weights may have been sharded since)."""
    present = slot.plan_of(found.module, found.attribute)
    return present or (rule(found.block.is_gated) if found.block else None)


def _candidate(
    planner: Planner, found: Found, by_rule: Plan | None, stands: Decision | None, *, is_excluded: bool
) -> _Candidate:
    name, module, attribute = found.name, found.module, found.attribute
    activation = getattr(module, attribute)
    if is_excluded:
        return _left_alone(found, "excluded by the config")
    if why := reason_to_leave(activation):
        return _left_alone(found, why)
    if isinstance(activation, InvertedActivation):
        return _left_alone(found, "inverted already, by the model itself")
    _check_forward_is_its_own(name, module)
    _check_forward_is_its_own(found.site, activation)
    inverse = _known_inverse(found.site, activation)
    if isinstance(activation, nn.Module) and (hook := hook_of_others(activation)):
        why = f"left alone: a hook of others is on it ({hook}), which gets what it gets in the unpatched model"
        return _Candidate(found, inverse, Decision(None, reason=why))
    return _Candidate(found, inverse, stands or planner.decide(name, attribute, inverse, by_rule))


def _left_alone(found: Found, why: str) -> _Candidate:
    return _Candidate(found, None, Decision(None, reason=f"left alone: {why}"))


def _check_forward_is_its_own(name: str, module: object) -> None:
    if by := replaced_forward(module):
        raise PatchingError(
            f"{name}: another library has replaced the forward of this {describe(module)} by {by}, which need not call "
            f"what hf_invact inverts. {WAYS_OUT}, or exclude the block with InvActConfig(exclude=[...])"
        )


def _known_inverse(name: str, activation: object) -> Inverse:
    inverse = inverse_of(activation)
    if inverse is None:
        raise PatchingError(
            f"{name}: the activation {describe(activation)} is not known. Supported: "
            f"{', '.join(supported_activations())}. Add it, or say that it computes one of these, with "
            "hf_invact.register_activation; or exclude the block with InvActConfig(exclude=[...])"
        )
    return inverse


def _nothing_found(model: nn.Module) -> str:
    reasons = {describe(module): why for module in model.modules() if (why := reason_to_leave(module))}
    found = "; ".join(f"{activation} is left alone: {why}" for activation, why in reasons.items())
    return (
        f"no activation to invert in {type(model).__name__}{f' ({found})' if found else ''}. "
        f"Supported: {', '.join(supported_activations())}. Add one of your own with hf_invact.register_activation, and "
        "a block that holds it with hf_invact.register_block(BlockClass, activation='its attribute')"
    )


def _matches(names: Sequence[str], pattern: str) -> list[str]:
    return [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(plain_name(name), pattern)]


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 4 else [*names[:2], "...", names[-1]])
