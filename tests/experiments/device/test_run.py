"""What a run leaves in its file when parts of it die, hang, or do not fit into the time."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from experiments.device import command, run
from experiments.device.command import main
from experiments.device.stages import Stage
from tests.experiments.small import alive_after

pytestmark = pytest.mark.slow  # each worker imports PyTorch

ROOT = Path(__file__).parents[3]
Make = Callable[..., Stage]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a stage of functions of `misbehaving`, by name, as a module that the worker imports."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def stage(name: str, *cases: str, share: float = 1.0) -> Stage:
        source = f"from tests.experiments.device.misbehaving import *\ncases = listed({', '.join(cases)})\n"
        (tmp_path / f"stage_{name}.py").write_text(source)
        return Stage(name, f"the stage {name}", f"stage_{name}", share)

    return stage


def measured(path: Path, *stages: Stage, minutes: float = 8.0, only: tuple[str, ...] = (), code: int = 0) -> Any:
    """The file of a run, as cases by stage and name."""
    options = ["--device", "cpu", "--minutes", str(minutes), "--output", str(path), "--seed", "7"]
    assert main([*options, *(["--only", *only] if only else [])], stages) == code
    return read(path)


def read(path: Path) -> Any:
    content = json.loads(path.read_text())
    for stage in content["stages"]:
        stage["cases"] = {case["case"]: case for case in stage["cases"]}
    return content | {"stages": {stage["stage"]: stage for stage in content["stages"]}}


def states(content: Any) -> dict[str, Any]:
    return {
        name: (stage["state"], {case: entry["state"] for case, entry in stage["cases"].items()})
        for name, stage in content["stages"].items()
    }


def test_what_dies_costs_no_other_case(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make("first", "works", "is_killed", "crashes", "leaves", "raises", "is_full", "tells_process")
    content = measured(tmp_path / "out" / "d.json", first, make("second", "finds_faults"), code=1)
    dead = dict.fromkeys(("is_killed", "crashes", "leaves", "raises"), "failed")
    expected = {"works": "measured", **dead, "is_full": "unavailable", "tells_process": "measured"}
    assert states(content) == {"first": ("done", expected), "second": ("done", {"finds_faults": "measured"})}
    cases = content["stages"]["first"]["cases"]
    assert cases["works"]["found"].items() >= {"seed": 7, "device": "cpu"}.items()
    reasons = {name: cases[name]["reason"] for name in expected if "reason" in cases[name]}
    assert reasons == {
        "is_killed": "it was killed by SIGKILL",
        "crashes": "it was killed by SIGSEGV",
        "leaves": "it ended early",
        "raises": "ZeroDivisionError: as it should",
        "is_full": "out of memory: CUDA out of memory",
    }
    assert cases["tells_process"]["found"]["is_broken"] is False  # as it was in the process of "raises"
    assert cases["is_killed"]["output"] == ["about to die"]
    assert any("in crashes" in line for line in cases["crashes"]["output"])
    assert cases["raises"]["output"][-1] == "ZeroDivisionError: as it should"
    printed = capsys.readouterr()
    assert "failed: first, crashes: it was killed by SIGSEGV" in printed.err.splitlines()
    assert "failed: second, finds_faults, inner: inside" in printed.err.splitlines()
    assert [line for line in printed.out.splitlines() if line.startswith("not")] == [
        "not measured: first, is_full: out of memory: CUDA out of memory",
        "not measured: second, finds_faults: half done",
        "not measured: second, 1 times: no such chip",
    ]
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "d.json"]


def test_what_crashes_at_its_limit_is_cut(make: Make, tmp_path: Path) -> None:
    content = measured(tmp_path / "d.json", make("late", "crashes_at_its_limit", "works"))
    assert states(content) == {"late": ("done", {"crashes_at_its_limit": "cut", "works": "measured"})}


def test_what_hangs_is_killed_with_all_that_it_started(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "GRACE", 1.0)
    content = measured(tmp_path / "d.json", make("hanging", "hangs", "works"), make("next", "works"))
    assert states(content) == {
        "hanging": ("done", {"hangs": "cut", "works": "measured"}),
        "next": ("done", {"works": "measured"}),
    }
    case = content["stages"]["hanging"]["cases"]["hangs"]
    assert re.fullmatch(r"killed after \d+ s, more than its limit", case["reason"])
    assert any("misbehaving.py" in line and "in hangs" in line for line in case["output"])  # where it hangs
    child = int(next(line for line in case["output"] if line.startswith("child")).split()[1])
    assert not psutil.pid_exists(child) or alive_after([psutil.Process(child)], 5) == []
    assert f"not measured: hanging, hangs: {case['reason']}" in capsys.readouterr().out


def test_a_time_that_is_too_short_is_kept_and_said(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "GRACE", 0.5)
    stages = make("first", "hangs_long", "works", "tells_process"), make("second", "works", share=1e-6)
    began = time.monotonic()
    content = measured(tmp_path / "d.json", *stages, minutes=0.15)
    assert time.monotonic() - began < 9
    assert not content["complete"]
    first, second = content["stages"].values()
    assert "hangs_long" not in first["cases"] or first["cases"]["hangs_long"]["state"] in ("cut", "not run")
    assert (second["state"], second["reason"]) in [("not run", "its time was over"), ("cut", "its time was over")]
    assert all("reason" in case for case in first["cases"].values() if case["state"] != "measured")
    assert "not measured: second" in capsys.readouterr().out


def test_a_second_pass_takes_the_time_that_is_left(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "GRACE", 0.5)
    stages = make("late", "works", share=1e-6), make("next", "works")
    content = measured(tmp_path / "d.json", *stages)
    assert states(content)["late"] == ("done", {"works": "measured"})
    assert content["complete"]
    assert "late: cut: its time was over" in capsys.readouterr().out


def test_a_stage_that_cannot_begin(tmp_path: Path) -> None:
    broken = Stage("broken", "a module that is not there", "no_such_module", 1.0)
    content = measured(tmp_path / "d.json", broken, code=1)
    assert states(content) == {"broken": ("failed", {})}
    assert content["stages"]["broken"]["reason"] == "it ended with exit code 1"
    assert content["stages"]["broken"]["output"][-1] == "ModuleNotFoundError: No module named 'no_such_module'"


def test_chosen_stages_leave_the_others_as_they_are(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages, path = (make("a", "tells_process"), make("b", "tells_process")), tmp_path / "d.json"
    first = measured(path, *stages, only=("a",))
    assert states(first) == {"a": ("done", {"tells_process": "measured"}), "b": ("not run", {})}
    assert first["stages"]["b"]["reason"] == "not chosen: --only a"
    assert not first["complete"]
    second = measured(path, *stages, only=("b",))
    assert second["stages"]["a"] == first["stages"]["a"]
    assert second["complete"]
    path.write_text(path.read_text().replace('"seed": 7', '"seed": 8'))
    before = path.read_text()
    options = ["--device", "cpu", "--output", str(path), "--seed", "7", "--only", "a"]
    capsys.readouterr()
    assert main(options, stages) == 2
    assert re.fullmatch("error: .* was measured with another device, .*--output\n", capsys.readouterr().err)
    assert path.read_text() == before


SCRIPT = """
import sys
from experiments.device.command import main
from experiments.device.stages import Stage
sys.exit(main(sys.argv[2:], [Stage("only", "one", sys.argv[1], 1.0)]))
"""


def _listens_to_interrupts() -> None:
    """A shell has the commands that it starts in the background ignore them, and so what these start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT], ids=str)
def test_the_file_of_a_run_that_is_killed_holds_what_was_found(
    make: Make, tmp_path: Path, sent: signal.Signals
) -> None:
    module, path = make("only", "works", "hangs_long", "tells_process").module, tmp_path / "d.json"
    argv = [module, "--device", "cpu", "--output", str(path)]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *argv],
        env=environment,
        stderr=subprocess.DEVNULL,
        preexec_fn=_listens_to_interrupts,
    )
    deadline = time.monotonic() + 60
    while not path.exists() or "running" not in states(read(path))["only"][1].values():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(sent)
    assert process.wait(timeout=30) != 0
    assert alive_after(children, 10) == []
    content = read(path)
    assert content["stages"]["only"]["cases"]["works"]["state"] == "measured"
    expected = {signal.SIGKILL: "running", signal.SIGINT: "not run"}[sent]
    assert content["stages"]["only"]["cases"]["hangs_long"]["state"] == expected
    if sent == signal.SIGINT:
        assert content["stages"]["only"]["cases"]["hangs_long"]["reason"] == "interrupted"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "mps"], "--device must be cpu, cuda or cuda:N, got 'mps'"),
        (["--minutes", "nan"], "--minutes must be a number above 0, got nan"),
        (["--minutes", "0"], "--minutes must be a number above 0, got 0.0"),
        (["--seed", "-1"], "--seed must be a whole number from 0 to 4294967295, got -1"),
        (["--only", "nothing"], "argument --only: invalid choice: 'nothing'"),
        (["--minute", "3"], "unrecognized arguments: --minute 3"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_can_be_corrected_is_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--output", str(tmp_path / "d.json"), *options]) == 2
    assert re.fullmatch(f"error: {re.escape(message)}.*\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []
