"""The mixin: no callback is needed, and reporters get the memory figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Trainer, TrainingArguments

from hf_invact import InvActConfig, InvActTrainerMixin, InvertedActivationsCallback, MemoryCallback
from hf_invact.trainer import memory
from tests.models import tiny_model
from tests.trainer.helpers import SAVED, Witness, arguments, is_patched, make_trainer, training_logs


class InvActTrainer(InvActTrainerMixin, Trainer):
    """A custom Trainer."""


def scalars(folder: Path) -> dict[str, list[float]]:
    """The figures that TensorBoard would show."""
    (path,) = folder.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(path)).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("flag", [False, True], ids=["off", "on"])
def test_takes_the_flag_by_itself(flag: bool, tmp_path: Path) -> None:
    model, witness = tiny_model("llama"), Witness()
    args = arguments(tmp_path, use_inverted_activations=flag)
    trainer = make_trainer(model, args, witness, cls=InvActTrainer)
    assert is_patched(model) is flag
    trainer.train()
    assert witness.patched["step"] == [flag] * 3
    assert not is_patched(model)


def test_needs_no_callbacks_argument(tmp_path: Path) -> None:
    trainer = InvActTrainer(tiny_model("llama"), arguments(tmp_path, TrainingArguments))
    assert is_patched(trainer.model)


def test_a_callback_of_ones_own_is_kept_as_the_only_one(tmp_path: Path) -> None:
    own = InvertedActivationsCallback(InvActConfig(exclude=("*.0.mlp",)))
    args = arguments(tmp_path, use_inverted_activations=True)
    trainer = make_trainer(tiny_model("llama"), args, own, cls=InvActTrainer)
    found = [
        callback for callback in trainer.callback_handler.callbacks if isinstance(callback, InvertedActivationsCallback)
    ]
    assert found == [own]
    assert own.report is not None
    assert [site.is_patched for site in own.report.sites if site.kind == "activation"] == [False, True]


def test_the_list_of_callbacks_that_was_passed_is_not_changed(tmp_path: Path) -> None:
    callbacks = [Witness()]
    InvActTrainer(tiny_model("llama"), arguments(tmp_path), callbacks=callbacks)
    assert len(callbacks) == 1


def test_tensorboard_shows_the_figures_of_every_training_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "peak_bytes", lambda: {"peak_cuda_allocated_bytes": 7})
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    args = arguments(
        tmp_path, use_inverted_activations=True, report_to="tensorboard", eval_strategy="epoch", max_steps=4
    )
    trainer = make_trainer(tiny_model("llama"), args, cls=InvActTrainer)
    trainer.train()
    logged = [entry[SAVED] for entry in training_logs(trainer)]
    shown = scalars(tmp_path / "events")
    assert len(logged) == 4
    assert shown[f"train/{SAVED}"] == [*logged, logged[-1]]  # the final log repeats the figure
    assert shown["train/peak_cuda_allocated_bytes"] == [7] * 5
    assert len(shown["train/loss"]) == 4
    assert [tag for tag in shown if tag.startswith("eval/")] != []
    assert not any(SAVED in tag or "cuda" in tag for tag in shown if not tag.startswith("train/"))


def test_the_log_history_has_them_once_for_each_training_log(tmp_path: Path) -> None:
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=1)
    trainer = make_trainer(tiny_model("llama"), args, cls=InvActTrainer)
    trainer.train()
    assert [SAVED in entry for entry in trainer.state.log_history] == [
        "eval_loss" not in entry for entry in trainer.state.log_history
    ]
    assert len(training_logs(trainer)) == 3
    assert not any("cuda" in key for entry in trainer.state.log_history for key in entry)


def test_a_memory_callback_beside_it_changes_no_figure(tmp_path: Path) -> None:
    def logged(*callbacks: MemoryCallback) -> list[int]:
        trainer = make_trainer(tiny_model("llama"), arguments(tmp_path), *callbacks, cls=InvActTrainer)
        trainer.train()
        return [entry[SAVED] for entry in training_logs(trainer)]

    assert logged(MemoryCallback()) == logged()
