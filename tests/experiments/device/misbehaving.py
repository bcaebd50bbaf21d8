"""Cases that die, hang and raise, for stages that are run in processes of their own."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from experiments.device.case import Case, Conditions


def works(conditions: Conditions) -> dict[str, Any]:
    return {"seed": conditions.seed, "device": str(conditions.device), "left": conditions.deadline - time.monotonic()}


def is_killed(conditions: Conditions) -> dict[str, Any]:
    print("about to die", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")


def crashes(conditions: Conditions) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("not reached")


def leaves(conditions: Conditions) -> dict[str, Any]:
    os._exit(0)


def raises(conditions: Conditions) -> dict[str, Any]:
    sys.modules["broken"] = sys  # stands for a device that is broken from now on
    raise ZeroDivisionError("as it should")


def is_full(conditions: Conditions) -> dict[str, Any]:
    raise torch.OutOfMemoryError("CUDA out of memory")


def hangs(conditions: Conditions) -> dict[str, Any]:
    """With a process that it has started and that outlives it, unless all are killed."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(f"child {child.pid}", flush=True)
    time.sleep(600)
    raise AssertionError("not reached")


def crashes_at_its_limit(conditions: Conditions) -> dict[str, Any]:
    """As where it is, is written, which another thread does."""
    time.sleep(LIMITS[crashes_at_its_limit] + 0.2)
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def hangs_long(conditions: Conditions) -> dict[str, Any]:
    return hangs(conditions)


def tells_process(conditions: Conditions) -> dict[str, Any]:
    return {"process": os.getpid(), "is_broken": "broken" in sys.modules}


def finds_faults(conditions: Conditions) -> dict[str, Any]:
    return {"inner": {"failed": "inside"}, "other": [1], "lacking": {"unavailable": "no such chip"}, "cut": "half done"}


LIMITS = {hangs: 2.0, crashes_at_its_limit: 1.0}  # seconds


def listed(*measures: Callable[[Conditions], dict[str, Any]]) -> Callable[[str], list[Case]]:
    """The function `cases` of a stage that has these, in this order."""
    return lambda kind: [Case(measure.__name__, measure, LIMITS.get(measure, math.inf)) for measure in measures]
