"""The table of combinations: how it is recorded, and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.compatibility import COLUMNS, page
from tests.compatibility import GROUPS, PATH, Matrix
from tests.models import MODEL_NAMES

PAGE = PATH.parents[1] / "docs" / "compatibility.md"
KEPT = {"plain_bytes": 1000, "patched_bytes": 800, "plan": "output"}
REFUSED = {"plain_bytes": None, "patched_bytes": None, "plan": "refused", "note": "Both replace the MLP."}


def written(path: Path, **cells: dict[str, Any]) -> Matrix:
    """A file with a row of these cells, by column; and a `Matrix` that compares with it."""
    matrix = Matrix(path, is_written=True)
    for column, cell in cells.items():
        matrix.record("Adapters", "LoRA", column, **cell)
    matrix.write()
    return Matrix(path)


def test_the_page_is_that_of_the_committed_results() -> None:
    assert page(json.loads(PATH.read_text(encoding="utf-8"))) == PAGE.read_text(encoding="utf-8")


def test_every_row_has_all_models_but_where_models_make_no_difference() -> None:
    groups = Matrix().groups
    assert tuple(groups) == GROUPS
    everywhere = [rows for group, rows in groups.items() if group not in ("Processes", "Other libraries")]
    assert [[*cells] for rows in everywhere for cells in rows.values() if tuple(cells) != MODEL_NAMES] == []
    assert tuple(COLUMNS) == MODEL_NAMES


def test_what_is_recorded_again_is_compared(tmp_path: Path) -> None:
    matrix = written(tmp_path / "results.json", llama={**KEPT, "note": "Why."}, bert=REFUSED)
    matrix.record("Adapters", "LoRA", "llama", **{**KEPT, "note": "Why."})
    matrix.record("Adapters", "LoRA", "llama", **{**KEPT, "note": "Why.", "patched_bytes": 809})
    matrix.record("Adapters", "LoRA", "bert", **REFUSED)
    before = (tmp_path / "results.json").read_bytes()
    matrix.write()
    assert (tmp_path / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("row", "column", "cell", "message"),
    [
        (
            "LoRA",
            "llama",
            {"patched_bytes": 811},
            "differs from results.json: Adapters, LoRA, llama; .*--write-results",
        ),
        ("LoRA", "llama", {"plan": "input"}, "differs from"),
        ("LoRA", "llama", {"note": "Another."}, "differs from"),
        ("DoRA", "llama", {}, "not in results.json"),
        ("LoRA", "bert", {}, "not in results.json"),
        ("LoRA", "t5", {}, "'t5' is none of"),
    ],
    ids=["bytes", "plan", "note", "row", "column", "no column"],
)
def test_what_differs_fails(tmp_path: Path, row: str, column: str, cell: dict[str, Any], message: str) -> None:
    matrix = written(tmp_path / "results.json", llama=KEPT)
    with pytest.raises(AssertionError, match=message):
        matrix.record("Adapters", row, column, **{**KEPT, **cell})


def test_an_unknown_group_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="'Others' is none of"):
        Matrix(tmp_path / "results.json", is_written=True).record("Others", "x", "llama")


def test_what_is_written_is_in_order_whatever_ran_first_and_the_rest_stays(tmp_path: Path) -> None:
    written(tmp_path / "results.json", llama=KEPT, bert=KEPT)
    matrix = Matrix(tmp_path / "results.json", is_written=True)
    for group, row in (("Precision", "float32"), ("Adapters", "DoRA")):
        matrix.record(group, row, "llama", **KEPT)
    matrix.write()
    groups = Matrix(tmp_path / "results.json").groups
    assert [(group, [*rows]) for group, rows in groups.items()] == [
        ("Precision", ["float32"]),
        ("Adapters", ["DoRA", "LoRA"]),
    ]
    assert [*groups["Adapters"]["LoRA"]] == ["bert", "llama"]


def test_the_page_shows_plans_changes_refusals_and_notes(tmp_path: Path) -> None:
    written(tmp_path / "results.json", gpt2={**KEPT, "patched_bytes": 1000}, llama=KEPT, bert=REFUSED)
    text = page(json.loads((tmp_path / "results.json").read_text(encoding="utf-8")))
    assert "| LoRA | ±0% output | refused <sup>1</sup> |  | -20.0% output |" in text
    assert "\n1. Both replace the MLP.\n" in text
    assert "torch 2." in text


def test_a_note_of_a_whole_row_stands_with_its_name(tmp_path: Path) -> None:
    written(tmp_path / "results.json", **{column: {**KEPT, "note": "Why."} for column in MODEL_NAMES})
    text = page(json.loads((tmp_path / "results.json").read_text(encoding="utf-8")))
    assert f"| LoRA <sup>1</sup> |{' -20.0% output |' * 4}" in text
