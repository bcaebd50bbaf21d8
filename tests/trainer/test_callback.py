"""Real training runs with the callback: the model is patched during training only, with the same losses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments

from hf_invact import InvActConfig, InvertedActivationsCallback, PatchingError, patch_model, unpatch_model
from hf_invact.patching import activation_sites
from tests.models import each_model, tiny_model
from tests.trainer.helpers import (
    SAVED,
    FailAt,
    Witness,
    arguments,
    installed_hooks,
    is_patched,
    losses,
    make_trainer,
    training_logs,
)

DURING = {"train_begin": [True], "step": [True] * 3, "train_end": [False]}


@each_model
def test_patches_for_the_training_and_puts_the_objects_back(name: str, tmp_path: Path) -> None:
    model, callback, witness = tiny_model(name), InvertedActivationsCallback(), Witness()
    originals = [model.get_submodule(site) for site in activation_sites(model)]
    trainer = make_trainer(model, arguments(tmp_path, use_inverted_activations=True), callback, witness)
    assert is_patched(model)
    assert callback.report is not None
    patched = [site.kind for site in callback.report.sites if site.is_patched]
    assert patched.count("activation") == len(originals)
    assert patched.count("norm") >= 4
    trainer.train()
    assert witness.patched == DURING
    assert [model.get_submodule(site) for site in activation_sites(model)] == originals
    assert installed_hooks(model) == 0


def test_the_flag_is_off_by_default(tmp_path: Path) -> None:
    model, callback, witness = tiny_model("llama"), InvertedActivationsCallback(), Witness()
    trainer = make_trainer(model, arguments(tmp_path), callback, witness)
    assert not is_patched(model)
    trainer.train()
    assert witness.patched == {"train_begin": [False], "step": [False] * 3, "train_end": [False]}
    assert callback.report is None
    assert len(training_logs(trainer)) == 3
    assert all(SAVED in entry for entry in training_logs(trainer))


def test_without_the_flag_the_callback_itself_decides(tmp_path: Path) -> None:
    witness = Witness()
    args = arguments(tmp_path, TrainingArguments)
    make_trainer(tiny_model("llama"), args, InvertedActivationsCallback(), witness).train()
    assert witness.patched == DURING


def test_a_callback_that_is_off_leaves_a_model_patched_that_was(tmp_path: Path) -> None:
    model = tiny_model("llama")
    patch_model(model)
    make_trainer(model, arguments(tmp_path), InvertedActivationsCallback()).train()
    assert is_patched(model)


def test_stays_patched_in_an_evaluation_between_steps(tmp_path: Path) -> None:
    witness = Witness()
    args = arguments(tmp_path, use_inverted_activations=True, eval_strategy="steps", eval_steps=1, eval_on_start=True)
    make_trainer(tiny_model("llama"), args, InvertedActivationsCallback(), witness).train()
    assert witness.patched == {**DURING, "evaluate": [True] * 4}


@pytest.mark.parametrize(
    ("own", "of_arguments", "patched"),
    [
        (None, None, [0, 1]),
        (None, {"exclude": ["*.0.mlp"]}, [1]),
        (InvActConfig(include=("*.0.mlp",)), None, [0]),
        (InvActConfig(include=("*.0.mlp",)), {"exclude": ["*.0.mlp"]}, [0]),
    ],
    ids=["default", "arguments", "callback", "callback goes first"],
)
def test_config_of_the_callback_or_of_the_arguments(
    own: InvActConfig | None, of_arguments: dict[str, Any] | None, patched: list[int], tmp_path: Path
) -> None:
    callback = InvertedActivationsCallback(own)
    args = arguments(tmp_path, use_inverted_activations=True, inverted_activations_config=of_arguments)
    make_trainer(tiny_model("llama"), args, callback)
    assert callback.report is not None
    assert [index for index, site in enumerate(callback.report.sites[:2]) if site.is_patched] == patched


@pytest.mark.parametrize(
    ("options", "own", "expected"),
    [
        ({}, None, None),
        ({"bf16": True}, None, torch.bfloat16),
        ({"bf16": True}, InvActConfig(backend="eager"), torch.bfloat16),
        ({"bf16": True}, InvActConfig(autocast_dtype=torch.float16), torch.float16),
        ({}, InvActConfig(autocast_dtype=torch.bfloat16), torch.bfloat16),
    ],
    ids=["float32", "bf16", "bf16, own config", "own config goes first", "own config"],
)
def test_measures_under_the_autocast_of_the_training(
    options: dict[str, Any], own: InvActConfig | None, expected: torch.dtype | None, tmp_path: Path
) -> None:
    args = arguments(tmp_path, use_inverted_activations=True, **options)
    callback = InvertedActivationsCallback(own)
    make_trainer(tiny_model("bert"), args, callback)
    assert callback.report == patch_model(tiny_model("bert"), InvActConfig(autocast_dtype=expected))
    assert (callback.report == patch_model(tiny_model("bert"))) == (expected is None)


def test_measures_under_the_autocast_that_accelerate_was_launched_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    callback = InvertedActivationsCallback()
    trainer = make_trainer(tiny_model("bert"), arguments(tmp_path, use_inverted_activations=True), callback)
    assert trainer.accelerator.mixed_precision == "bf16"
    assert callback.report == patch_model(tiny_model("bert"), InvActConfig(autocast_dtype=torch.bfloat16))


def test_training_twice_patches_twice(tmp_path: Path) -> None:
    model, witness = tiny_model("llama"), Witness()
    args = arguments(tmp_path, use_inverted_activations=True)
    trainer = make_trainer(model, args, InvertedActivationsCallback(), witness)
    trainer.train()
    trainer.train()
    assert witness.patched == {event: 2 * patched for event, patched in DURING.items()}
    assert not is_patched(model)


def test_the_fresh_models_of_model_init_are_patched(tmp_path: Path) -> None:
    models: list[PreTrainedModel] = []

    def model_init() -> PreTrainedModel:
        models.append(tiny_model("bert"))
        return models[-1]

    witness = Witness()
    args = arguments(tmp_path, use_inverted_activations=True)
    trainer = make_trainer(None, args, InvertedActivationsCallback(), witness, model_init=model_init)
    trainer.train()
    first = losses(trainer)
    trainer.train()
    assert losses(trainer) == first
    assert len(models) == 3
    assert witness.patched == {event: 2 * patched for event, patched in DURING.items()}
    assert [is_patched(model) for model in models[1:]] == [False, False]


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"gradient_checkpointing": True},
        {"bf16": True},
    ],
    ids=["plain", "accumulation", "checkpointing", "autocast"],
)
def test_losses_are_those_without_the_flag_dropout_included(options: dict[str, Any], tmp_path: Path) -> None:
    assert tiny_model("bert").config.hidden_dropout_prob > 0

    def train(flag: bool) -> list[float]:
        args = arguments(tmp_path, max_steps=5, use_inverted_activations=flag, **options)
        trainer = make_trainer(tiny_model("bert"), args, InvertedActivationsCallback())
        trainer.train()
        return losses(trainer)

    plain, patched = train(False), train(True)
    assert len(plain) == 5
    assert plain[0] != pytest.approx(plain[-1], rel=0.01), "nothing was learned"
    assert patched == pytest.approx(plain, rel=1e-2 if "bf16" in options else 1e-5)


def test_resuming_gives_the_losses_of_an_uninterrupted_run(tmp_path: Path) -> None:
    def trainer(folder: str, **options: Any) -> Trainer:
        args = arguments(tmp_path / folder, max_steps=4, use_inverted_activations=True, **options)
        return make_trainer(tiny_model("bert"), args, InvertedActivationsCallback(), witness)

    witness = Witness()
    uninterrupted = trainer("whole", save_strategy="steps", save_steps=2)
    uninterrupted.train()
    resumed = trainer("rest")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert losses(resumed) == losses(uninterrupted)
    assert witness.patched["step"] == [True] * 6
    assert [SAVED in entry for entry in training_logs(resumed)] == [True] * 4


def test_a_model_that_cannot_be_patched_is_refused_at_once(tmp_path: Path) -> None:
    args = arguments(tmp_path, use_inverted_activations=True, inverted_activations_config={"sites": ["activation"]})
    with pytest.raises(PatchingError, match="nothing to invert"):
        make_trainer(tiny_model("llama", activation="relu"), args, InvertedActivationsCallback())


def test_the_report_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = arguments(tmp_path, use_inverted_activations=True)
    with caplog.at_level(logging.INFO, logger="hf_invact"):
        make_trainer(tiny_model("llama"), args, InvertedActivationsCallback()).train()
    messages = [
        record.getMessage()
        for record in caplog.records
        if record.name == "hf_invact.trainer.callback" and record.levelno == logging.INFO
    ]
    assert [message.partition(",")[0] for message in messages] == ["inverted activations: 7 of 7 sites patched"]


@pytest.mark.parametrize("step", [0, 1], ids=["first step", "second step"])
def test_after_an_exception_the_model_can_be_unpatched_and_trained_again(step: int, tmp_path: Path) -> None:
    model, witness = tiny_model("llama"), Witness()
    args = arguments(tmp_path, use_inverted_activations=True)
    trainer = make_trainer(model, args, FailAt(step), InvertedActivationsCallback(), witness)
    with pytest.raises(RuntimeError, match="the step failed"):
        trainer.train()
    assert is_patched(model)
    assert installed_hooks(model) == 0
    unpatch_model(model)
    assert not is_patched(model)

    witness.patched.clear()
    trainer.train()
    assert witness.patched == DURING
    assert not is_patched(model)
    assert all(entry[SAVED] > 0 for entry in training_logs(trainer))
