"""Memory budgets against real steps, and what of it is committed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from experiments.reproduce.budget.measured import allocated_at_the_peak
from experiments.reproduce.budget.run import BUDGETS, run
from experiments.reproduce.budget.tables import largest_difference, section
from tests.helpers import threads

COMMITTED = Path(__file__).parents[4] / "results" / "reproduction" / "budget.json"


def test_the_events_of_the_allocator_are_added_up() -> None:
    def act() -> None:
        first = torch.empty(1000, dtype=torch.uint8)
        second = torch.empty(3000, dtype=torch.uint8)
        del first
        third = torch.empty(500, dtype=torch.uint8)
        del second, third

    assert allocated_at_the_peak(act) == 4000


@pytest.mark.slow
def test_a_tiny_model(tmp_path: Path) -> None:
    with threads(1):
        written = run(tmp_path / "out", True, Console(quiet=True), "the command")
    results = json.loads(written.read_text())
    (entry,) = results["entries"]
    assert len(entry["budgets"]) == BUDGETS
    for budget in entry["budgets"]:
        assert budget["measured_bytes"] == pytest.approx(budget["predicted_bytes"], rel=0.03)
    (predicted,) = results["predicted"]
    assert (predicted["layers"], predicted["checkpointed"]) == (1, 0)
    text = section(results)
    assert "| Mistral, 1 layer of 7B, QLoRA, 1 x 8,192 | 24.00 GiB | 1.10 GiB | 0 of 1, " in text
    assert f"is {largest_difference(results):.2%}." in text


def each_committed() -> list[Any]:
    entries = json.loads(COMMITTED.read_text(encoding="utf-8"))["entries"]
    found = [(entry["title"], each) for entry in entries for each in entry["budgets"]]
    return [pytest.param(each, id=f"{title}, {each['checkpointed']}") for title, each in found]


@pytest.mark.parametrize("budget", each_committed())
def test_measured_peaks_are_within_the_budget_and_those_with_one_layer_less_are_not(budget: dict[str, Any]) -> None:
    assert max(budget["measured_bytes"], budget["predicted_bytes"]) <= budget["budget_bytes"]
    assert budget["measured_bytes"] == pytest.approx(budget["predicted_bytes"], rel=1e-3)
    if budget["checkpointed"]:
        assert budget["one_less_measured_bytes"] > budget["budget_bytes"]
