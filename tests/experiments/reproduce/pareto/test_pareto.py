"""Memory against time: what is timed is checkpointed as it says, and the tables and the figure show it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rich.console import Console
from torch import nn

from experiments.reproduce.pareto.curves import Point, at_the_same_memory, checkpointing, ours
from experiments.reproduce.pareto.plots import pareto_figure
from experiments.reproduce.pareto.run import FULL, run
from experiments.reproduce.pareto.tables import section, verdict
from experiments.reproduce.pareto.variants import STEPS, title, variants_for
from hf_invact.patching.checkpoints import checkpointable_layers
from hf_invact.sites import patched_sites
from tests.helpers import threads
from tests.models import tiny_model

LAYERS = 6


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pareto")
    with threads(1):
        written = run(folder / "out", True, Console(quiet=True), "the command")
    assert {path.name for path in (folder / "out").iterdir()} == {"pareto.json", "pareto-time.png"}
    read: dict[str, Any] = json.loads(written.read_text())
    return read


def checkpointed(model: nn.Module) -> list[int]:
    layers = checkpointable_layers(model).values()
    return [index for index, layer in enumerate(layers) if layer.gradient_checkpointing]


def test_each_variant_checkpoints_what_it_says_and_leaves_nothing() -> None:
    model = tiny_model("llama", num_hidden_layers=LAYERS)
    variants = variants_for(model, compiles=False)
    for step in STEPS:
        with variants[f"every-{step}"](model):
            assert checkpointed(model) == list(range(0, LAYERS, step))
            assert not list(patched_sites(model))
    for count in range(LAYERS + 1):
        with variants[f"ours-{count}"](model):
            assert checkpointed(model) == list(range(count))
            assert len(list(patched_sites(model))) == 3 * (LAYERS - count) + 1
    assert checkpointed(model) == []
    assert not list(patched_sites(model))


@pytest.mark.slow
def test_a_tiny_model(results: dict[str, Any]) -> None:
    (entry,) = results["entries"]
    kept = {name: facts["kept_bytes"] for name, facts in entry["variants"].items()}
    assert list(kept) == ["plain", "every-1", "ours-0", "ours-1"]
    assert kept["every-1"] < kept["ours-0"] < kept["plain"]
    assert kept["ours-1"] <= kept["every-1"]
    assert all("ratio" in facts for name, facts in entry["variants"].items() if name != "plain")
    text = section(results)
    assert "| hf_invact, 1 layer checkpointed |" in text
    assert verdict(entry) in text
    (axes,) = pareto_figure(results).axes
    assert [line.get_label() for line in axes.lines][:2] == [
        "checkpointing of every n-th layer",
        "hf_invact, k layers checkpointed",
    ]


def entry_of(**variants: tuple[int, float]) -> dict[str, Any]:
    facts = {
        name.replace("_", "-"): {"title": title(name.replace("_", "-")), "kept_bytes": kept, "step_ms": 1.0}
        | ({} if name == "plain" else {"ratio": {"median": ratio}})
        for name, (kept, ratio) in variants.items()
    }
    return {"title": "A model", "variants": facts}


def test_the_verdict_compares_at_the_same_memory() -> None:
    entry = entry_of(
        plain=(100, 1.0), every_1=(20, 1.4), every_2=(60, 1.2), ours_0=(50, 1.1), ours_3=(30, 1.36), ours_6=(10, 1.5)
    )
    assert [point.kept for point in checkpointing(entry)] == [20, 60, 100]
    assert [point.name for point in ours(entry)] == ["ours-6", "ours-3", "ours-0"]
    # At 50, checkpointing takes 1.25, and at 30 it takes 1.35; it cannot keep 10.
    assert "of the 2 points of hf_invact that checkpointing can keep as much as, 1 are faster" in verdict(entry)


def test_between_the_points_of_a_curve() -> None:
    curve = [Point("a", 10, 2.0), Point("b", 10, 1.8), Point("c", 30, 1.0)]
    assert at_the_same_memory(curve, 10) == 2.0
    assert at_the_same_memory(curve, 20) == pytest.approx(1.4)
    assert at_the_same_memory(curve, 9) is None
    assert at_the_same_memory(curve, 31) is None


@pytest.mark.parametrize("model", FULL, ids=lambda model: model.title)
def test_settings_are_what_json_returns(model: Any) -> None:
    assert json.loads(json.dumps(model.settings())) == model.settings()
