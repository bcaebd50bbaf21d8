"""The script of the reproduction: its parts, its folders, and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from experiments.common.errors import ConfigError, RunFailed
from experiments.reproduce import command, page
from experiments.reproduce.budget import run as budget
from experiments.reproduce.finetune import run as finetune
from experiments.reproduce.lora import run as lora
from experiments.reproduce.lora_steps import run as lora_steps
from experiments.reproduce.memory import run as memory
from experiments.reproduce.methods import run as methods
from experiments.reproduce.pareto import run as pareto
from experiments.reproduce.steps import run as steps

MODULES: dict[str, ModuleType] = {
    "memory": memory,
    "methods": methods,
    "steps": steps,
    "finetune": finetune,
    "lora": lora,
    "lora_steps": lora_steps,
    "budget": budget,
    "pareto": pareto,
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, Path, bool, str]]:
    """Lists the arguments of the parts instead of running them."""
    monkeypatch.chdir(tmp_path)
    found: list[tuple[str, Path, bool, str]] = []

    def record(part: str) -> Any:
        def run(folder: Path, quick: bool, console: Any, own_command: str) -> Path:
            found.append((part, folder, quick, own_command))
            return folder / f"{part}.json"

        return run

    for part, module in MODULES.items():
        monkeypatch.setattr(module, "run", record(part))
    return found


def test_every_part_is_there():
    assert list(command.PARTS) == list(MODULES)


@pytest.mark.parametrize("part", MODULES)
def test_a_part_is_run_alone_and_named_in_its_command(calls, part):
    assert command.main([part]) == 0
    assert calls == [(part, Path("results/reproduction"), False, f"python scripts/reproduce.py {part}")]
    assert list(json.loads(Path("results/reproduction/reproduction.json").read_text())) == [part]


def test_what_parts_have_taken_is_kept_and_added_up(calls, monkeypatch):
    clock = iter([100.0, 107.0, 200.0, 201.5, 300.0, 300.25])
    monkeypatch.setattr(command.time, "monotonic", lambda: next(clock))
    assert command.main(["memory"]) == 0

    def interrupted(*arguments: Any) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(memory, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            command.main(["memory"])
    assert command.main(["steps"]) == 0
    assert page.read_minutes(Path("results/reproduction")) * 60 == pytest.approx(8.75, abs=0.1)
    assert json.loads(Path("results/reproduction/reproduction.json").read_text()) == {"memory": 8.5, "steps": 0.2}


def test_all_are_run_in_turn_and_each_file_names_its_own_command(calls):
    assert command.main(["all", "--quick", "--output_dir", "mine"]) == 0
    commands = {part: f"python scripts/reproduce.py {part} --quick" for part in MODULES}
    assert calls == [(part, Path("mine"), True, commands[part]) for part in MODULES]


def test_quick_results_go_elsewhere(calls):
    assert command.main(["memory", "--quick"]) == 0
    assert calls[0][1] == Path("results/reproduction-quick")


def test_it_continues_in_its_own_folder(calls):
    assert command.main(["memory", "--output_dir", "mine"]) == 0
    Path("mine/memory.json").write_text("{}")
    assert command.main(["steps", "--output_dir", "mine"]) == 0
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["everything"], "argument part: invalid choice: 'everything'"),
        ([], "the following arguments are required: part"),
        (["memory", "--fast"], "unrecognized arguments: --fast"),
        (["memory", "--output_dir", "theirs"], "the output folder theirs is not empty and was not made by this script"),
    ],
    ids=["unknown-part", "no-part", "unknown-option", "foreign-folder"],
)
def test_what_cannot_be_run_is_one_line(calls, capsys, arguments, message):
    Path("theirs").mkdir()
    Path("theirs/thesis.txt").write_text("dear")
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert calls == []
    assert [path.name for path in Path("theirs").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("error", "code", "end"),
    [(ConfigError("no such config"), 2, "no such config\n"), (RunFailed("killed"), 1, "Run the same command again")],
    ids=["config", "failed"],
)
def test_a_part_that_fails(calls, capsys, monkeypatch, error, code, end):
    def run(*arguments: Any) -> Path:
        raise error

    monkeypatch.setattr(methods, "run", run)
    assert command.main(["all"]) == code
    assert end in capsys.readouterr().err
    assert [part for part, *_ in calls] == ["memory"]
