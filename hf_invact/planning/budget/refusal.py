"""Says why nothing fits into a memory budget, and what would."""

from __future__ import annotations

from collections.abc import Callable

from ...display.sizes import size
from ...inputs.sizes import longest_sequence
from ..batch import batch_in_words
from ..dry_run import DryRun
from ..peak import Peak
from ..search import TOKENS_STEP, largest_that_fits, static_bytes


def why_not(
    run: DryRun,
    lowest_peak: Callable[[int, int | None], Peak],
    layers: int,
    batch: tuple[int, int | None],
    budget_bytes: int,
    reserve: int,
) -> str:
    """A sentence on by how much a budget is missed, and one on what fits into it.

    Args:
        lowest_peak: of a batch size and a sequence length, with all layers checkpointed.
        layers: how many there are.
        batch: the batch size and the sequence length that were asked for.
    """
    limit = budget_bytes - reserve
    peak = lowest_peak(*batch)
    reserved = f" ({size(reserve)} of it are reserved for what is not predicted)" if reserve else ""
    how = f"even with all {layers} layers checkpointed" if layers else "and it has no layers that can be checkpointed:"
    text = (
        f"a batch of {batch_in_words(*batch)} does not fit into {size(budget_bytes)}{reserved}: {how} the predicted "
        f"peak of a step is {size(peak.total_bytes)}, {size(peak.total_bytes - limit)} too much"
    )
    if (static := static_bytes(peak, "optimizer step")) > limit:
        return (
            f"{text}. Weights, gradients and optimizer state alone need {size(static)}, whatever the batch: train "
            "adapters, quantize the weights, or choose an optimizer with less state"
        )
    fitting = _fitting(run, lowest_peak, batch, limit)
    return (
        f"{text}. With the same layers, {' or '.join(fitting)} would fit" if fitting else f"{text}, and so is any batch"
    )


def _fitting(
    run: DryRun, lowest_peak: Callable[[int, int | None], Peak], batch: tuple[int, int | None], limit: int
) -> list[str]:
    """The largest batch and the longest sequences that fit, in words."""
    batch_size, seq_len = batch
    found = []
    largest = largest_that_fits(lambda count: lowest_peak(count, seq_len), limit, last=batch_size, start=1)
    if largest:
        found.append(f"a batch of {batch_in_words(largest, seq_len)}")
    if seq_len is not None:
        most = min(seq_len, longest_sequence(run.model) or seq_len) // TOKENS_STEP
        steps = largest_that_fits(
            lambda count: lowest_peak(batch_size, count * TOKENS_STEP), limit, last=max(most, 1), start=1
        )
        if steps:
            found.append(f"one of {batch_in_words(batch_size, steps * TOKENS_STEP)}")
    return found
