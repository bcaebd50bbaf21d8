"""The ways to train a model that plans tell apart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """A way to train the same model.

    Attributes:
        name: as tables call it.
        patched: whether its activations are inverted.
        plan: the plan of `hf_invact.InvActConfig` to patch with; None for that of the user's config.
        checkpointed: whether layers are computed again in the backward pass.
    """

    name: str
    patched: bool = False
    plan: str | None = None
    checkpointed: bool = False


PLAIN = Variant("plain")
INVERTED = Variant("inverted", patched=True)
FUSED = Variant("fused activation", patched=True, plan="input")
EXACT_GATE = Variant("exact gate", patched=True, plan="gate-inputs")
CHECKPOINTED = Variant("checkpointing", checkpointed=True)
BOTH = Variant("checkpointing + inverted", patched=True, checkpointed=True)
PAIRS = ((PLAIN, INVERTED), (CHECKPOINTED, BOTH))


def better_unpatched(variant: Variant) -> str:
    """What to do where the peak of a patched variant is above that of its plain one."""
    mode = "with gradient checkpointing train" if variant.checkpointed else "train"
    return (
        f"Better {mode} this model unpatched: its peak falls where a layer is differentiated, and an inverted layer "
        "holds more there (its side bits besides)."
    )
