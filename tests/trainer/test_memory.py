"""Memory figures in the training logs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_invact import InvertedActivationsCallback, MemoryCallback
from hf_invact.memory import SavedActivations
from hf_invact.trainer import memory
from hf_invact.trainer.metering import hooks_are_active
from tests.helpers import normal, record_saved
from tests.models import ACTIVATIONS, each_model, tiny_model
from tests.trainer.helpers import SAVED, arguments, installed_hooks, losses, make_trainer, records, training_logs


@pytest.mark.parametrize("flag", [False, True], ids=["plain", "patched"])
@each_model
def test_each_training_log_has_the_bytes_that_a_forward_pass_saves(name: str, flag: bool, tmp_path: Path) -> None:
    model, callback = tiny_model(name), InvertedActivationsCallback()
    trainer = make_trainer(model, arguments(tmp_path, use_inverted_activations=flag), callback)
    row = records()[0]
    with SavedActivations(model) as expected:
        model(**{key: torch.stack([value, value]) for key, value in row.items()})
    trainer.train()
    logs = training_logs(trainer)
    # The Trainer passes a small tensor to the loss: the number of tokens in the batch.
    assert [entry[SAVED] - expected.total_bytes for entry in logs] == [pytest.approx(0, abs=16)] * 3
    assert callback.saved is not None
    assert callback.saved.total_bytes == logs[0][SAVED]


def test_patching_lowers_the_logged_bytes(tmp_path: Path) -> None:
    def logged(flag: bool) -> int:
        args = arguments(tmp_path, use_inverted_activations=flag)
        trainer = make_trainer(tiny_model("bert"), args, InvertedActivationsCallback(ACTIVATIONS))
        trainer.train()
        return training_logs(trainer)[0][SAVED]

    # Two MLPs and the prediction head, which also has an activation.
    assert logged(False) - logged(True) == (1 - 1 / 32) * (2 * 96 + 32) * 2 * 16 * 4


def test_only_training_logs_have_figures(tmp_path: Path) -> None:
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=1, eval_on_start=True)
    trainer = make_trainer(tiny_model("llama"), args, MemoryCallback())
    trainer.train()
    with_figures = [SAVED in entry for entry in trainer.state.log_history]
    assert with_figures == ["eval_loss" not in entry for entry in trainer.state.log_history]
    assert sum("eval_loss" in entry for entry in trainer.state.log_history) == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without CUDA")
def test_without_cuda_there_are_no_peaks(tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model("llama"), arguments(tmp_path), MemoryCallback())
    trainer.train()
    assert not any("cuda" in key for entry in trainer.state.log_history for key in entry)


def test_peaks_are_reset_when_training_begins_and_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(memory, "reset_peak", lambda: events.append("reset"))
    monkeypatch.setattr(memory, "peak_bytes", lambda: {"peak_cuda_allocated_bytes": 7})
    trainer = make_trainer(tiny_model("llama"), arguments(tmp_path), MemoryCallback())
    assert events == []
    trainer.train()
    assert events == ["reset"]
    assert [entry["peak_cuda_allocated_bytes"] for entry in training_logs(trainer)] == [7, 7, 7]


def test_each_training_measures_anew(tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model("llama"), arguments(tmp_path), MemoryCallback())
    trainer.train()
    long = training_logs(trainer)
    trainer.train_dataset = records(tokens=8)
    trainer.train()
    short = training_logs(trainer)
    assert [entry[SAVED] < long[0][SAVED] for entry in short] == [True] * 3


def test_measuring_changes_no_loss_and_leaves_no_hook(tmp_path: Path) -> None:
    plain = make_trainer(tiny_model("bert"), arguments(tmp_path))
    plain.train()
    model = tiny_model("bert")
    measured = make_trainer(model, arguments(tmp_path), MemoryCallback())
    measured.train()
    assert losses(measured) == losses(plain)
    assert installed_hooks(model) == 0


def test_waits_for_a_forward_pass_that_trains() -> None:
    args: Any = SimpleNamespace(torch_compile=False, n_gpu=1)
    model, callback, state = nn.Sequential(nn.Linear(4, 8), nn.GELU()), MemoryCallback(), TrainerState()
    callback.on_train_begin(args, state, TrainerControl(), model=model)
    callback.on_step_begin(args, state, TrainerControl(), model=model)
    with torch.no_grad():
        model(normal(2, 4))
    model.eval()(normal(2, 4))
    assert callback.saved is None
    model.train()(normal(2, 4))
    assert callback.figures()[SAVED] == 2 * 4 * 4 + 2 * 8 * 4
    assert installed_hooks(model) == 0


def test_a_training_without_a_forward_pass_leaves_no_hook() -> None:
    args: Any = SimpleNamespace(torch_compile=False, n_gpu=1)
    model, callback, state = nn.Linear(2, 2), MemoryCallback(), TrainerState()
    callback.on_train_begin(args, state, TrainerControl(), model=model)
    callback.on_step_begin(args, state, TrainerControl(), model=model)
    callback.on_train_end(args, state, TrainerControl(), model=model)
    assert installed_hooks(model) == 0
    assert SAVED not in callback.figures()


class Broken(list):
    """A data set that cannot be read."""

    def __getitem__(self, index: Any) -> Any:
        raise RuntimeError("broken record")


def broken_data(trainer: Trainer) -> None:
    trainer.train_dataset = Broken(records())


def broken_block(error: BaseException) -> Callable[[Trainer], None]:
    def break_it(trainer: Trainer) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise error

        trainer.model.model.layers[1].mlp.forward = fail

    return break_it


@pytest.mark.parametrize(
    "break_it", [broken_data, broken_block(RuntimeError("broken block"))], ids=["reading data", "forward pass"]
)
def test_a_training_that_raises_leaves_no_hook(break_it: Callable[[Trainer], None], tmp_path: Path) -> None:
    model = tiny_model("llama")
    trainer = make_trainer(model, arguments(tmp_path), MemoryCallback())
    break_it(trainer)
    with pytest.raises(RuntimeError, match="broken"):
        trainer.train()
    assert installed_hooks(model) == 0
    assert not hooks_are_active()


def test_an_interrupted_measurement_is_ended_at_once(tmp_path: Path) -> None:
    class CountHooks(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            counts.append(installed_hooks(model))

    model, counts = tiny_model("llama"), list[int]()
    trainer = make_trainer(model, arguments(tmp_path), MemoryCallback(), CountHooks())
    broken_block(KeyboardInterrupt())(trainer)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not hooks_are_active()
    assert installed_hooks(model) == 0
    assert "forward" not in vars(model)
    del model.model.layers[1].mlp.forward
    trainer.train()
    assert counts == [0, 0]
    assert not hooks_are_active()
    assert installed_hooks(model) == 0
    assert all(entry[SAVED] > 0 for entry in training_logs(trainer))


class Offloading(Trainer):
    """Offloads saved tensors, as TRL does."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with record_saved() as saved:
            loss = super().training_step(*args, **kwargs)
        self.offloaded = [*getattr(self, "offloaded", []), len(saved)]
        return loss


@pytest.mark.parametrize("callback", [MemoryCallback, InvertedActivationsCallback])
def test_offloading_is_left_to_do_its_work_from_the_first_step_on(
    callback: type[MemoryCallback], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(tiny_model("llama"), arguments(tmp_path, TrainingArguments), callback(), cls=Offloading)
    with caplog.at_level(logging.INFO, logger="hf_invact"):
        trainer.train()
    first, *others = trainer.offloaded
    assert first > 50
    assert others == [first] * 2
    assert [SAVED in entry for entry in training_logs(trainer)] == [False] * 3
    assert "(such as activation offloading)" in caplog.text
    assert installed_hooks(trainer.model) == 0
