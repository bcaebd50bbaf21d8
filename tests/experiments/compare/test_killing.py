"""Comparisons that are killed, as by a crash of the machine, and run again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from experiments.common.files import read_json
from experiments.compare.command import main
from tests.experiments.small import alive_after, contents, write_config

SCRIPT = Path(__file__).parents[3] / "scripts" / "compare.py"
TIMES = {"train_seconds", "step_seconds"}


def write_plan(folder: Path) -> Path:
    write_config(folder, "bert", name="bert.yaml", max_steps=4)
    values = {
        "output_dir": str(folder / "out"),
        "seeds": [0],
        "experiments": [{"name": "bert", "config": "bert.yaml"}],
    }
    plan = folder / "plan.yaml"
    plan.write_text(yaml.safe_dump(values))
    return plan


def count(folder: Path, name: str) -> int:
    return len(list(folder.glob(f"out/runs/*/{name}")))


def start(plan: Path) -> subprocess.Popen[bytes]:
    with open(plan.parent / "output.txt", "wb") as output:
        return subprocess.Popen([sys.executable, str(SCRIPT), str(plan)], stdout=output, stderr=output)


def kill_when(plan: Path, reached: Callable[[], bool], delay: float) -> list[psutil.Process]:
    """Start the comparison, kill it at that moment, and return the processes that it had started."""
    process = start(plan)
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, (plan.parent / "output.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return children


def without_times(comparison: dict[str, Any]) -> dict[str, Any]:
    (model,) = comparison["models"]
    runs = [{key: value for key, value in run.items() if key not in TIMES} for run in model["runs"]]
    return {key: value for key, value in model.items() if key != "step_time"} | {"runs": runs}


@pytest.mark.slow
def test_a_killed_comparison_ends_as_one_that_was_not(tmp_path):
    folder, chance = tmp_path / "killed", random.Random(0)
    plan = write_plan(folder)
    moments = {
        "one run is finished and another has begun": lambda: (
            count(folder, "settings.json") > count(folder, "run.json") >= 1
        ),
        "the report is being written": lambda: (folder / "out/comparison.json").exists(),
    }
    for moment, reached in moments.items():
        finished = {path: path.stat().st_mtime_ns for path in folder.glob("out/runs/*/run.json")}
        children = kill_when(plan, reached, chance.uniform(0, 0.1))
        assert alive_after(children, 5) == [], moment
        before = contents(folder)
        time.sleep(0.2)
        assert contents(folder) == before, moment
        # Finished runs are complete, and are not run again.
        assert all(path.stat().st_mtime_ns == written for path, written in finished.items()), moment
        assert all(len(read_json(path)["loss"]) == 4 for path in folder.glob("out/runs/*/run.json")), moment
    assert not (folder / "out/report.html").exists()
    assert start(plan).wait(timeout=120) == 0, (folder / "output.txt").read_text()
    assert (folder / "out/report.html").exists()

    assert main([str(write_plan(tmp_path / "whole"))]) == 0
    killed, whole = (read_json(tmp_path / name / "out/comparison.json") for name in ("killed", "whole"))
    for comparison in (killed, whole):
        comparison["models"][0]["data"].pop("name")  # the text's path
    assert without_times(killed) == without_times(whole)
