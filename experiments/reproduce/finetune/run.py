"""Fine-tunes each subject with several seeds, plain, inverted and as a control; and with other methods.

With adapters, also with their inputs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from hf_invact.display.figures import png

from ...common.environment import describe_environment
from ...common.errors import ConfigError, RunFailed
from ...common.files import write_atomically, write_json
from ...compare.plan import PlannedRun
from ...compare.runs import is_finished, progress_bars, train
from ...finetuning.pretrained import find_pretrained
from ...finetuning.results import divergence, finished_result
from ..subjects import QUICK_SUBJECTS, SUBJECTS, Subject
from .analysis import analyse
from .plots import methods_figure, subject_figure

PART = "finetune"
_COPIED = ("eval", "saved_bytes", "intermediate_units", "peak_cuda_allocated_bytes")
_SHARED = ("dtype", "parameters", "data", "environment")


def run(folder: Path, quick: bool, console: Console, command: str) -> Path:
    """Run what is not finished, and write finetune.json and its plots into the folder.

    Raises:
        ConfigError, RunFailed: as `train_subjects`.
    """
    return train_subjects(PART, QUICK_SUBJECTS if quick else SUBJECTS, folder, console, command)


def train_subjects(part: str, subjects: Sequence[Subject], folder: Path, console: Console, command: str) -> Path:
    """Run what is not finished, and write the part's JSON file and its plots into the folder.

    Raises:
        ConfigError: a config cannot be used, or a finished run has other settings.
        RunFailed: a run ended with an error. The earlier ones are kept.
    """
    missing = {subject.name: why for subject in subjects if (why := _why_not(subject))}
    groups = [(subject, subject.runs(folder)) for subject in subjects if subject.name not in missing]
    finished = {planned.folder for _, group in groups for planned in group if is_finished(planned)}
    folder.mkdir(parents=True, exist_ok=True)
    models = []
    with progress_bars(console) as progress:
        for subject, group in groups:
            for planned in group:
                train(planned, planned.folder in finished, progress)
            models.append(_model(subject, group))
            _write_plots(folder, part, models[-1])
    result = {
        "command": command,
        "environment": describe_environment(),
        "settings": {"seeds": {subject.name: list(subject.seeds) for subject, _ in groups}},
        "models": models,
        "left_out": [
            {"title": subject.title, "why": missing[subject.name]} for subject in subjects if subject.name in missing
        ],
    }
    write_json(folder / f"{part}.json", result)
    return folder / f"{part}.json"


def _why_not(subject: Subject) -> str | None:
    """Why a subject cannot be run here (the package with its weights is missing); None if it can."""
    name = subject.runs(Path())[0].arguments().model.model_name_or_path
    if name is None:
        return None
    try:
        find_pretrained(name)
    except ConfigError as error:
        return str(error)
    return None


def _model(subject: Subject, group: Sequence[PlannedRun]) -> dict[str, Any]:
    results = [(planned, finished_result(planned.folder)) for planned in group]
    first = results[0][1]
    for planned, result in results:
        if how := divergence(result):
            raise RunFailed(f"the training in {planned.folder} diverged: {how}")
    runs = [_row(planned, result) for planned, result in results]
    inverted = next(result for planned, result in results if planned.variant == "inverted")
    return {
        "name": subject.name,
        "title": subject.title,
        "config": str(subject.config),
        "task": first["settings"]["data"]["task"],
        "seeds": list(subject.seeds),
        **{key: first[key] for key in _SHARED},
        "patched": sum(1 for site in inverted["patched"] if site["curve"]),
        "gradients": first["gradients"],
        "analysis": analyse(runs),
        "runs": runs,
    }


def _row(planned: PlannedRun, result: dict[str, Any]) -> dict[str, Any]:
    losses = {entry["step"]: entry["loss"] for entry in result["loss"]}
    copied = {key: result.get(key) for key in _COPIED}
    row = {"variant": planned.variant, "seed": planned.seed, **copied}
    return {**row, "steps": list(losses), "losses": list(losses.values())}


def _write_plots(folder: Path, part: str, model: dict[str, Any]) -> None:
    write_atomically(folder / f"{part}-{model['name']}.png", png(subject_figure(model)))
    if model["analysis"]["methods"]:
        write_atomically(folder / f"{part}-{model['name']}-methods.png", png(methods_figure(model)))
