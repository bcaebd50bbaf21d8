"""What was chosen for a memory budget, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...display.sizes import size
from ...patching.report import join_names
from ..batch import batch_in_words

if TYPE_CHECKING:
    from .choose import BudgetPlan


def render_budget(plan: BudgetPlan) -> str:
    """The recipe, its predicted peak, what it costs, and why it is not less."""
    reserved = f", of which {size(plan.reserve_bytes)} are reserved" if plan.reserve_bytes else ""
    lines = [f"memory budget of {size(plan.budget_bytes)}{reserved}: {recipe(plan)}"]
    lines.append(
        f"  predicted peak of a step ({plan.optimizer}, batch of {batch_in_words(plan.batch_size, plan.seq_len)}): "
        f"{size(plan.peak.total_bytes)}, in the {plan.peak.moment}"
    )
    if plan.checkpointed:
        lines.append(
            f"  checkpointed: {join_names(plan.checkpointed)}, {plan.extra_forward:.1%} of a forward pass again"
        )
    if plan.one_less is not None:
        lines.append(f"  with one checkpointed layer less the peak would be {size(plan.one_less.total_bytes)}")
    if plan.patch_checkpointed and plan.checkpointed:
        lines.append("  checkpointed layers are patched too: the peak falls while one of them is recomputed")
    return "\n".join([*lines, *(f"  {note}" for note in plan.notes)])


def recipe(plan: BudgetPlan) -> str:
    """What is done, in a few words."""
    sites = f"{plan.report.patched} of {len(plan.report.sites)} sites patched"
    return f"{len(plan.checkpointed)} of {plan.layers} layers checkpointed, {sites}"
