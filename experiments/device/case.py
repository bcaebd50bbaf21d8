"""What a stage consists of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Conditions:
    """Under which a case is measured.

    Attributes:
        device: where.
        seed: of random weights and inputs.
        deadline: of `time.monotonic`; the case should be done by then. It is killed some time after.
    """

    device: torch.device
    seed: int
    deadline: float


@dataclass(frozen=True)
class Case:
    """What is measured in one go, and written to the file when it is done.

    Attributes:
        name: unique in its stage.
        measure: returns what was found, as plain data. In it, a mapping with the key "failed" names a fault, one with
            "unavailable" something that this machine lacks, and one with "cut" what the time did not suffice for.
        seconds: after which it is killed, even if more time is left: no sound one takes nearly as long.
    """

    name: str
    measure: Callable[[Conditions], dict[str, Any]]
    seconds: float = math.inf
