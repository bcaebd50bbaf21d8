"""Sorts saved bytes into the parts of a Transformer."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .meter import SavedActivations

PARTS = ("activation", "mlp", "attention", "norm", "dropout", "embedding", "head and loss", "other")

_ACTIVATION_SLOTS = ("act", "act_fn", "activation", "activation_fn", "intermediate_act_fn", "transform_act_fn")
# In this order: the first word found in a module's name decides.
_WORDS = (
    ("attention", ("attn", "attention")),
    ("mlp", ("mlp", "intermediate", "ffn", "feed_forward", "fc1", "fc2", "layer")),
    ("embedding", ("embed", "wte", "wpe")),
    ("head and loss", ("head", "cls", "classifier", "score", "pooler")),
)


def by_part(saved: SavedActivations, model: nn.Module) -> dict[str, int]:
    """Saved bytes of each of `PARTS` that has any.

    An activation's part holds what it saves and its output where anything keeps it, whichever module was the first to
    do so: that pair is what inverting the activation changes.
    """
    part_of = _classifier(model)
    totals = dict.fromkeys(PARTS, 0)
    for record in saved.records:
        made_by_activation = record.output_of is not None and part_of(record.output_of) == "activation"
        totals["activation" if made_by_activation else part_of(record.saved_by)] += record.bytes
    return {part: size for part, size in totals.items() if size}


def _classifier(model: nn.Module) -> Callable[[str], str]:
    modules = dict(model.named_modules())

    def part_of(name: str) -> str:
        module = modules[name]
        kind = type(module).__name__.lower()
        if name.rpartition(".")[2] in _ACTIVATION_SLOTS:
            return "activation"
        if isinstance(module, nn.Dropout):
            return "dropout"
        if "norm" in kind:
            return "norm"
        if name == "":
            return "head and loss"  # the model's own forward: the loss
        return next((part for part, words in _WORDS if any(word in name.lower() for word in words)), "other")

    return part_of
