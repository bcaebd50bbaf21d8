"""The results file."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from experiments.benchmark.results import Results, read_results
from experiments.common import files
from experiments.common.errors import ConfigError

HEADER: dict[str, Any] = {
    "format": 1,
    "command": "python scripts/benchmark.py",
    "device": {"name": "NVIDIA H999", "slug": "nvidia-h999"},
    "environment": {"torch": "2.11.0"},
    "settings": {"seed": 0, "quick": False},
}
ORDERS = {"operators": lambda entry: entry["size"], "steps": lambda entry: entry["model"]}
LARGE, SMALL = {"size": 2, "ms": 20.0}, {"size": 1, "ms": 10.0}


def opened(path: Path, **changes: Any) -> Results:
    return Results(path, {**copy.deepcopy(HEADER), **changes}, ORDERS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a run that was interrupted after one operator."""
    path = tmp_path / "results" / "benchmark-nvidia-h999.json"
    opened(path).add("operators", LARGE)
    return path


def test_each_entry_is_written_at_once_and_in_its_place(path: Path) -> None:
    assert read_results(path)["operators"] == [LARGE]
    opened(path).add("operators", SMALL)
    content = json.loads(path.read_text())
    assert content["operators"] == [SMALL, LARGE]
    assert list(content) == [*HEADER, "complete", "operators", "steps"]


def test_an_interrupted_run_continues(path: Path) -> None:
    results = opened(path, command="another")
    assert {"size": 2} in results
    assert {"size": 1} not in results
    assert results.resumed == {"operators": 1, "steps": 0}
    assert results.finish([{"size": 2}, {"size": 1}]) == [{"size": 1}]
    assert not read_results(path)["complete"]
    assert results.finish([{"size": 2}]) == []
    assert read_results(path)["complete"]


@pytest.mark.parametrize(
    "changes",
    [{"settings": {"seed": 1, "quick": False}}, {"environment": {"torch": "2.12.0"}}, {}],
    ids=["settings", "environment", "complete"],
)
def test_another_run_starts_over(path: Path, changes: dict[str, Any]) -> None:
    if not changes:
        opened(path).finish([])
    assert {"size": 2} not in opened(path, **changes)
    assert read_results(path)["operators"] == [LARGE]  # until there is something new


def test_an_interruption_while_writing_leaves_the_file_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened(path).add("operators", SMALL)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"device": {"name": "NVIDIA H1", "slug": "nvidia-h1"}},
            "measured on NVIDIA H999, this is NVIDIA H1; .*--output",
        ),
        ({"settings": {"seed": 0, "quick": True}}, "a full measurement, which --quick would replace; .*--output"),
    ],
    ids=["another device", "quick"],
)
def test_a_file_that_must_not_be_replaced(path: Path, changes: dict[str, Any], message: str) -> None:
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=message):
        opened(path, **changes)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged"),
        ("[]", "does not hold results of this benchmark"),
        ('{"format": 0}', "does not hold results of this benchmark"),
    ],
    ids=["damaged", "list", "format"],
)
def test_a_file_that_is_something_else(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(content)
    for read in (opened, read_results):
        with pytest.raises(ConfigError, match=message):
            read(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_results(tmp_path / "file.json")
