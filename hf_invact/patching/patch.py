"""Patches a model's blocks in place, and puts everything back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from .. import sites
from ..sites import Site
from ..sites.activations import Activations
from ..sites.errors import PatchingError
from .checkpoints import checkpointable_layers, first_layers, restore_checkpoints, set_checkpoints
from .config import InvActConfig
from .decisions.deciding import decide, install
from .decisions.memory import Memory
from .decisions.planner import Decision
from .decisions.present import remember
from .report import PatchReport, SiteReport
from .requirements import require_module, require_weights
from .selection import select
from .weights.sharding import plain_name

_CHECKPOINTED = "left alone: its layer is checkpointed"


def patch_model(model: nn.Module, config: InvActConfig | None = None) -> PatchReport:
    """Have the blocks of a model keep less for the backward pass.

    Each kind of block is run on a few tokens with each plan (see `InvActConfig`), and the plan that keeps the least is
    installed if results and gradients stay the same. No hook runs then, and what the run changes is put back (see
    `undisturbed`). Random numbers come from generators of its own, so that another thread may draw from PyTorch's at
    the same time, but not from Python's, NumPy's or a GPU's in the blocks that do.
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
    return patch(model, config or InvActConfig(), Memory())


def patch(model: nn.Module, config: InvActConfig, memory: Memory) -> PatchReport:
    """As `patch_model`, but a model of which nothing has changed is not measured again.

    Args:
        memory: what was decided before. What is decided now is added.
    """
    require_module(model)
    require_weights(model)
    if config.memory_budget is not None:
        raise PatchingError(
            f"memory_budget={config.memory_budget!r} depends on the batch, which a Trainer knows. Without one, ask "
            "hf_invact.plan_budget(model, batch_size, seq_len, memory_budget), and patch with the config of its answer"
        )
    checkpointed = first_layers(model, config.checkpoint_layers)
    selection = select(model, config)
    decisions = decide(model, selection, config, memory)
    if not config.patch_checkpointed:
        decisions = _outside_of(checkpointed, decisions)
    report = PatchReport(
        tuple(_row(site, decision) for site, decision in decisions.items()),
        selection.missing,
        tuple(map(plain_name, checkpointed)),
        None if config.checkpoint_layers is None else len(checkpointable_layers(model)),
    )
    if not any(site.computes and selection.is_chosen(site) for site in decisions):
        reasons = "; ".join(dict.fromkeys(row.reason for row in report.sites))
        raise PatchingError(f"nothing to invert ({reasons}):\n{report}")
    _check_demands(report, config)
    for site in selection.others:
        site.kind.restore(site)
    for site, decision in decisions.items():
        install(site, decision, config)
        remember(site, decision, config)
    if config.checkpoint_layers is None:
        restore_checkpoints(model)
    else:
        set_checkpoints(model, checkpointed)
    return report


def unpatch_model(model: nn.Module) -> None:
    """Put everything back as it is in the unpatched model. A model that is not patched is left alone.

    Raises:
        PatchingError: it is no module.
    """
    require_module(model)
    for site in list(sites.patched_sites(model)):
        site.kind.restore(site)
    restore_checkpoints(model)


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
    return [site.name for site in Activations().find(model)]


def _outside_of(checkpointed: Sequence[str], decisions: dict[Site, Decision]) -> dict[Site, Decision]:
    """Decisions that leave the sites of these layers alone. What the others keep does not depend on them."""
    inside = tuple(f"{name}." for name in checkpointed)
    return {
        site: Decision(None, reason=_CHECKPOINTED) if decision.plan and site.name.startswith(inside) else decision
        for site, decision in decisions.items()
    }


def _check_demands(report: PatchReport, config: InvActConfig) -> None:
    if report.patched or not (config.require or config.plans):
        return
    demand = f"plan={config.plan!r} is demanded" if config.plans else "require=True"
    raise PatchingError(f"refused, since {demand}: {report.summary()}\n{report}")


def _row(site: Site, decision: Decision) -> SiteReport:
    return SiteReport(
        plain_name(site.name),
        site.block,
        site.original,
        site.computes if decision.plan else None,
        decision.plan.name if decision.plan else None,
        decision.before,
        decision.after,
        decision.reason,
        site.kind.name,
    )
