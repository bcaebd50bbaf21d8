"""The part "steps": what it measures, and that it continues where it stopped."""

from __future__ import annotations

import io
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.common.errors import ConfigError
from experiments.reproduce.steps import run as steps
from experiments.reproduce.steps.models import FULL, QUICK, StepModel
from hf_invact.patching import inverted_activations
from tests.experiments.small import write_config
from tests.helpers import threads

VARIANTS = {
    "plain": nullcontext,
    "inverted-eager": inverted_activations,
    "compiled": nullcontext,
    "compiled-inverted": inverted_activations,
}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[StepModel, ...]:
    """Replaces the models with two tiny ones, in four variants."""
    configs = {name: str(write_config(tmp_path / name, name)) for name in ("gpt2", "bert")}
    chosen = tuple(StepModel(name, name.upper(), config, rounds=4, seconds=0.0) for name, config in configs.items())
    monkeypatch.setattr(steps, "QUICK", chosen)
    monkeypatch.setattr(StepModel, "variants", lambda self, model: VARIANTS)
    return chosen


def measure(folder: Path) -> tuple[dict[str, Any], str]:
    """The results, and what was printed."""
    printed = io.StringIO()
    with threads(1):
        path = steps.run(folder, True, Console(file=printed, width=80), "the command")
    return json.loads(path.read_text()), printed.getvalue()


def test_the_results(models: tuple[StepModel, ...], tmp_path: Path) -> None:
    results, printed = measure(tmp_path / "out")
    assert results["command"] == "the command"
    assert {"torch", "processor", "threads"} <= set(results["environment"])
    assert results["settings"] == {"learning_rate": 0.0, "seed": 0, "quick": True}
    gpt2, bert = results["entries"]
    assert (gpt2["model"], gpt2["title"], gpt2["batch"]) == ("gpt2", "GPT2", [2, 16])
    assert (gpt2["rounds"], gpt2["other_rounds"]) == (4, 3)
    assert bert["settings"]["values"]["model_type"] == "bert"
    assert len(gpt2["data"]["sha256"]) == 64
    inverted, plain = (gpt2["variants"][name] for name in ("inverted-eager", "plain"))
    assert inverted["title"] == "inverted (eager)"
    assert "ratio_to" not in inverted
    assert set(gpt2["variants"]["compiled-inverted"]["ratio_to"]) == {"compiled"}
    assert inverted["kept_bytes"] < plain["kept_bytes"]
    assert inverted["first_loss"] == pytest.approx(plain["first_loss"], rel=1e-4)
    assert inverted["ratio"]["low"] <= inverted["ratio"]["lower"] <= inverted["ratio"]["median"]
    assert (tmp_path / "out" / "steps-time.png").read_bytes().startswith(b"\x89PNG")
    assert "step time 1 of 2: GPT2 ..." in printed
    assert "inverted (eager): " in printed


def test_what_plain_took_is_of_its_turns_with_ours(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = steps.compare_variants

    def with_company(training: Any, variants: Any, *options: Any, **keywords: Any) -> Any:
        count, facts = compare(training, variants, *options, **keywords)
        return count, {name: {**of_one, "company": list(variants)} for name, of_one in facts.items()}

    monkeypatch.setattr(steps, "compare_variants", with_company)
    results, _ = measure(tmp_path / "out")
    ours, others = ["plain", "inverted-eager"], ["plain", "compiled", "compiled-inverted"]
    for entry in results["entries"]:
        found = {name: facts["company"] for name, facts in entry["variants"].items()}
        assert found == {"plain": ours, "inverted-eager": ours, "compiled": others, "compiled-inverted": others}


def forbid(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have models recorded instead of measured."""
    asked: list[str] = []

    def record(model: StepModel) -> dict[str, Any]:
        asked.append(model.name)
        return {"model": model.name, "title": model.title, "settings": model.settings(), "failed": "not this time"}

    monkeypatch.setattr(steps, "_entry", record)
    return asked


def test_what_was_finished_is_kept(models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = measure(tmp_path / "out")
    asked = forbid(monkeypatch)
    again, printed = measure(tmp_path / "out")
    assert asked == []
    assert again == before
    assert printed.count("finished before") == 2


def test_other_settings_are_measured_again(models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(tmp_path / "out")
    write_config(tmp_path / "bert", "bert", per_device_train_batch_size=1)
    asked = forbid(monkeypatch)
    measure(tmp_path / "out")
    assert asked == ["bert"]


def test_another_environment_is_measured_again(models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(tmp_path / "out")
    monkeypatch.setattr(steps, "describe_environment", lambda: {"torch": "9.9", "processor": "x", "threads": 1})
    asked = forbid(monkeypatch)
    monkeypatch.setattr(steps, "png_of", lambda results: b"")
    measure(tmp_path / "out")
    assert asked == ["gpt2", "bert"]


def test_an_interruption_loses_one_model(models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = steps._entry

    def interrupted(model: StepModel) -> dict[str, Any]:
        if model.name == "bert":
            raise KeyboardInterrupt
        return entry(model)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "_entry", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measure(tmp_path / "out")
    asked = forbid(monkeypatch)
    results, _ = measure(tmp_path / "out")
    assert asked == ["bert"]
    assert results["entries"][1]["failed"] == "not this time"
    measure(tmp_path / "out")
    assert asked == ["bert", "bert"]  # what failed is tried again


@pytest.mark.parametrize(
    ("error", "recorded"),
    [
        (ConfigError("the package is not installed"), {"unavailable": "the package is not installed"}),
        (ValueError("broken"), {"failed": "ValueError: broken"}),
    ],
    ids=["missing", "broken"],
)
def test_a_model_that_cannot_be_had_is_recorded(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, recorded: dict[str, str]
) -> None:
    build = steps.steps_of

    def steps_of(run: Any) -> Any:
        if run.model.model_type == "gpt2":
            raise error
        return build(run)

    monkeypatch.setattr(steps, "steps_of", steps_of)
    results, printed = measure(tmp_path / "out")
    gpt2, bert = results["entries"]
    assert recorded.items() <= gpt2.items()
    assert "ratio" in bert["variants"]["inverted-eager"]
    assert next(iter(recorded.values())) in printed


@pytest.mark.parametrize("model", [*FULL, *QUICK], ids=lambda model: model.title)
def test_the_configs_are_accepted(model: StepModel, tmp_path: Path) -> None:
    run = model.run(tmp_path)
    assert run.training.seed == 0
    assert not run.training.use_inverted_activations
    assert "output_dir" not in model.settings()["values"]
