"""The LoRA runs of the reproduction: their results, plots and tables."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rich.console import Console

from experiments.reproduce.finetune.plots import subject_figure
from experiments.reproduce.lora import run as lora
from experiments.reproduce.lora.tables import section, summary
from experiments.reproduce.subjects import ADAPTERS, CONTROL, Subject
from tests.experiments.small import write_config


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of two subjects. The weights of the second are in a package that is not installed."""
    folder = tmp_path_factory.mktemp("lora")
    adapters = {"r": 4, "lora_dropout": 0.1, "target_modules": "all-linear"}
    llama = write_config(folder, "llama", name="llama.yaml", max_steps=4, max_eval_samples=2, lora=adapters)
    away = {"model_type": None, "model_config": None, "model_name_or_path": "package:no-such-weights", "lora": adapters}
    packaged = write_config(folder, "llama", name="packaged.yaml", **away)
    subjects = Subject("tiny", "Tiny", llama, (0, 1), has_adapters=True), Subject("away", "Away", packaged, (0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora, "QUICK_LORA_SUBJECTS", subjects)
        written = lora.run(folder / "out", True, Console(quiet=True), "python scripts/reproduce.py lora --quick")
    assert {path.name for path in (folder / "out").iterdir()} == {"lora.json", "lora-tiny.png", "runs"}
    read: dict[str, Any] = json.loads(written.read_text())
    return read


@pytest.mark.slow
def test_adapters_change_no_loss_and_keep_less(results):
    (model,) = results["models"]
    variants = ["plain", ADAPTERS, "inverted", CONTROL]
    assert [(run["variant"], run["seed"]) for run in model["runs"]] == [
        (name, seed) for seed in (0, 1) for name in variants
    ]
    assert list(model["analysis"]["largest_difference"]) == variants[1:]
    assert model["analysis"]["largest_difference"][ADAPTERS] == 0
    assert model["patched"] == 2 * 7 + 2 + 4  # adapters, gates and norms, but the first, which needs no gradient
    for seed in (0, 1):
        kept = {run["variant"]: run["saved_bytes"] for run in model["runs"] if run["seed"] == seed}
        assert kept["inverted"] < kept[ADAPTERS] < kept["plain"] == kept[CONTROL]


@pytest.mark.slow
def test_the_tables_say_what_was_found(results):
    text = section(results)
    assert "| Tiny | 2 | 4 |" in text
    assert "| every loss is the same |" in text
    assert "Away was left out: the weights package:no-such-weights" in text
    assert "by `python scripts/reproduce.py lora --quick`" in text
    assert "(every loss is the same)" in summary(results)
    changed = json.loads(json.dumps(results))
    changed["models"][0]["analysis"]["largest_difference"][ADAPTERS] = 2e-7
    assert "| at most 2.0e-07 |" in section(changed)
    assert "(at most 2.0e-07)" in summary(changed)
    assert section({**results, "models": []}).startswith("Away was left out")


@pytest.mark.slow
def test_the_figure_shows_each_variant(results):
    _, distances = subject_figure(results["models"][0]).axes
    labels = [text.get_text() for text in distances.get_legend().get_texts()]
    assert labels[-1] == "the inputs of adapters alone"
    assert len({line.get_color() for line in distances.lines}) == len(labels) == 3
