"""Sorts saved bytes by part of a Transformer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from .meter import SavedActivations, SavedStorage

PARTS = ("activation", "mlp", "attention", "norm", "dropout", "embedding", "checkpoints", "head and loss", "other")

_ACTIVATION_NAMES = ("act", "act_fn", "activation", "activation_fn", "intermediate_act_fn", "transform_act_fn")
# In this order: the first word found in a module's name decides.
_WORDS = (
    ("attention", ("attn", "attention")),
    ("mlp", ("mlp", "intermediate", "ffn", "feed_forward", "fc1", "fc2", "layer")),
    ("embedding", ("embed", "wte", "wpe")),
    ("head and loss", ("head", "cls", "classifier", "score", "pooler")),
)


def by_part(saved: SavedActivations, model: nn.Module) -> dict[str, int]:
    """Saved bytes of each of `PARTS` that saves any.

    The part "activation" is what MLPs save between their projections: what inverting the activation or the gate
    changes. The inputs of checkpoints are a part of their own.
    """
    sites = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in _ACTIVATION_NAMES]
    part_of = part_classifier(model)
    totals = dict.fromkeys(PARTS, 0)
    for record in saved.records:
        part = "checkpoints" if record.by_checkpoint else part_of(record.saved_by)
        totals["activation" if _is_intermediate(record, part, sites) else part] += record.bytes
    return {part: size for part, size in totals.items() if size}


def intermediate_units(saved: SavedActivations, model: nn.Module, sites: Sequence[str]) -> float | None:
    """What MLPs save between their projections, in tensors of the intermediate size; None if nothing was measured.

    Args:
        sites: qualified names of their activations.
    """
    part_of = part_classifier(model)
    unit = 0
    for site in sites:
        unit += max((size for name, size in saved.output_bytes.items() if _is_within(name, _block_of(site))), default=0)
    kept = (record.bytes for record in saved.records if _is_intermediate(record, part_of(record.saved_by), sites))
    return sum(kept) / unit if unit else None


def _is_intermediate(record: SavedStorage, part: str, sites: Sequence[str]) -> bool:
    """Whether an MLP saves it between its projections.

    That is: the activation saved or returned it, or the block around the activation both made and saved it (except
    the masks of dropout and the statistics of norms).

    Args:
        part: of the module that saved it.
    """
    if record.by_checkpoint:
        return False
    for site in sites:
        if site in (record.saved_by, record.output_of):
            return True
        block = _block_of(site)
        made_inside = record.output_of is None or _is_within(record.output_of, block)
        if made_inside and _is_within(record.saved_by, block) and part not in ("dropout", "norm"):
            return True
    return False


def _block_of(site: str) -> str:
    return site.rpartition(".")[0]


def _is_within(name: str, block: str) -> bool:
    return name == block or name.startswith(f"{block}.")


def _own_names(model: nn.Module) -> set[str]:
    """The names of the model itself: "", and longer ones inside wrappers (PEFT's, DDP's)."""
    name, names = "", {""}
    while len(children := dict(model.named_children())) == 1:
        ((attribute, model),) = children.items()
        name = f"{name}.{attribute}" if name else attribute
        if any(model.children()):  # otherwise it is a layer
            names.add(name)
    return names


def part_classifier(model: nn.Module) -> Callable[[str], str]:
    """A function from a module's qualified name to one of `PARTS`."""
    modules = dict(model.named_modules())
    own = _own_names(model)

    def part_of(name: str) -> str:
        module = modules[name]
        kind = type(module).__name__.lower()
        if name.rpartition(".")[2] in _ACTIVATION_NAMES:
            return "activation"
        if isinstance(module, nn.Dropout):
            return "dropout"
        if "norm" in kind:
            return "norm"
        if name in own:
            return "head and loss"  # the model's own forward: the loss
        return next((part for part, words in _WORDS if any(word in name.lower() for word in words)), "other")

    return part_of
