"""The ways to train a model that are compared: plain, inverted, checkpointed, ..."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingVariant:
    """A way to train a model.

    Attributes:
        name: in tables and JSON.
        patched: whether something is patched.
        plan: patches the activations alone, with this plan of `hf_invact.InvActConfig`; None for the user's config.
        checkpointed: whether all layers are recomputed in the backward pass.
        checkpoint_layers: how many layers are, if not all or none.
        patch_checkpointed: whether these are patched as well.
        uncast: whether PEFT leaves the input of adapters in its dtype.
        frozen_a: whether only the second matrix of each adapter is trained.
        note: what else it changes, a sentence.
    """

    name: str
    patched: bool = False
    plan: str | None = None
    checkpointed: bool = False
    checkpoint_layers: int | None = None
    patch_checkpointed: bool = False
    uncast: bool = False
    frozen_a: bool = False
    note: str = ""

    @property
    def needs_adapters(self) -> bool:
        """Whether it is a way to train adapters."""
        return self.uncast or self.frozen_a


PLAIN = TrainingVariant("plain")
INVERTED = TrainingVariant("inverted", patched=True)
FUSED = TrainingVariant("fused activation", patched=True, plan="input")
EXACT_GATE = TrainingVariant("exact gate", patched=True, plan="gate-inputs")
UNCAST = TrainingVariant(
    "no casts",
    uncast=True,
    note=(
        "no casts: inside of peft.helpers.disable_input_dtype_casting adapters get the input of their layer as it "
        "comes, and those without dropout share it."
    ),
)
FROZEN_A = TrainingVariant(
    "LoRA-FA",
    frozen_a=True,
    note=(
        "LoRA-FA (peft.optimizers.create_lorafa_optimizer): only the matrices B are trained, so it is another "
        "training. A frozen A needs no input, but its dropout keeps a mask."
    ),
)
CHECKPOINTED = TrainingVariant("checkpointing", checkpointed=True)
BOTH = TrainingVariant("checkpointing + inverted", patched=True, checkpointed=True)


def mixed(layers: int, *, patch_checkpointed: bool = False) -> TrainingVariant:
    """The first layers checkpointed, and the others inverted.

    >>> mixed(16).name, mixed(1, patch_checkpointed=True).name
    ('16 layers checkpointed', '1 layer checkpointed and inverted')
    """
    also = " and inverted" if patch_checkpointed else ""
    return TrainingVariant(
        f"{layers} layer{'' if layers == 1 else 's'} checkpointed{also}",
        patched=True,
        checkpoint_layers=layers,
        patch_checkpointed=patch_checkpointed,
    )


PAIRS = ((PLAIN, INVERTED), (CHECKPOINTED, BOTH))


def advice_to_leave_unpatched(variant: TrainingVariant) -> str:
    """What to do if the peak of a patched variant is above that of its plain counterpart."""
    mode = "with gradient checkpointing train" if variant.checkpointed else "train"
    return (
        f"Better {mode} this model unpatched: its peak falls in the backward pass of a layer, where an inverted layer "
        "holds more (its side bits, too)."
    )
