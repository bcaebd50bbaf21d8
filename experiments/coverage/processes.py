"""Checks each model type in its own process, because some hang and some crash."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from .check import Coverage, check
from .errors import brief

Check = Callable[[str], Coverage]


@dataclass(frozen=True)
class _Running:
    model_type: str
    process: Any
    ends: float


def check_all(
    model_types: Iterable[str], *, seconds: float, jobs: int | None = None, check: Check = check
) -> Iterator[Coverage]:
    """The result of `check` for each model type, in the order in which they end; or that it timed out or crashed.

    Processes are forked, so that they need not import everything again.

    Args:
        model_types: of Transformers.
        seconds: the limit for each.
        jobs: how many run at once; the number of cores by default.
        check: called in each process.
    """
    waiting = list(reversed(list(model_types)))
    running: dict[Connection, _Running] = {}
    while waiting or running:
        while waiting and len(running) < (jobs or os.cpu_count() or 1):
            receiver, started = _start(check, waiting.pop(), seconds)
            running[receiver] = started
        next_end = min(each.ends for each in running.values())
        ready = set(wait(list(running), timeout=max(0.0, next_end - time.monotonic())))
        for receiver, each in list(running.items()):
            if receiver in ready or each.ends <= time.monotonic():
                del running[receiver]
                yield _finish(receiver, each, seconds, in_time=receiver in ready)


def _start(check: Check, model_type: str, seconds: float) -> tuple[Connection, _Running]:
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_send, args=(check, model_type, sender), daemon=True)
    process.start()
    sender.close()
    return receiver, _Running(model_type, process, time.monotonic() + seconds)


def _finish(receiver: Connection, running: _Running, seconds: float, *, in_time: bool) -> Coverage:
    try:
        if not in_time:
            return Coverage(running.model_type, reason=f"takes more than {seconds:g} s")
        found: Coverage = receiver.recv()
        return found
    except EOFError:
        running.process.join()
        return Coverage(running.model_type, reason=f"its process died (exit code {running.process.exitcode})")
    finally:
        receiver.close()
        running.process.kill()
        running.process.join()


def _send(check: Check, model_type: str, sender: Connection) -> None:
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # warnings about configs that are never trained
    try:
        sender.send(check(model_type))
    except Exception as error:  # a patched model may raise anything, and the result must show it
        sender.send(Coverage(model_type, error=f"{type(error).__name__}: {brief(error)}"))
