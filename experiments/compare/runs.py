"""Runs the runs of a plan that are not finished, each in its own process."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ..common.errors import ConfigError
from ..finetuning.arguments import first_difference
from ..finetuning.results import read_result
from .plan import PlannedRun
from .workers import run_in_process


def progress_bars(console: Console) -> Progress:
    """A bar for each run."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=console)


def announce(progress: Progress, label: str, total: int | None, note: str) -> TaskID:
    """Add a bar. Where bars cannot move (in a file or a CI log), they appear only at the end, so print a line now."""
    if not progress.console.is_terminal:
        print(f"{label}: {note}" if note else label, flush=True)
    return progress.add_task(label, total=total, note=note)


def is_finished(run: PlannedRun) -> bool:
    """Whether the run is finished, with the same settings.

    Raises:
        ConfigError: it was run with other settings, or its arguments are invalid.
    """
    asked = run.arguments().settings()
    result = read_result(run.folder)
    if result is None:
        return False
    if difference := first_difference(result["settings"], asked):
        key, value, wanted = difference
        raise ConfigError(
            f"{run.folder} holds a finished run with {key}={value!r}, but {wanted!r} is asked for; "
            "choose another --output_dir, or remove that folder to run it again"
        )
    return True


def train(run: PlannedRun, finished: bool, progress: Progress) -> None:
    """Run a run in its own process, and show its progress.

    Raises:
        ConfigError: its arguments cannot be used.
        RunFailed: it ended with an error.
    """
    label = f"{run.experiment.title}, {run.variant}, seed {run.seed}"
    task = announce(progress, label, total=None, note="finished before" if finished else "starting")
    if finished:
        progress.update(task, total=1, completed=1)
        return

    def advance(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total, note="training" if done < total else "evaluating")

    run_in_process("finetune", list(run.argv), log_of(run.folder), advance)
    if progress.tasks[task].total is None:  # an earlier start has trained it
        progress.update(task, total=1, completed=1)
    progress.update(task, note="")


def log_of(folder: Path) -> Path:
    """The file for a run's output, beside its folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder.with_name(f"{folder.name}.log")
