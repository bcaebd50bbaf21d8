"""Times calls in turn, so that other load of the machine affects all of them alike.

Each turn has another order, so that no call always runs after the same other one, with the caches that it leaves.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..common.errors import first_line

Call = Callable[[], Any]
OUT_OF_MEMORY = "out of memory"
FLUSHED_BYTES = 1 << 28  # more than the L2 cache of any GPU


@dataclass(frozen=True)
class Effort:
    """How long to measure: about `seconds`, but at least `least` and at most `most` repetitions."""

    seconds: float
    least: int
    most: int

    def repetitions(self, seconds_of_one: float) -> int:
        """How many repetitions to take."""
        return max(self.least, min(self.most, int(self.seconds / max(seconds_of_one, 1e-9))))


@dataclass(frozen=True)
class Failure:
    """Why something was not measured. `expected` if the machine is the reason (memory, a package), and not a fault."""

    reason: str
    expected: bool

    def record(self) -> dict[str, Any]:
        """As the results have it."""
        return {"unavailable" if self.expected else "failed": self.reason}


def significant(value: float) -> float:
    """A measurement, rounded to the digits that mean something.

    >>> significant(0.123456789)
    0.12346
    """
    return float(f"{value:.5g}")


def failure_of(error: Exception) -> Failure:
    """An exception as a reason of one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return Failure(f"{OUT_OF_MEMORY}: {first_line(error)}", expected=True)
    return Failure(f"{type(error).__name__}: {first_line(error)}", expected=False)


def warm_up(calls: Mapping[str, Call], device: torch.device, times: int = 2) -> dict[str, Failure]:
    """Run each call, which may compile it. Returns the failures of those that raise."""
    failures = {}
    for name, call in calls.items():
        try:
            for _ in range(times):
                call()
            synchronize(device)
        except Exception as error:  # of any kind: the other measurements go on
            failures[name] = failure_of(error)
    return failures


def alternate(calls: Mapping[str, Call], device: torch.device, effort: Effort) -> dict[str, list[float]]:
    """Seconds of each call, by name. In each turn, every call runs once, in a random order.

    On a CUDA device, a time is that between two events, and the L2 cache is overwritten before each call (which
    also hides the launch of a first kernel). On a CPU they are wall-clock times.
    """
    began = time.perf_counter()
    for call in calls.values():
        call()
    synchronize(device)
    count = effort.repetitions(time.perf_counter() - began)
    return (_cuda_times if device.type == "cuda" else _cpu_times)(calls, device, count)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Free the unused memory of a CUDA device."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _turns(calls: Mapping[str, Call], count: int) -> Iterator[list[tuple[str, Call]]]:
    shuffled = random.Random(0)
    for _ in range(count):
        yield shuffled.sample(list(calls.items()), len(calls))


def _cpu_times(calls: Mapping[str, Call], device: torch.device, count: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in _turns(calls, count):
        for name, call in turn:
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return times


def _cuda_times(calls: Mapping[str, Call], device: torch.device, count: int) -> dict[str, list[float]]:
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device)
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in calls}
    for turn in _turns(calls, count):
        for name, call in turn:
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flushed.zero_()
            start.record()
            call()
            stop.record()
            events[name].append((start, stop))
    synchronize(device)
    return {name: [start.elapsed_time(stop) / 1000 for start, stop in pairs] for name, pairs in events.items()}
