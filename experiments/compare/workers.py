"""Runs each run in its own process, so that its memory peaks are its own, and reports progress to the parent.

Where the system allows it, the processes are forked from a server that has already imported the large packages.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..common.errors import ConfigError, RunFailed
from ..common.masking import masked_text
from ..finetuning.arguments import parse_run
from ..finetuning.run import finetune
from .steptime import measure_step_time

Progress = Callable[[int, int], None]

_SECONDS_TO_END = 10  # seconds that a process has to clean up

_START_METHOD = (
    "forkserver" if sys.platform == "linux" else "spawn"
)  # the system libraries of macOS do not survive a fork


def run_in_process(job: str, argv: list[str], log: Path, progress: Progress) -> Any:
    """Run a job of `JOBS` in a new process.

    Args:
        job: name of the job.
        argv: the run's arguments, for `parse_run`.
        log: the file for the process's output.
        progress: called with the number of finished steps and of all steps. Our own warnings are printed.

    Returns:
        What the job returned.

    Raises:
        ConfigError: the job raised it.
        RunFailed: the job raised something else, or the process was killed.
    """
    context = multiprocessing.get_context(_START_METHOD)
    if _START_METHOD == "forkserver":
        context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, argv, log, sender))  # type: ignore[attr-defined]  # all contexts have it
    process.start()
    sender.close()
    try:
        outcome = _listen(receiver, progress, log)
    except RunFailed:
        process.join()  # it is ending by itself
        raise
    except BaseException:
        for _ in range(_SECONDS_TO_END):
            process.terminate()  # repeatedly, since the interrupted code may catch the exception
            process.join(1)
            if not process.is_alive():
                break
        process.kill()
        process.join()
        raise
    process.join()
    return outcome


def _listen(receiver: Connection, progress: Progress, log: Path) -> Any:
    while True:
        try:
            kind, content = receiver.recv()
        except EOFError:
            raise RunFailed(f"the process was killed; its output is in {log}") from None
        if kind == "progress":
            progress(*content)
        elif kind == "warning":
            print(f"warning: {content}", file=sys.stderr)
        elif kind == "result":
            return content
        elif kind == "config error":
            raise ConfigError(content)
        else:
            raise RunFailed(f"{content}; the whole output is in {log}")


def _work(job: str, argv: list[str], log: Path, sender: Connection) -> None:
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    with open(log, "wb", buffering=0) as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    logging.getLogger("experiments").addHandler(_ToParent(sender))
    try:
        sender.send(("result", JOBS[job](argv, sender)))
    except ConfigError as error:
        sender.send(("config error", str(error)))
    except Exception as error:  # of any kind: the parent reports it
        sender.send(("error", masked_text(f"{type(error).__name__}: {error}")))
        print(masked_text(traceback.format_exc()), file=sys.stderr)
        raise SystemExit(1) from error


class _ToParent(logging.Handler):
    """Sends warnings to the parent, since nobody reads the log of a run that ends well."""

    def __init__(self, sender: Connection) -> None:
        super().__init__(logging.WARNING)
        self.sender = sender

    def emit(self, record: logging.LogRecord) -> None:
        self.sender.send(("warning", self.format(record)))


def _exit_on_sigterm(signal_number: int, frame: FrameType | None) -> None:
    """End by an exception, so that locks and semaphores are released."""
    raise SystemExit(1)


def _die_with_parent() -> None:
    """Exit as soon as the parent is killed, so that nothing writes into its folders any more."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("a worker must be started by multiprocessing")

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _ReportSteps(TrainerCallback):
    def __init__(self, sender: Connection) -> None:
        self.sender = sender

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.sender.send(("progress", (state.global_step, state.max_steps)))


def _finetune(argv: list[str], sender: Connection) -> None:
    finetune(parse_run(argv), callbacks=[_ReportSteps(sender)])


def _step_time(argv: list[str], sender: Connection) -> dict[str, Any]:
    return measure_step_time(parse_run(argv))


JOBS: dict[str, Callable[[list[str], Connection], Any]] = {"finetune": _finetune, "step time": _step_time}
