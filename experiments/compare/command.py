"""Runs each model with and without inverted activations, and reports both side by side."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from ..common.environment import describe_environment
from ..common.errors import shown_as_one_line
from ..common.files import claim_folder, read_mapping, write_json
from ..common.locks import locked_folder
from ..common.masking import masked_command
from ..common.parser import Parser
from ..finetuning.results import divergence, finished_result
from .comparison import compare_model, diverged
from .plan import Experiment, Plan, PlannedRun, read_plan
from .report import summary_table, write_report
from .runs import announce, is_finished, log_of, progress_bars, train
from .workers import run_in_process

COMPARISON = "comparison.json"
PLAN = "plan.json"  # marks the folder as made by this script
_STEP_TIME = {"settings": dict, **dict.fromkeys(("ratio", "low", "high", "pairs"), (int, float))}


def compare(plan: Plan, command: str, console: Console) -> dict[str, Any]:
    """Run what is not finished yet, and write the report.

    Returns:
        The content of comparison.json.

    Raises:
        ConfigError: a file or value of the plan cannot be used, a finished run has other settings, or another
            comparison writes into the same folder.
        RunFailed: a run ended with an error. The earlier ones are kept.
    """
    claim_folder(plan.output_dir, PLAN)
    with locked_folder(plan.output_dir):
        return _compare(plan, command, console)


def _compare(plan: Plan, command: str, console: Console) -> dict[str, Any]:
    groups = [(experiment, plan.runs(experiment)) for experiment in plan.experiments]
    finished = {run.folder for _, group in groups for run in group if is_finished(run)}
    write_json(plan.output_dir / PLAN, {"title": plan.title, "command": command})
    models = []
    with progress_bars(console) as progress:
        for experiment, group in groups:
            for run in group:
                train(run, run.folder in finished, progress)
            step_time = _step_time(plan, experiment, group[0], progress)
            models.append(_model(experiment, plan, group, step_time))
    comparison = {
        "title": plan.title,
        "command": command,
        "environment": describe_environment(),
        "diverged": [line for model in models for line in diverged(model)],
        "models": models,
    }
    write_json(plan.output_dir / COMPARISON, comparison)
    write_report(comparison, plan.output_dir)
    console.print(summary_table(comparison))
    return comparison


def _step_time(plan: Plan, experiment: Experiment, plain: PlannedRun, progress: Progress) -> dict[str, Any]:
    """The step time, which is measured once and stored with its settings beside the runs."""
    path = plan.output_dir / "runs" / f"{experiment.name}-step-time.json"
    settings = plain.arguments().settings()
    known = read_mapping(path, _STEP_TIME)
    task = announce(progress, f"{experiment.title}, step time", total=1, note="")
    if known is None or known["settings"] != settings:
        progress.update(task, note="alternating steps")
        # In its own folder: a Trainer creates its output folder, and the run's folder is finished.
        folder = plan.output_dir / "runs" / f"{experiment.name}-step-time"
        argv = [*plain.argv, "--output_dir", str(folder)]
        known = {**run_in_process("step time", argv, log_of(folder), lambda done, total: None), "settings": settings}
        write_json(path, known)
    progress.update(task, completed=1, note="")
    return {key: known[key] for key in ("ratio", "low", "high", "pairs")}


def _model(experiment: Experiment, plan: Plan, group: list[PlannedRun], step_time: dict[str, Any]) -> dict[str, Any]:
    results = [(run, finished_result(run.folder)) for run in group]
    runs = [_row(run, result, plan) for run, result in results]
    plain, inverted = (next(r for run, r in results if run.variant == variant) for variant in ("plain", "inverted"))
    sites = sorted(inverted["patched"], key=lambda site: site["curve"] is None)  # inverted ones first
    return {
        "name": experiment.name,
        "title": experiment.title,
        "task": plain["settings"]["data"]["task"],
        "dtype": plain["dtype"],
        "parameters": plain["parameters"],
        "activation": sites[0]["activation"],
        "inverted": sum(site["curve"] is not None for site in sites),
        "seeds": list(plan.seeds),
        "data": plain["data"],
        "runs": runs,
        "comparison": compare_model(runs),
        "step_time": step_time,
    }


def _row(run: PlannedRun, result: dict[str, Any], plan: Plan) -> dict[str, Any]:
    copied = (
        "loss",
        "eval",
        "train_seconds",
        "step_seconds",
        "saved_bytes",
        "saved_parts",
        "intermediate_units",
        "peak_cuda_allocated_bytes",
        "peak_cuda_reserved_bytes",
    )
    folder = run.folder.relative_to(plan.output_dir).as_posix()
    copy = {key: result.get(key) for key in copied}
    return {"variant": run.variant, "seed": run.seed, "folder": folder, **copy, "diverged": divergence(result)}


@shown_as_one_line
def main(argv: Sequence[str]) -> int:
    """The script. Returns 2, after one line, for an error that the user can fix; 1 if a run failed or diverged."""
    parser = Parser(
        prog="scripts/compare.py",
        description="Fine-tune with and without inverted activations, and report both side by side. Other options "
        "(--max_steps 20, ...) are passed on to every run.",
        allow_abbrev=False,
    )
    parser.add_argument("config", type=Path, help="a comparison (configs/demo.yaml), or the config of one run")
    parser.add_argument("--output_dir", type=Path, help="where the report and the runs are written")
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="seeds to run; losses are compared with the spread between them"
    )
    console = Console()
    began = time.monotonic()
    options, overrides = parser.parse_known_args(argv)
    plan = read_plan(options.config, options.output_dir, options.seeds, overrides)
    comparison = compare(plan, masked_command(["python", "scripts/compare.py", *argv]), console)
    report = plan.output_dir / "report.html"
    console.print(f"Took {time.monotonic() - began:.0f} s. The report: {report}", highlight=False)
    if lines := comparison["diverged"]:
        print(f"error: the comparison is meaningless for trainings that diverged: {'; '.join(lines)}", file=sys.stderr)
    return 1 if lines else 0
