"""The files of requirements, and that the Makefile installs from them again when they change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
FILES = sorted([*ROOT.glob("requirements-*.txt"), *ROOT.glob("constraints*.txt")])


def requirements(path: Path) -> list[Requirement]:
    """What a file requires, and what the files that it includes require."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r "):
            found += requirements(path.with_name(text.removeprefix("-r ")))
        elif text:
            found.append(Requirement(text))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_is_required_twice_on_the_same_platform(path: Path) -> None:
    asked = [(canonicalize_name(each.name), str(each.marker)) for each in requirements(path)]
    assert len(asked) > 1
    assert sorted(set(asked)) == sorted(asked)


def test_the_tested_versions_are_within_the_ranges() -> None:
    pinned = requirements(ROOT / "constraints.txt")
    asked = {canonicalize_name(each.name): each.specifier for each in requirements(ROOT / "requirements-dev.txt")}
    checked = [each for each in pinned if canonicalize_name(each.name) in asked]
    assert len(checked) > 20
    for each in checked:
        (version,) = (one.version for one in each.specifier)
        assert asked[canonicalize_name(each.name)].contains(version), each.name


def test_the_environments_are_made_again_when_their_files_change() -> None:
    rules = re.findall(r"^(\$\(\w+\)\S*): (.*)\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    used = 0
    for target, prerequisites, recipe in rules:
        for name in re.findall(r"--(?:requirement|constraint) (\S+)", recipe):
            included = re.findall(r"^-r (\S+)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
            assert {name, *included} <= {*prerequisites.split()}, target
            used += 1
    assert used == 4
