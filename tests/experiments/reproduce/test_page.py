"""The page of the reproduction and the README's section hold the committed results, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments.reproduce import page
from experiments.reproduce.command import PARTS
from experiments.reproduce.finetune.analysis import FINAL_LOSS
from experiments.reproduce.finetune.tables import BOUNDS
from experiments.reproduce.subjects import ADAPTERS

ROOT = Path(__file__).parents[3]
PARTS_OF = page.read_parts(ROOT / "results" / "reproduction")


def test_parts_were_run():
    assert set(PARTS_OF) == set(PARTS)


@pytest.mark.parametrize("part", PARTS_OF)
def test_each_file_names_the_command_that_writes_it_and_where_it_ran(part):
    results = PARTS_OF[part]
    assert results["command"] == f"python scripts/reproduce.py {part}"
    assert {"processor", "torch", "transformers", "threads"} <= results["environment"].keys()
    assert "settings" in results


def test_the_page_shows_all_figures_and_they_are_there():
    text = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"!\[[^]]*\]\(\.\./(results/reproduction/[^)]*)\)", text))
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "results" / "reproduction").glob("*.png")}
    assert linked == there
    assert len(there) >= 10


def test_figures_follow_their_part():
    text = page.page({"memory": PARTS_OF["memory"]}, {"memory": ["a/one.png", "a/two.png"]}, 12.3)
    assert "took\n12 minutes" in text
    assert text.index("## Memory") < text.index("![one](a/one.png)") < text.index("![two](a/two.png)")
    assert "## Step time" not in text


def test_the_summary_has_what_was_published_and_the_same_training():
    text = page.summary(PARTS_OF)
    assert "-23.1%" in text
    assert "-15.7%" in text
    for model in PARTS_OF["finetune"]["models"]:
        assert f"| {model['title']} | {len(model['seeds'])} |" in text


def test_the_bars_of_memory_hold():
    """BERT's published saving is matched, and Mistral's beaten 1.7 times."""
    entries = {(entry["case"], entry["variant"]): entry for entry in PARTS_OF["memory"]["entries"]}

    def change(case: str) -> float:
        return entries[case, "ours"]["kept_bytes"] / entries[case, "plain"]["kept_bytes"] - 1

    assert change("bert-base") <= -0.231
    assert change("mistral-7b") <= -0.157 * 1.7


@pytest.mark.parametrize(
    ("case", "plain", "activations", "bar"),
    [
        ("mistral-peft-dropout", 41.26, 37.76, 16.9),
        ("mistral-peft-dropout-autocast", 31.82, 28.32, 16.9),
        ("mistral-peft", 27.11, 23.61, 16.3),
    ],
)
def test_the_bars_of_adapters_hold(case: str, plain: float, activations: float, bar: float) -> None:
    """Adapters that keep their input once halve what Mistral keeps; activations alone save a tenth."""
    kept = {
        entry["variant"]: entry["kept_bytes"] / 2**30
        for entry in PARTS_OF["memory"]["entries"]
        if entry["case"] == case
    }
    assert kept["plain"] == pytest.approx(plain, abs=0.01)
    assert kept["ours, activations alone"] == pytest.approx(activations, abs=0.01)
    assert kept["ours, without norms"] <= bar


@pytest.mark.parametrize(
    ("case", "plain", "bar"),
    [
        ("mistral-7b", 25.13, 12.4),
        ("mistral-peft-dropout", 41.26, 13.0),
        ("llama-7b", 23.38, 12.2),
        ("bert-base", 4.70, 0.67 * 4.70),
        ("gpt2-bf16", 5.65, 0.57 * 5.65),
    ],
)
def test_the_bars_of_norms_hold(case: str, plain: float, bar: float) -> None:
    """Half of full fine-tuning, two thirds of LoRA."""
    kept = {
        entry["variant"]: entry["kept_bytes"] / 2**30
        for entry in PARTS_OF["memory"]["entries"]
        if entry["case"] == case
    }
    assert kept["plain"] == pytest.approx(plain, abs=0.01)
    assert kept["ours"] <= bar
    assert kept["ours"] < 0.93 * kept["ours, without norms"]


@pytest.mark.parametrize("model", PARTS_OF["finetune"]["models"], ids=lambda model: model["name"])
def test_the_bars_of_training_hold(model):
    """Of each model, final losses do not differ from the plain ones, and gradients by less than the limits."""
    pretrained = model["name"] in ("smollm2-135m", "minilm")
    assert len(model["seeds"]) >= (3 if pretrained else 5)
    difference = model["analysis"]["metrics"][FINAL_LOSS]["inverted - plain"]
    assert difference["low"] <= 0 <= difference["high"]
    assert len({entry["step"] for entry in model["gradients"]}) >= 3
    for dtype, bound in BOUNDS.items():
        distances = [entry["cosine_distance"] for entry in model["gradients"] if entry["dtype"] == dtype]
        assert len(distances) >= 3
        assert max(distances) <= bound


@pytest.mark.parametrize("model", PARTS_OF["lora"]["models"], ids=lambda model: model["name"])
def test_the_bars_of_lora_hold(model):
    """Adapters alone change no loss in any bit, and keep less; with gates, final losses are within their interval."""
    assert len(model["seeds"]) >= 3
    assert model["analysis"]["largest_difference"][ADAPTERS] == 0
    assert model["analysis"]["metrics"]["eval_loss"][f"{ADAPTERS} - plain"]["mean"] == 0
    difference = model["analysis"]["metrics"][FINAL_LOSS]["inverted - plain"]
    assert difference["low"] <= 0 <= difference["high"]
    kept = {run["variant"]: run["saved_bytes"] for run in model["runs"]}
    assert kept["inverted"] < kept[ADAPTERS] < 0.65 * kept["plain"]
    for dtype, bound in BOUNDS.items():
        assert max(entry["cosine_distance"] for entry in model["gradients"] if entry["dtype"] == dtype) <= bound


def test_all_models_were_trained():
    assert [model["name"] for model in PARTS_OF["lora"]["models"]] == ["smollm2-135m-lora"]
    names = {model["name"] for model in PARTS_OF["finetune"]["models"]}
    assert names == {"smollm2-135m", "minilm", "gpt2", "bert", "mistral", "llama"}
