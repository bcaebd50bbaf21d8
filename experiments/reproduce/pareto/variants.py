"""The ways to train a model that trade time for memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from transformers import PreTrainedModel

from hf_invact import InvActConfig
from hf_invact.patching.checkpoints import checkpointable_layers, restore_checkpoints, set_checkpoints

from ...benchmark.steps.variants import PLAIN, StepVariant, inverted_by
from ..steps.variants import COMPILED, Compiled

EVERY, OURS = "every-", "ours-"
STEPS = (1, 2, 3, 6)
POINTS = 7


def variants_for(model: PreTrainedModel, compiles: bool) -> dict[str, StepVariant]:
    """By name: plain, checkpointing of every n-th layer, torch.compile, and ours with 0 to all layers checkpointed."""
    layers = [*checkpointable_layers(model)]
    chosen: dict[str, StepVariant] = {PLAIN: nullcontext}
    chosen |= {f"{EVERY}{step}": checkpointed(layers[::step]) for step in STEPS if step <= len(layers)}
    if compiles:
        chosen[COMPILED] = Compiled(nullcontext)
    for count in sorted({round(part * len(layers) / (POINTS - 1)) for part in range(POINTS)}):
        chosen[f"{OURS}{count}"] = inverted_by("auto", InvActConfig().sites, checkpoint_layers=count)
    return chosen


def checkpointed(names: list[str]) -> StepVariant:
    """Layers checkpointed by Transformers' own switch, as its `every_n_layers` does."""

    @contextmanager
    def entered(model: PreTrainedModel) -> Iterator[None]:
        set_checkpoints(model, names)
        try:
            yield
        finally:
            restore_checkpoints(model)

    return entered


def title(name: str) -> str:
    """The title of a variant.

    >>> title("every-1"), title("every-3"), title("ours-0"), title("ours-10")
    ('every layer checkpointed', 'every 3rd layer checkpointed', 'hf_invact', 'hf_invact, 10 layers checkpointed')
    """
    if name.startswith(EVERY):
        step = int(name.removeprefix(EVERY))
        word = {1: "", 2: "2nd ", 3: "3rd "}.get(step, f"{step}th ")
        return f"every {word}layer checkpointed"
    if name.startswith(OURS):
        count = int(name.removeprefix(OURS))
        return f"hf_invact, {count} layer{'s' if count > 1 else ''} checkpointed" if count else "hf_invact"
    return {COMPILED: "torch.compile"}.get(name, name)
