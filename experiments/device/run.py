"""Runs the stages one after the other, each in its share of the time, whatever becomes of the others."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import ConfigError
from .document import CUT, DONE, FAILED, MEASURED, NO_TIME, NOT_RUN, RUNNING, UNAVAILABLE, Document
from .process import TimeIsOver, Worker
from .stages import Stage

GRACE = 4.0  # seconds from a case's limit until it is killed, in which it writes where it hangs
TO_END = 1.0  # seconds to end in after the last stage
PASSES = 2  # the second takes up what the first left out, in the time that others did not need


@dataclass(frozen=True)
class Options:
    """Of a run.

    Attributes:
        device: its name; None takes a CUDA device if there is one.
        minutes: in which everything has ended.
        seed: of random weights and inputs.
        only: names of stages; all where it is empty.
        output: the file; None chooses one by the device's name.
        command: as the file tells it.
    """

    device: str | None
    minutes: float
    seed: int
    only: tuple[str, ...]
    output: Path | None
    command: str


class Run:
    """Measures what the options say.

    Args:
        stages: all that there are, the most important first.
    """

    def __init__(self, stages: Sequence[Stage], options: Options) -> None:
        self.options, self.began = options, time.monotonic()
        self.ends = self.began + 60 * options.minutes - GRACE - TO_END
        chosen = options.only or tuple(stage.name for stage in stages)
        header = {"command": options.command, "minutes": options.minutes, "settings": {"seed": options.seed}}
        self.document = Document(stages, chosen, header, options.output)
        self.stages = [stage for stage in stages if stage.name in chosen]

    def measure(self) -> dict[str, Any]:
        """Measure as far as the time goes.

        Returns:
            The content of the file.

        Raises:
            ConfigError: the device is not there, or the file is of another one.
        """
        try:
            for _ in range(PASSES):
                waiting = [stage for stage in self.stages if self.document.has_left(stage)]
                for number, stage in enumerate(waiting):
                    shares = sum(each.share for each in waiting[number:])
                    now = time.monotonic()
                    if now < self.ends:
                        self._run(stage, now + (self.ends - now) * stage.share / shares)
        except ConfigError:
            raise
        except BaseException:  # Ctrl-C above all
            self._close("interrupted")
            raise
        self._close(NO_TIME)
        return self.document.content

    def say(self, line: str) -> None:
        """Print a line of progress."""
        print(f"[{time.monotonic() - self.began:4.0f} s] {line}", flush=True)

    def _close(self, reason: str) -> None:
        document = self.document
        for stage in self.stages:
            entry = document.stages[stage.name]
            if document.has_left(stage) or entry["state"] == RUNNING:
                document.set_stage(stage, CUT if entry["cases"] else NOT_RUN, reason=reason)
                for name in document.left(stage):
                    document.set_case(stage, name, NOT_RUN, reason=reason)
        document.close(time.monotonic() - self.began)

    def _run(self, stage: Stage, deadline: float) -> None:
        """Run a stage until it is done or its time is over, in a new process after each that died."""
        began, entry = time.monotonic(), self.document.stages[stage.name]
        before = entry["seconds"]
        self.say(f"{stage.name}: {stage.title} ({deadline - began:.0f} s)")
        self.document.set_stage(stage, RUNNING, reason=None)
        state, facts = CUT, dict[str, Any](reason=NO_TIME)
        while time.monotonic() < deadline:
            finished = self.document.finished(stage)
            with Worker(self._request(stage, finished, deadline)) as worker:
                fault = self._watch(stage, worker, deadline)
                died = {"reason": fault, "output": worker.output()}
            if entry["cases"] and not self.document.left(stage):
                state, facts = DONE, {"reason": None}
                break
            if self.document.finished(stage) == finished:  # the next process would get no further
                if fault:
                    state, facts = FAILED, died
                break
        seconds = round(before + time.monotonic() - began, 1)
        self.document.set_stage(stage, state, seconds=seconds, **facts)
        if state != DONE:
            self.say(f"{stage.name}: {state}: {facts['reason']}")

    def _request(self, stage: Stage, finished: list[str], deadline: float) -> dict[str, Any]:
        return {
            "module": stage.module,
            "done": finished,
            "device": self.options.device,
            "seed": self.options.seed,
            "deadline": deadline,
        }

    def _watch(self, stage: Stage, worker: Worker, deadline: float) -> str | None:
        """Write down what a worker reports until it ends, or is to be killed; why it died, unless during a case."""
        current: str | None = None
        until = deadline + GRACE
        began = time.monotonic()
        try:
            while (message := worker.receive(until)) is not None:
                if "begin" in message:
                    current, began = str(message["begin"]), time.monotonic()
                    until = message["limit"] + GRACE
                    self.document.set_case(stage, current, RUNNING)
                elif "end" in message:
                    self._finish(stage, message)
                    current, until = None, deadline + GRACE
                elif "cases" in message:
                    self.document.list_cases(stage, message["cases"])
                elif "machine" in message:
                    self.document.describe(message["machine"])
                else:
                    raise ConfigError(message["refused"])
            # Writing where it hangs, from another thread at its limit, may itself crash it.
            is_over = current is not None and time.monotonic() >= until - GRACE
            state, fault = CUT if is_over else FAILED, worker.fault()
        except TimeIsOver:
            state, fault = CUT, None
        if current is None:
            return fault
        seconds = round(time.monotonic() - began, 2)
        reason = f"killed after {seconds:.0f} s, more than its limit" if state == CUT else fault or "it ended early"
        self._finish(stage, {"end": current, "seconds": seconds, state: reason, "output": worker.output()})
        return None

    def _finish(self, stage: Stage, message: dict[str, Any]) -> None:
        """Write down what a case came to."""
        name, seconds = message.pop("end"), message["seconds"]
        state, reason = MEASURED, ""
        for key in (FAILED, UNAVAILABLE, CUT):
            if key in message:
                state, reason = key, message.pop(key)
                message["reason"] = reason
        self.document.set_case(stage, name, state, **message)
        self.say(f"{stage.name}, {name}: {seconds:.1f} s{reason and f': {reason}'}")
