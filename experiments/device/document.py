"""The file of the results: whole after each finding, with the reason for everything that it does not hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import ConfigError
from ..common.files import read_json, write_json
from .stages import Stage

FORMAT = 1
FOLDER = Path("results")
NOT_RUN, RUNNING, DONE, CUT, FAILED = "not run", "running", "done", "cut", "failed"
MEASURED, UNAVAILABLE = "measured", "unavailable"
_OUTCOMES = (MEASURED, UNAVAILABLE, FAILED, CUT)  # of a case
NOT_REACHED = "not reached"
NO_TIME = "its time was over"
_SAME = ("format", "device", "environment", "settings")  # in a file whose other stages are kept


class Document:
    """What was found so far.

    Args:
        stages: all that there are.
        chosen: the names of those that are run. The others keep what the file has of them, if it was made alike.
        header: "command", "minutes" and "settings", as plain data.
        path: the file; None chooses one by the device's name.
    """

    def __init__(
        self, stages: Sequence[Stage], chosen: Sequence[str], header: dict[str, Any], path: Path | None
    ) -> None:
        self.path, self._chosen = path, list(chosen)
        self.stages: dict[str, dict[str, Any]] = {
            stage.name: {
                "stage": stage.name,
                "title": stage.title,
                "state": NOT_RUN,
                "reason": NOT_REACHED if stage.name in chosen else f"not chosen: --only {' '.join(chosen)}",
                "seconds": 0.0,
                "cases": [],
            }
            for stage in stages
        }
        self.content: dict[str, Any] = {
            "format": FORMAT,
            "device": None,
            "environment": None,
            **header,
            "seconds": 0.0,
            "complete": False,
            "stages": list(self.stages.values()),
        }

    def describe(self, machine: dict[str, Any]) -> None:
        """Say which device it is, once that is known.

        Raises:
            ConfigError: stages of the file would be lost, and cannot be kept since it is of another device or version.
        """
        if self.content["device"] is not None:
            return
        self.content |= machine
        if self.path is None:
            self.path = FOLDER / f"device-{machine['device']['slug']}.json"
        if len(self._chosen) < len(self.stages):
            self._keep_others(read_json(self.path))
        self.write()

    def _keep_others(self, before: Any) -> None:
        if before is None:
            return
        if not isinstance(before, dict) or any(before.get(key) != self.content[key] for key in _SAME):
            raise ConfigError(
                f"{self.path} was measured with another device, other versions or settings, and --only would mix them; "
                "choose another file with --output"
            )
        for entry in before["stages"]:
            if entry["stage"] in self.stages and entry["stage"] not in self._chosen:
                self.stages[entry["stage"]].update(entry)

    def list_cases(self, stage: Stage, names: Sequence[str]) -> None:
        """Say which cases a stage has."""
        entry = self.stages[stage.name]
        known = {case["case"] for case in entry["cases"]}
        entry["cases"] += [
            {"case": name, "state": NOT_RUN, "reason": NOT_REACHED} for name in names if name not in known
        ]
        self.write()

    def set_case(self, stage: Stage, name: str, state: str, **facts: Any) -> None:
        """Say what became of a case."""
        (entry,) = (case for case in self.stages[stage.name]["cases"] if case["case"] == name)
        entry.clear()
        entry.update({"case": name, "state": state, **facts})
        self.write()

    def set_stage(self, stage: Stage, state: str, **facts: Any) -> None:
        """Say what became of a stage: its "reason" where it is not done, and other facts."""
        self.stages[stage.name].update({"state": state, **facts})
        self.write()

    def finished(self, stage: Stage) -> list[str]:
        """The cases of a stage that have an outcome."""
        return [case["case"] for case in self.stages[stage.name]["cases"] if case["state"] in _OUTCOMES]

    def left(self, stage: Stage) -> list[str]:
        """The cases that are known and have none."""
        return [case["case"] for case in self.stages[stage.name]["cases"] if case["state"] not in _OUTCOMES]

    def has_left(self, stage: Stage) -> bool:
        """Whether there is something left to be measured in a stage."""
        return self.stages[stage.name]["state"] in (NOT_RUN, CUT)

    def close(self, seconds: float) -> None:
        """Say how long all of it took, and whether everything was measured.

        Where no process came to say which device it is, that is written as well, but over no earlier file.
        """
        self.content["seconds"] = round(seconds, 1)
        self.content["complete"] = all(entry["state"] == DONE for entry in self.stages.values())
        if self.content["device"] is None and (self.path is None or self.path.exists()):
            self.path = FOLDER / "device-unknown.json"
        self._write()

    def write(self) -> None:
        """Replace the file, once the device is known. Until then an earlier file stays as it is."""
        if self.content["device"] is not None:
            self._write()

    def _write(self) -> None:
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.content)


def faults(content: dict[str, Any]) -> list[str]:
    """One line for each thing in a file of results that failed."""
    return [line for stage in content["stages"] for line in _lines(stage, (FAILED,), "failed")]


def gaps(content: dict[str, Any]) -> list[str]:
    """One line for each thing that was not measured, and why."""
    lines: list[str] = []
    for stage in content["stages"]:
        lines += _lines(stage, (NOT_RUN, UNAVAILABLE, CUT), "cut")
        lacking = Counter(what for case in stage["cases"] for _, what in _marked("unavailable", case.get("found")))
        lines += [f"{stage['stage']}, {count} times: {what}" for what, count in lacking.items()]
    return lines


def _lines(stage: dict[str, Any], states: Collection[str], mark: str) -> Iterator[str]:
    """One line for a stage and each of its cases in one of the states, and for what is so marked in what was found."""
    if stage["state"] in states:
        yield f"{stage['stage']}: {stage['reason']}"
    for case in stage["cases"]:
        name = f"{stage['stage']}, {case['case']}"
        if case["state"] in states:
            yield f"{name}: {case['reason']}"
        yield from (f"{name}{where}: {what}" for where, what in _marked(mark, case.get("found")))


def _marked(mark: str, found: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Where nested data has a mapping with this key, and the key's value."""
    if isinstance(found, dict):
        if mark in found:
            yield where, str(found[mark])
        for key, value in found.items():
            yield from _marked(mark, value, f"{where}, {key}")
