"""The table of what is trained in two processes, and the record that each process leaves of a case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from hf_invact import PatchReport
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
        lora: whether it trains adapters with dropout on all linear layers. These alone are patched then, so that
            losses and gradients stay the same in every bit.
        checkpoints: whether one layer is checkpointed, and the others are patched.
    """

    way: Way
    model: str
    patched: Patched = "no"
    lora: bool = False
    checkpoints: bool = False

    @property
    def plain(self) -> Case:
        return replace(self, patched="no", checkpoints=False)

    @property
    def row(self) -> str:
        """Its row in docs/compatibility.md."""
        step = "sharding" if self.way in SHARDED_BY_FSDP2 else "wrapping"
        when = f", patched {self.patched} {step}" if self.way in OWN_LOOP else ""
        return ROWS[self.way] + when + (", LoRA with dropout" if self.lora else "")

    def __str__(self) -> str:
        text = f"{self.way}-{self.model}{'-lora' if self.lora else ''}-{self.patched}"
        return f"{text}-checkpoints" if self.checkpoints else text


def _cases(models: Mapping[Way, Sequence[str]], *, lora: bool = False) -> list[Case]:
    """The Trainer's callback patches before it wraps a model, but after a model is sharded while it is loaded."""
    times: Mapping[Way, Sequence[Patched]] = {
        "fsdp2-at-load": ("no", "after"),
        "zero3": ("no", "after"),
        **dict.fromkeys(OWN_LOOP, ("no", "before", "after")),
    }
    return [
        Case(way, model, patched, lora)
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
) + _cases({"ddp": ("llama",), "ddp-accumulation": ("gpt2",), "own-fsdp2": ("llama", "bert")}, lora=True)
CHECKPOINTED = [
    Case("ddp", "llama", "before", checkpoints=True),
    Case("own-ddp", "bert", "after", checkpoints=True),
    Case("own-fsdp2", "llama", "before", checkpoints=True),
    Case("own-fsdp2", "llama", "after", checkpoints=True),
    Case("own-fsdp2", "llama", "after", lora=True, checkpoints=True),
]
# What the installed Transformers may lack, with the version that introduced it.
SINCE: Mapping[Way, tuple[str, str]] = {
    "fsdp-flag": ("5.10", "--fsdp without a value"),
    "fsdp2-at-load": ("5.13", "DistributedConfig(fsdp_size=...)"),
}
# These need DeepSpeed. (The ZeRO stage is global to a process, hence this order.)
DEEPSPEED_CASES = [
    *(*_cases({"zero2": ("llama", "bert")}), *_cases({"zero2": ("llama",)}, lora=True)),
    *(*_cases({"zero3": ("llama", "bert")}), *_cases({"zero3": ("llama",)}, lora=True)),
]
TABLES = {"torch": [*CASES, *CHECKPOINTED], "deepspeed": DEEPSPEED_CASES}


@dataclass(frozen=True)
class Record:
    """What one process saw.

    Attributes:
        losses: of each step, the mean over the processes.
        gradients: before the last optimizer step, whole (DeepSpeed does not show them).
        saved_bytes: kept for the backward pass by the first forward pass.
        report: of patching; None where it is not patched.
        wrapper: class of what was trained.
        shards: kinds of the parameters: "DTensor", "ZeRO-3" or "whole".
        patched_at_the_end: whether the model is left patched.
    """

    world: int
    losses: list[float]
    gradients: dict[str, Tensor]
    saved_bytes: int
    report: PatchReport | None
    wrapper: str
    shards: set[str]
    patched_at_the_end: bool

    def plans_of(self, *kinds: str) -> list[tuple[str | None, str]]:
        """Of each site of some kinds, with the reason that the report gives."""
        sites = self.report.sites if self.report else ()
        return [(site.plan, site.reason) for site in sites if site.kind in kinds]
