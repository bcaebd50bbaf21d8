"""What a plan says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from ..patching import PatchReport
from .lora import Lora
from .peak import Peak


@dataclass(frozen=True)
class MemoryPlan:
    """What a model keeps for the backward pass of one training step, plain and patched.

    Attributes:
        model: what the user called it.
        model_class: the class that was planned.
        batch_size, seq_len, dtype, autocast, lora, gradient_checkpointing, device: as they were asked for (but seq_len
            is None for models of images alone).
        autocast_dtype: of autocast, "bfloat16" or "float16"; None for no autocast.
        attention: the implementation that the model has.
        parameter_bytes: all weights and buffers.
        trainable_bytes: the weights that are trained.
        plain: saved bytes by part (of `hf_invact.memory.PARTS`), not patched.
        patched: saved bytes by part, patched.
        report: what is patched, by site; without sites where nothing can be.
        optimizer: what the step of the peaks is made by; None where they were not asked for.
        plain_peak, patched_peak: the most that a training step holds, not patched and patched; None where they were
            not asked for.
        notes: what else the user should know, each a sentence.
    """

    model: str
    model_class: str
    batch_size: int
    seq_len: int | None
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
    optimizer: str | None = None
    plain_peak: Peak | None = None
    patched_peak: Peak | None = None
    notes: tuple[str, ...] = ()
    autocast_dtype: str | None = None

    def __str__(self) -> str:
        from .text import render  # which imports this module

        return render(self)

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


def as_json(record: Any) -> dict[str, Any]:
    """A plan, a comparison or a fit in what JSON knows: bytes as numbers, and the sites of a report one by one."""
    values: dict[str, Any] = _plain(record)
    report = values.pop("report", {})
    values.update(report)
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, Peak):
        return {"moment": value.moment, "total_bytes": value.total_bytes, "by_moment": _plain(value.by_moment)}
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
