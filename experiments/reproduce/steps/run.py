"""Times whole training steps: plain, inverted, and with all alternatives, in turn in one process."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from rich.console import Console

from ...benchmark.operators.implementations import INVERTED
from ...benchmark.steps.measure import compare_variants
from ...benchmark.steps.variants import PLAIN
from ...benchmark.timing import Failure, failure_of
from ...common.environment import describe_environment
from ...common.errors import ConfigError
from ...common.files import read_mapping, write_atomically, write_json
from ...compare.steptime import steps_of
from .models import FULL, QUICK, StepModel
from .plots import png_of
from .variants import BASELINES, title

PART = "steps"
MUST_MATCH = ("environment", "settings")  # in a file that a run continues
SETTINGS = {"learning_rate": 0.0, "seed": 0}


class TimedModel(Protocol):
    """A model whose steps are timed."""

    @property
    def name(self) -> str:
        """In the results."""

    @property
    def title(self) -> str:
        """In tables and figures."""

    def settings(self) -> dict[str, Any]:
        """What decides the result, as JSON returns it."""


AnyModel = TypeVar("AnyModel", bound=TimedModel)


def run(folder: Path, quick: bool, console: Console, command: str) -> Path:
    """Write steps.json and its figure into the folder.

    Raises:
        ConfigError: as `time_models`.
    """
    return time_models(PART, QUICK if quick else FULL, folder, quick, console, command)


def time_models(
    part: str, models: tuple[StepModel, ...], folder: Path, quick: bool, console: Console, command: str
) -> Path:
    """Measure the models that are missing in the results of a part, and draw all of them.

    Returns:
        The path of the results.

    Raises:
        ConfigError: the results in the folder are damaged.
    """
    path = folder / f"{part}.json"
    settings = {**SETTINGS, "quick": quick}
    content: dict[str, Any] = {"command": command, "environment": describe_environment(), "settings": settings}
    entries = finished(path, content, models)
    folder.mkdir(parents=True, exist_ok=True)
    for number, model in enumerate(models, 1):
        heading = f"step time {number} of {len(models)}: {model.title}"
        if model.name in entries:
            _say(console, f"{heading}: finished before")
            continue
        _say(console, f"{heading} ...")
        began = time.monotonic()
        entries[model.name] = _entry(model)
        for line in _lines(entries[model.name]):
            _say(console, f"  {line}")
        _say(console, f"  took {time.monotonic() - began:.0f} s")
        content["entries"] = [entries[each.name] for each in models if each.name in entries]
        write_json(path, content)
    content["entries"] = [entries[model.name] for model in models]
    write_json(path, content)
    write_atomically(folder / f"{part}-time.png", png_of(content))
    return path


def finished(path: Path, content: dict[str, Any], models: Sequence[TimedModel]) -> dict[str, dict[str, Any]]:
    """The entries that were measured with the same settings in the same environment, by model."""
    before = read_mapping(path, {"settings": dict, "environment": dict, "entries": list})
    if before is None or any(before.get(key) != content[key] for key in MUST_MATCH):
        return {}
    asked = {model.name: model.settings() for model in models}
    return {
        entry["model"]: entry
        for entry in before["entries"]
        if "variants" in entry and entry["settings"] == asked.get(entry["model"])
    }


def _entry(model: StepModel) -> dict[str, Any]:
    return entry_of(model, _measured)


def entry_of(model: AnyModel, measure: Callable[[AnyModel], dict[str, Any]]) -> dict[str, Any]:
    """What was measured of a model, or why nothing was."""
    about = {"model": model.name, "title": model.title, "settings": model.settings()}
    try:
        return about | measure(model)
    except ConfigError as error:  # for example, the package with the weights is not installed
        return about | Failure(str(error), expected=True).record()
    except Exception as error:  # of any kind: the other measurements go on
        return about | failure_of(error).record()
    finally:
        torch._dynamo.reset()
        gc.collect()


def _measured(model: StepModel) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        training = steps_of(model.run(Path(folder)))
    variants = model.variants(training.model)
    # First only ours, whose turns then follow each other closely; then the others, some of which are slow.
    ours = {name: variant for name, variant in variants.items() if name == PLAIN or name.startswith(INVERTED)}
    others = {name: variant for name, variant in variants.items() if name == PLAIN or name not in ours}
    count, facts = compare_variants(training, ours, model.rounds)
    deadline = time.monotonic() + model.seconds
    other_count, other_facts = compare_variants(training, others, model.rounds, deadline, baselines=BASELINES)
    facts = {**other_facts, **facts}  # the time of plain is from its turns with ours
    return {
        "parameters": training.model.num_parameters(),
        "dtype": str(training.model.dtype).removeprefix("torch."),
        "batch": list(training.batch["input_ids"].shape),
        "data": training.data,
        "rounds": count,
        "other_rounds": other_count,
        "variants": {name: {"title": title(name), **facts[name]} for name in variants},
    }


def _lines(entry: dict[str, Any]) -> list[str]:
    if "variants" not in entry:
        return [entry.get("unavailable") or entry["failed"]]
    lines = []
    for facts in entry["variants"].values():
        if "ratio" in facts:
            ratio = facts["ratio"]
            found = f"{ratio['median']:.3f}x ({ratio['low']:.3f} to {ratio['high']:.3f})"
        elif "step_ms" in facts:
            found = f"{facts['step_ms']:,.1f} ms, {entry['rounds']} rounds"
        else:
            found = facts.get("unavailable") or facts["failed"]
        lines.append(f"{facts['title']}: {found}")
    return lines


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
