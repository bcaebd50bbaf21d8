"""What a plan says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..patching import PatchReport
from .lora import Lora


@dataclass(frozen=True)
class MemoryPlan:
    """What a model keeps for the backward pass of one training step, plain and patched.

    Attributes:
        model: what the user called it.
        model_class: the class that was planned.
        batch_size, seq_len, dtype, autocast, lora, gradient_checkpointing, device: as they were asked for.
        attention: the implementation that the model has.
        parameter_bytes: all weights and buffers.
        trainable_bytes: the weights that are trained.
        plain: saved bytes by part (of `hf_invact.memory.PARTS`), not patched.
        patched: saved bytes by part, patched.
        report: what is patched, by site; without sites where nothing can be.
        notes: what else the user should know, each a sentence.
    """

    model: str
    model_class: str
    batch_size: int
    seq_len: int
    dtype: str
    autocast: bool
    lora: Lora | None
    attention: str
    gradient_checkpointing: bool
    device: str
    parameter_bytes: int
    trainable_bytes: int
    plain: Mapping[str, int]
    patched: Mapping[str, int]
    report: PatchReport
    notes: tuple[str, ...] = ()

    @property
    def plain_bytes(self) -> int:
        """All that is saved, not patched."""
        return sum(self.plain.values())

    @property
    def patched_bytes(self) -> int:
        """All that is saved, patched."""
        return sum(self.patched.values())

    @property
    def saving(self) -> float:
        """What patching takes off, as a part of what is saved; 0 where nothing is."""
        return 1 - self.patched_bytes / self.plain_bytes if self.plain_bytes else 0.0
