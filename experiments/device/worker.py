"""The process that measures the cases of one stage, and reports each to the process that started it.

It writes messages to a pipe, one JSON object per line:

- ``{"machine": {"device": ..., "environment": ...}}`` and ``{"cases": [names]}``, once;
- ``{"begin": name, "limit": t}``: a case has begun, and is to be killed when `time.monotonic` has passed the limit;
- ``{"end": name, "seconds": s, ...}``: with what was found, or why nothing was;
- ``{"refused": message}`` instead of all this, where the device is not there.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

import torch
import torch._inductor.config as inductor
import transformers

from ..benchmark.machine import choose_device, describe_device, describe_versions
from ..benchmark.timing import failure_of, free_memory, synchronize
from ..common.errors import ConfigError
from .case import Case, Conditions

Send = Callable[[dict[str, Any]], None]
TRACEBACK_LINES = 12
SHORT = 20.0  # seconds that any case may take while the stage has them


def main(request: Mapping[str, Any]) -> None:
    """Measure what is left of a stage.

    Args:
        request: "pipe" is the file descriptor for messages, "module" the stage's module, "done" the names of the cases
            to leave out, "device" its name or None, "seed", and "deadline", after which no case begins.
    """
    _end_with_parent()
    faulthandler.enable()
    os.set_inheritable(request["pipe"], False)
    pipe = os.fdopen(request["pipe"], "w", buffering=1)

    def send(message: dict[str, Any]) -> None:
        pipe.write(json.dumps(message, default=str) + "\n")

    try:
        device = choose_device(request["device"])
    except ConfigError as error:
        send({"refused": str(error)})
        return
    _prepare(device)
    send({"machine": {"device": describe_device(device), "environment": describe_versions(device)}})
    cases: list[Case] = import_module(request["module"]).cases(device.type)
    send({"cases": [case.name for case in cases]})
    _measure_all([case for case in cases if case.name not in request["done"]], device, request, send)


def _prepare(device: torch.device) -> None:
    transformers.utils.logging.set_verbosity_error()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        inductor.compile_threads = 1  # the compiler's own processes would compete with what is measured


def _measure_all(cases: list[Case], device: torch.device, request: Mapping[str, Any], send: Send) -> None:
    for number, case in enumerate(cases):
        now, left = time.monotonic(), len(cases) - number
        remaining = request["deadline"] - now
        if remaining <= 0:
            return
        # A case should take its part of the time that is left. One that hangs costs half of it, if that is long.
        longest = remaining if left == 1 else min(remaining, max(remaining / 2, SHORT))
        limit = now + min(longest, case.seconds)
        send({"begin": case.name, "limit": limit})
        faulthandler.dump_traceback_later(limit - now)  # shows where it hangs
        outcome = _outcome(case, Conditions(device, request["seed"], now + remaining / left))
        faulthandler.cancel_dump_traceback_later()
        send({"end": case.name, "seconds": round(time.monotonic() - now, 2), **outcome})
        if "failed" in outcome:
            return  # it may have broken the device's context: the next case gets a new process


def _outcome(case: Case, conditions: Conditions) -> dict[str, Any]:
    try:
        found = case.measure(conditions)
        synchronize(conditions.device)  # raises what kernels did
        outcome: dict[str, Any] = {"found": found}
    except Exception as error:  # of whatever kind: it must not cost the results of the others
        lines = traceback.format_exc().splitlines()
        outcome = {**failure_of(error).record(), "output": lines[-TRACEBACK_LINES:]}
    with suppress(Exception):  # where the device is broken, which has been said
        free_memory(conditions.device)
    return outcome


def _end_with_parent() -> None:
    """End, with all that was started here, as soon as the parent has: its end of standard input closes then."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
