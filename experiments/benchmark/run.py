"""One run of the benchmark: what is measured in which order and in how much time, and the printed progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config as inductor

from .machine import describe_device, describe_versions
from .operators.implementations import INVERTED, NATIVE
from .operators.measure import OPERATORS, OperatorCase, measure_operator, operator_cases
from .results import FORMAT, Results
from .settings import OPERATORS_SHARE, Settings
from .steps.measure import measure_steps
from .steps.models import CASES, ModelCase
from .timing import failure_of, free_memory

FOLDER = Path("results")


def results_path(settings: Settings, device: torch.device) -> Path:
    """Where the results of a device are written, unless the command line names another file."""
    suffix = "-quick" if settings.quick else ""
    return FOLDER / f"benchmark-{describe_device(device)['slug']}{suffix}.json"


class Run:
    """Measures what is missing in a results file.

    Args:
        path: the file.
        minutes: no measurement starts after them.
        command: the command line, for the file.

    Raises:
        ConfigError: the file was measured on another device, is damaged, or holds something else.
    """

    def __init__(self, settings: Settings, device: torch.device, path: Path, minutes: float, command: str):
        self.settings, self.device, self.minutes = settings, device, minutes
        self.began = time.monotonic()
        self.operators = operator_cases(settings)
        self.models = CASES["quick" if settings.quick else device.type]
        header = {
            "format": FORMAT,
            "command": command,
            "device": describe_device(device),
            "environment": describe_versions(device),
            "settings": settings.plain(),
        }
        self.results = Results(path, header, {"operators": self._operator_place, "steps": self._model_place})

    def measure(self) -> list[str]:
        """Measure until the time is up. Returns a line for each failure and each missing measurement."""
        # On a CPU, the compiler's processes would slow down what is measured while they start.
        with inductor.patch(compile_threads=1) if self.device.type == "cpu" else nullcontext():
            return self._measure_all()

    def _measure_all(self) -> list[str]:
        self.say(f"{self.results.content['device']['name']}: {self.results.path}")
        if any(self.results.resumed.values()):
            counts = self.results.resumed
            self.say(f"continuing after {counts['operators']} operators, {counts['steps']} models")
        for number, case in enumerate(self.operators, 1):
            title = f"operator {number} of {len(self.operators)}: {case.operator} {case.dtype} {case.elements:,}"
            measure = partial(measure_operator, case, self.settings, self.device)
            self._measure("operators", case, title, self.ends(OPERATORS_SHARE), measure, _operator_line)
        for number, model in enumerate(self.models, 1):
            title = f"model {number} of {len(self.models)}: {model.title}"
            # The remaining models share the remaining time equally.
            now = time.monotonic()
            deadline = now + (self.ends() - now) / (len(self.models) - number + 1)
            measure = partial(measure_steps, model, self.settings, self.device, deadline)
            self._measure("steps", model, title, self.ends(), measure, _step_line)
        keys = [case.key for case in self.operators] + [case.key for case in self.models]
        missing = self.results.finish(keys)
        late = [f"not measured in {self.minutes:g} minutes: {' '.join(map(str, key.values()))}" for key in missing]
        return [*failures(self.results.content), *late]

    def ends(self, share: float = 1.0) -> float:
        """The value of `time.monotonic` at which this share of the time is over."""
        return self.began + 60 * self.minutes * share

    def say(self, line: str) -> None:
        """Print a line of progress."""
        print(f"[{time.monotonic() - self.began:4.0f} s] {line}", flush=True)

    def _measure(
        self,
        section: str,
        case: OperatorCase | ModelCase,
        title: str,
        deadline: float,
        measure: Callable[[], dict[str, Any]],
        line: Callable[[dict[str, Any]], str],
    ) -> None:
        if case.key in self.results or time.monotonic() > deadline:
            return
        try:
            entry = measure()
        except Exception as error:  # of any kind: the other measurements go on
            entry = {**case.key, **failure_of(error).record()}
        free_memory(self.device)
        self.results.add(section, entry)
        broken = entry.get("failed") or entry.get("unavailable")
        self.say(f"{title}: {broken or line(entry)}")

    def _operator_place(self, entry: dict[str, Any]) -> tuple[int, int, int]:
        return list(OPERATORS).index(entry["operator"]), self.settings.dtypes.index(entry["dtype"]), entry["elements"]

    def _model_place(self, entry: dict[str, Any]) -> int:
        return [case.model for case in self.models].index(entry["model"])


def failures(content: dict[str, Any]) -> list[str]:
    """One line for each failure in a results file that is not a limit of the machine."""
    lines = []
    for entry in (*content["operators"], *content["steps"]):
        name = " ".join(str(entry[key]) for key in ("operator", "model", "dtype", "elements") if key in entry)
        parts: dict[str, dict[str, Any]] = {"": entry, **entry.get("variants", {})}
        for direction in ("forward", "backward", "autograd"):
            found = entry.get(direction, {}).get("implementations", {})
            parts |= {f"{direction} {key}": value for key, value in found.items()}
        lines += [f"{name} {key}".strip() + f": {part['failed']}" for key, part in parts.items() if "failed" in part]
    return lines


def _operator_line(entry: dict[str, Any]) -> str:
    parts = []
    for direction in ("forward", "backward"):
        found = entry[direction]["implementations"]
        name = next((name for name in found if name.startswith(INVERTED) and "ms" in found[name]), None)
        if name is not None:
            share, ratio = found[name]["copy_share"], found[name][f"ratio_to_{NATIVE}"]
            parts.append(f"{direction} {found[name]['ms']:.3g} ms")
            parts[-1] += "" if share is None else f", {share:.0%} of the copy"
            parts[-1] += "" if ratio is None else f", {ratio:.2f}x PyTorch"
    return "; ".join(parts)


def _step_line(entry: dict[str, Any]) -> str:
    parts = []
    for name, facts in entry["variants"].items():
        if "ratio" in facts:
            parts.append(f"{name} {facts['ratio']['median']:.3f}x")
        elif "step_ms" in facts:
            parts.append(f"{name} {facts['step_ms']:.1f} ms")
    return ", ".join(parts)
