"""The table of what is trained in two processes, and the record that each process leaves of a case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from tests.models import MODEL_NAMES

WORLD = 2
STEPS = 3

# The ways of the Trainer, then those of a training loop of one's own.
Way = Literal["ddp", "ddp-accumulation", "fsdp-flag", "fsdp2-at-load", "zero2", "zero3", "own-ddp", "own-fsdp2"]
Patched = Literal["no", "before", "after"]

OWN_LOOP: tuple[Way, ...] = ("own-ddp", "own-fsdp2")
SHARDED_BY_FSDP2: tuple[Way, ...] = ("fsdp2-at-load", "own-fsdp2")


# Their names in docs/compatibility.md. (On a CPU, the flag for FSDP gives DDP.)
ROWS: Mapping[Way, str] = {
    "ddp": "DDP, by the Trainer",
    "ddp-accumulation": "DDP, by the Trainer, gradients accumulated",
    "fsdp2-at-load": "FSDP2, by the Trainer, sharded at load",
    "zero2": "DeepSpeed ZeRO-2",
    "zero3": "DeepSpeed ZeRO-3",
    "own-ddp": "DDP (loop)",
    "own-fsdp2": "FSDP2, `fully_shard` (loop)",
}


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        way: how the processes share the work.
        patched: whether it is patched before or after the model is wrapped or sharded, or not at all.
    """

    way: Way
    model: str
    patched: Patched = "no"

    @property
    def plain(self) -> Case:
        return replace(self, patched="no")

    @property
    def row(self) -> str:
        """Its row in docs/compatibility.md."""
        step = "sharding" if self.way in SHARDED_BY_FSDP2 else "wrapping"
        when = f", patched {self.patched} {step}" if self.way in OWN_LOOP else ""
        return ROWS[self.way] + when

    def __str__(self) -> str:
        return f"{self.way}-{self.model}-{self.patched}"


def _cases(models: Mapping[Way, Sequence[str]]) -> list[Case]:
    """The Trainer's callback patches before it wraps a model, but after a model is sharded while it is loaded."""
    times: Mapping[Way, Sequence[Patched]] = {
        "fsdp2-at-load": ("no", "after"),
        "zero3": ("no", "after"),
        **dict.fromkeys(OWN_LOOP, ("no", "before", "after")),
    }
    return [
        Case(way, model, patched)
        for way, names in models.items()
        for model in names
        for patched in times.get(way, ("no", "before"))
    ]


CASES = _cases(
    {
        "ddp": MODEL_NAMES,
        "ddp-accumulation": ("llama",),
        "fsdp-flag": ("llama",),
        "fsdp2-at-load": MODEL_NAMES,
        "own-ddp": ("bert",),
        "own-fsdp2": MODEL_NAMES,
    }
)
# What the installed Transformers may lack, with the version that introduced it.
SINCE: Mapping[Way, tuple[str, str]] = {
    "fsdp-flag": ("5.10", "--fsdp without a value"),
    "fsdp2-at-load": ("5.13", "DistributedConfig(fsdp_size=...)"),
}
# These need DeepSpeed, which is not installed for the tests. (The ZeRO stage is global to a process, hence this order.)
DEEPSPEED_CASES = _cases({"zero2": ("llama", "bert"), "zero3": ("llama", "bert")})
TABLES = {"torch": CASES, "deepspeed": DEEPSPEED_CASES}


@dataclass(frozen=True)
class Record:
    """What one process saw.

    Attributes:
        losses: of each step, the mean over the processes.
        gradients: before the last optimizer step, whole (DeepSpeed does not show them).
        saved_bytes: kept for the backward pass by the first forward pass.
        plans: of each site, with the reason that the report gives.
        wrapper: class of what was trained.
        shards: kinds of the parameters: "DTensor", "ZeRO-3" or "whole".
        patched_at_the_end: whether the model is left patched.
    """

    world: int
    losses: list[float]
    gradients: dict[str, Tensor]
    saved_bytes: int
    plans: list[tuple[str | None, str]]
    wrapper: str
    shards: set[str]
    patched_at_the_end: bool
