"""The fine-tuning runs of the reproduction: what is run, its results, and how it continues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.common.errors import ConfigError
from experiments.methods.catalogue import METHODS
from experiments.reproduce.finetune import run as finetune
from experiments.reproduce.finetune.analysis import FINAL_LOSS, analyse
from experiments.reproduce.finetune.plots import methods_figure
from experiments.reproduce.finetune.tables import headline, section
from experiments.reproduce.subjects import (
    CONTROL,
    LORA_SUBJECTS,
    QUICK_LORA_SUBJECTS,
    QUICK_SUBJECTS,
    SUBJECTS,
    Subject,
)
from tests.experiments.small import contents, write_config

EVERY_SUBJECT = (*SUBJECTS, *QUICK_SUBJECTS, *LORA_SUBJECTS, *QUICK_LORA_SUBJECTS)


def run_of(variant: str, seed: int, losses: list[float], **eval: float) -> dict[str, Any]:
    return {"variant": variant, "seed": seed, "losses": losses, "eval": eval}


@pytest.mark.parametrize("subject", EVERY_SUBJECT, ids=lambda subject: f"{subject.name}-{len(subject.seeds)}")
def test_the_runs_of_a_subject_differ_in_what_is_compared_alone(subject):
    runs = subject.runs(Path("out"))
    variants = 4 if subject.has_adapters else 3
    assert len({run.folder for run in runs}) == len(runs) == variants * len(subject.seeds) + len(subject.methods)
    settings = {(run.variant, run.seed): run.arguments().settings() for run in runs}
    base = settings["plain", subject.seeds[-1]]
    for (variant, seed), of_run in settings.items():
        different = {
            key for part in of_run for key in of_run[part] if of_run[part][key] != base[part][key] and key != "seed"
        }
        is_checked = variant == "plain" and seed == subject.seeds[0]
        inverts = {"use_inverted_activations"}
        adapters = {*inverts, "inverted_activations_config"}
        expected = {"inverted": inverts, "adapters": adapters, "control": {"nudge_weight"}, "plain": set()}
        assert different == ({"gradient_checks"} if is_checked else expected.get(variant, {"method"}))
        assert of_run["training"]["seed"] == seed


def test_there_are_seeds_enough():
    seeds = {subject.name: len(subject.seeds) for subject in (*SUBJECTS, *LORA_SUBJECTS)}
    pretrained = {"smollm2-135m": 3, "minilm": 3, "smollm2-135m-lora": 3}
    assert seeds == {**pretrained, "gpt2": 5, "bert": 5, "mistral": 5, "llama": 5}
    assert {method for subject in SUBJECTS for method in subject.methods} == set(METHODS)


def test_differences_are_those_of_the_same_seed():
    runs = [run_of("plain", 0, [3.0, 2.0], eval_loss=1.0), run_of("plain", 1, [5.0, 4.0], eval_loss=3.0)]
    runs += [run_of("inverted", 0, [3.0, 2.25], eval_loss=1.5), run_of("inverted", 1, [5.0, 4.25], eval_loss=3.5)]
    runs += [run_of("control", 1, [5.5, 4.0], eval_loss=3.0), run_of("control", 0, [3.0, 2.0], eval_loss=1.0)]
    runs += [run_of("few-bit-2", 0, [3.0, 4.0], eval_loss=2.0)]
    found = analyse(runs)
    evaluated = found["metrics"]["eval_loss"]
    assert (evaluated["plain"]["mean"], evaluated["inverted"]["mean"]) == (2.0, 2.5)
    assert evaluated["inverted - plain"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "p_value": 0.0, "count": 2}
    assert evaluated["control - plain"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0, "count": 2}
    assert found["metrics"][FINAL_LOSS]["plain"]["mean"] == 3.5
    assert found["metrics"][FINAL_LOSS]["inverted - plain"]["mean"] == 0.125
    assert found["largest_difference"] == {"inverted": 0.25, "control": 0.5}
    (method,) = found["methods"]
    assert method == {"method": "few-bit-2", "seed": 0, "final_loss": 3.5, "difference": 1.0, "largest_difference": 2.0}
    assert [entry["method"] for entry in found["first_seed"]] == ["inverted", "control"]
    assert found["first_seed"][0]["difference"] == 0.125


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Subject]:
    """Two subjects. The weights of the second are in a package that is not installed."""
    folder = tmp_path_factory.mktemp("configs")
    llama = write_config(folder, "llama", name="llama.yaml", max_steps=2, max_eval_samples=2)
    away = {"model_type": None, "model_config": None, "model_name_or_path": "package:no-such-weights"}
    packaged = write_config(folder, "llama", name="packaged.yaml", **away)
    return Subject("llama", "Tiny", llama, (0, 1), ("few-bit-2",)), Subject("away", "Away", packaged, (0, 1))


@pytest.fixture(scope="module")
def written(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "QUICK_SUBJECTS", tiny)
        finetune.run(folder, True, Console(quiet=True), "python scripts/reproduce.py finetune --quick")
    return folder


@pytest.mark.slow
def test_it_leaves_results_and_plots(written):
    assert {"finetune.json", "finetune-llama.png", "finetune-llama-methods.png", "runs"} == {
        path.name for path in written.iterdir()
    }
    results = json.loads((written / "finetune.json").read_text())
    (model,) = results["models"]
    assert [(run["variant"], run["seed"]) for run in model["runs"]] == [
        ("plain", 0),
        ("inverted", 0),
        ("control", 0),
        ("plain", 1),
        ("inverted", 1),
        ("control", 1),
        ("few-bit-2", 0),
    ]
    assert model["patched"] == 2 + 5  # gates and norms
    assert len(model["gradients"]) == 2 * 3
    assert results["left_out"] == [{"title": "Away", "why": results["left_out"][0]["why"]}]
    assert "package:no-such-weights" in results["left_out"][0]["why"]


@pytest.mark.slow
def test_what_is_finished_is_kept(written, tiny, monkeypatch):
    monkeypatch.setattr(finetune, "QUICK_SUBJECTS", tiny)
    before = contents(written)
    (written / "runs/llama-inverted-seed1/run.json").unlink()
    finetune.run(written, True, Console(quiet=True), "python scripts/reproduce.py finetune --quick")
    changed = {name for name, content in contents(written).items() if before[name] != content}
    assert changed <= {
        "runs/llama-inverted-seed1.log",
        *(name for name in before if name.startswith("runs/llama-inverted-seed1/")),
        "finetune.json",
    }


@pytest.mark.slow
def test_finished_runs_with_other_settings_are_refused(written, tiny, monkeypatch):
    longer = tuple(Subject(one.name, one.title, one.config, one.seeds, (), ("--max_steps", "4")) for one in tiny[:1])
    monkeypatch.setattr(finetune, "QUICK_SUBJECTS", longer)
    before = contents(written)
    with pytest.raises(ConfigError, match="finished run with max_steps=2, but 4 is asked for"):
        finetune.run(written, True, Console(quiet=True), "")
    assert contents(written) == before


@pytest.mark.slow
def test_the_tables_say_what_was_found(written):
    results = json.loads((written / "finetune.json").read_text())
    text = section(results)
    assert "| Tiny | 2 |" in text
    assert "| derivative in 2 bits |" in text
    assert "Away was left out: the weights package:no-such-weights" in text
    assert "by `python scripts/reproduce.py finetune --quick`" in text
    assert "not 0" not in text
    results["models"][0]["analysis"]["metrics"][FINAL_LOSS]["inverted - plain"] |= {
        "mean": 2.0,
        "low": 1.0,
        "high": 3.0,
    }
    results["models"][0]["gradients"][0]["cosine_distance"] = 2e-7
    assert "1 - cosine is at most 2.0e-07 **(above the limit)** in float32 and" in headline(results)
    text = section(results)
    assert "+2.0e+00 [+1.0e+00, +3.0e+00] **(not 0)**" in text
    assert "2.0e-07 **(above the limit)**" in text


def test_every_method_has_a_colour_and_a_name_of_its_own() -> None:
    runs = [run_of(name, 0, [3.0, 2.0]) | {"steps": [1, 2]} for name in ("plain", "inverted", CONTROL, *METHODS)]
    model = {"title": "Tiny", "runs": runs, "analysis": {"methods": [{"seed": 0}]}}
    (axes,) = methods_figure(model).axes
    assert len({line.get_color() for line in axes.lines}) == len(axes.lines) == len(runs) - 1
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["inverted", CONTROL, *(method.title for method in METHODS.values())]
