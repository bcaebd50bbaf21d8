"""How the code is laid out: the size of files and folders, and the order in which the experiments import each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.imports import imported_names

ROOT = Path(__file__).parents[1]
SOURCES = [path for part in ("hf_invact", "experiments", "scripts") for path in sorted((ROOT / part).rglob("*.py"))]
EXPERIMENTS = [path for path in SOURCES if path.is_relative_to(ROOT / "experiments")]

MOST_LINES, MOST_FILES = 300, 12

# Each part of the experiments may import those before it.
ORDER = ("common", "benchmark", "methods", "finetuning", "compare", "reproduce")
ALLOWED = {part: {*ORDER[: level + 1]} for level, part in enumerate(ORDER)}
ALLOWED |= {part: {"common", part} for part in ("coverage", "compatibility", "derivative_errors", "norm_errors")}
ALLOWED["device"] = {"common", "benchmark", "reproduce", "device"}


def test_no_file_is_long() -> None:
    lines = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") for path in SOURCES}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_no_folder_holds_many_files() -> None:
    folders = [str(path.parent.relative_to(ROOT)) for path in SOURCES if path.name != "__init__.py"]
    counts = {folder: folders.count(folder) for folder in folders}
    assert {folder for folder, count in counts.items() if count > MOST_FILES} == set()


def test_what_is_published_names_no_place_on_a_machine() -> None:
    """Results and pages are written on some machine, whose folders concern nobody."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "results").rglob("*.json")]
    place = re.compile(r"(/home/|/root/|/tmp/|/work/|/Users/|site-packages)")
    assert {str(page.relative_to(ROOT)) for page in pages if place.search(page.read_text(encoding="utf-8"))} == set()


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "experiments").parts[0].removesuffix(".py")


def test_every_part_of_the_experiments_has_its_place_in_the_order() -> None:
    assert {part_of(path) for path in EXPERIMENTS} == set(ALLOWED)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_of_the_experiments_run_one_way(path: Path) -> None:
    names = [name.split(".") for name in imported_names(path, ROOT)]
    assert {name[1] for name in names if name[0] == "experiments"} <= ALLOWED[part_of(path)]
    assert not {name[0] for name in names} & {"tests", "scripts"}
