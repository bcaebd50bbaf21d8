"""The ways to train a model that are compared: plain, inverted, checkpointed, ..."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingVariant:
    """A way to train a model.

    Attributes:
        name: in tables and JSON.
        patched: whether its activations are inverted.
        plan: patches with this plan of `hf_invact.InvActConfig`; None for the plan of the user's config.
        checkpointed: whether layers are recomputed in the backward pass.
    """

    name: str
    patched: bool = False
    plan: str | None = None
    checkpointed: bool = False


PLAIN = TrainingVariant("plain")
INVERTED = TrainingVariant("inverted", patched=True)
FUSED = TrainingVariant("fused activation", patched=True, plan="input")
EXACT_GATE = TrainingVariant("exact gate", patched=True, plan="gate-inputs")
CHECKPOINTED = TrainingVariant("checkpointing", checkpointed=True)
BOTH = TrainingVariant("checkpointing + inverted", patched=True, checkpointed=True)
PAIRS = ((PLAIN, INVERTED), (CHECKPOINTED, BOTH))


def advice_to_leave_unpatched(variant: TrainingVariant) -> str:
    """What to do if the peak of a patched variant is above that of its plain counterpart."""
    mode = "with gradient checkpointing train" if variant.checkpointed else "train"
    return (
        f"Better {mode} this model unpatched: its peak falls in the backward pass of a layer, where an inverted layer "
        "holds more (its side bits, too)."
    )
