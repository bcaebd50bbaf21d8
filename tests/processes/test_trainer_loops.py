"""What a Trainer does around its steps: accumulating gradients, halving the batch, resuming, searching."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback

from hf_invact import InvertedActivationsCallback
from hf_invact.sites.activations.patched import PatchedActivation
from tests.models import LAYERS, tiny_model
from tests.trainer.helpers import SAVED, FailAt, Witness, arguments, is_patched, losses, make_trainer, training_logs
from tests.versions import has_accelerate

each_flag = pytest.mark.parametrize("flag", [False, True], ids=["plain", "patched"])


class Gradients(TrainerCallback):
    """Keeps those of every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.steps.append({name: weight.grad.clone() for name, weight in model.named_parameters()})


def accumulate(folder: Path, *, flag: bool, pieces: int) -> tuple[Trainer, list[dict[str, Tensor]]]:
    """Three steps with batches of four, each accumulated from this many pieces."""
    gradients = Gradients()
    options = {"per_device_train_batch_size": 4 // pieces, "gradient_accumulation_steps": pieces}
    args = arguments(folder, use_inverted_activations=flag, **options)
    trainer = make_trainer(tiny_model("llama"), args, InvertedActivationsCallback(), gradients)
    trainer.train()
    return trainer, gradients.steps


def assert_same_gradients(found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    assert len(found) == len(expected) == 3
    for step, other in zip(found, expected, strict=True):
        for name, gradient in other.items():
            assert (step[name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-6, name


@each_flag
def test_accumulated_pieces_give_the_gradients_of_the_whole_batch(flag: bool, tmp_path: Path) -> None:
    whole, expected = accumulate(tmp_path, flag=flag, pieces=1)
    pieces, found = accumulate(tmp_path, flag=flag, pieces=4)
    assert losses(pieces) == pytest.approx(losses(whole), rel=1e-5)
    assert_same_gradients(found, expected)
    assert training_logs(pieces)[0][SAVED] < training_logs(whole)[0][SAVED] / 3.5  # of one piece


def test_accumulated_gradients_are_those_without_the_flag(tmp_path: Path) -> None:
    plain, expected = accumulate(tmp_path, flag=False, pieces=2)
    patched, found = accumulate(tmp_path, flag=True, pieces=2)
    assert losses(patched) == pytest.approx(losses(plain), rel=1e-5)
    assert_same_gradients(found, expected)
    assert training_logs(patched)[0][SAVED] < 0.8 * training_logs(plain)[0][SAVED]


def times_patched(model: PreTrainedModel) -> list[int]:
    """How many inverted activations are nested in each other, for each MLP."""

    def depth(activation: Any) -> int:
        return 1 + depth(activation.original) if isinstance(activation, PatchedActivation) else 0

    return [depth(layer.mlp.act_fn) for layer in model.model.layers]


class TimesPatched(TrainerCallback):
    """Records at each event how many times the MLPs are patched."""

    def __init__(self) -> None:
        self.at_train_begin: list[list[int]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.at_train_begin.append(times_patched(model))


OUT_OF_MEMORY: dict[str, Callable[[], RuntimeError]] = {
    "OutOfMemoryError": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "RuntimeError": lambda: RuntimeError("CUDA out of memory."),
}


@pytest.mark.slow
@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_finding_the_batch_size_patches_once_and_unpatches(error: Callable[[], RuntimeError], tmp_path: Path) -> None:
    def train(flag: bool) -> tuple[Trainer, TimesPatched, Witness]:
        model, times, witness = tiny_model("llama"), TimesPatched(), Witness()

        def only_four_fit(layer: Any, args: tuple[Tensor, ...]) -> None:
            if len(args[0]) > 4:
                raise error()

        model.model.layers[1].register_forward_pre_hook(only_four_fit)
        options = {"auto_find_batch_size": True, "per_device_train_batch_size": 5}
        args = arguments(tmp_path, use_inverted_activations=flag, **options)
        trainer = make_trainer(model, args, InvertedActivationsCallback(), times, witness)
        trainer.train()
        return trainer, times, witness

    plain, _, _ = train(False)
    patched, times, witness = train(True)
    assert patched._train_batch_size == plain._train_batch_size == (4 if has_accelerate("1.9") else 2)
    assert times.at_train_begin == [[1] * LAYERS] * 2  # with batches of 5, and of the size that fits
    assert witness.patched["train_end"] == [False]
    assert times_patched(patched.model) == [0] * LAYERS
    assert len(losses(plain)) == 3
    assert losses(patched) == pytest.approx(losses(plain), rel=1e-5)
    assert training_logs(patched)[0][SAVED] < 0.8 * training_logs(plain)[0][SAVED]


@pytest.mark.parametrize("resumed", [False, True], ids=["resumed plain", "resumed patched"])
@pytest.mark.parametrize("saved", [False, True], ids=["saved plain", "saved patched"])
def test_a_resumed_run_has_the_losses_of_a_whole_one(saved: bool, resumed: bool, tmp_path: Path) -> None:
    """With dropout, so the random states count as well; and the flag may change in between."""

    def trainer(folder: str, flag: bool, *callbacks: TrainerCallback) -> Trainer:
        options: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
        args = arguments(tmp_path / folder, use_inverted_activations=flag, **options)
        return make_trainer(tiny_model("bert"), args, InvertedActivationsCallback(), *callbacks)

    whole = trainer("whole", resumed)
    whole.train()
    interrupted = trainer("interrupted", saved, FailAt(step=3))
    with pytest.raises(RuntimeError, match="the step failed"):
        interrupted.train()
    again = trainer("interrupted", resumed)
    again.train(resume_from_checkpoint=True)
    assert len(losses(again)) == 4
    if saved == resumed:
        assert losses(again) == losses(whole)
    assert losses(again) == pytest.approx(losses(whole), rel=1e-5)
    assert not is_patched(again.model)


RATES = [1e-3, 1e-2]


@pytest.mark.slow
def test_a_search_patches_the_model_of_each_trial(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna", reason="needs Optuna, which brings a database with it")

    def search(flag: bool) -> tuple[list[float], list[PreTrainedModel], Witness]:
        models: list[PreTrainedModel] = []
        found: list[float] = []

        def model_init(trial: Any) -> PreTrainedModel:
            models.append(tiny_model("llama"))
            return models[-1]

        def objective(metrics: dict[str, float]) -> float:
            found.append(metrics["eval_loss"])
            return found[-1]

        witness = Witness()
        args = arguments(tmp_path, use_inverted_activations=flag, eval_strategy="steps", eval_steps=3)
        trainer = make_trainer(None, args, InvertedActivationsCallback(), witness, model_init=model_init)
        best = trainer.hyperparameter_search(
            hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", RATES)},
            compute_objective=objective,
            n_trials=len(RATES),
            direction="minimize",
            backend="optuna",
            sampler=optuna.samplers.GridSampler({"learning_rate": RATES}, seed=0),
        )
        assert best.objective == min(found)
        return found, models, witness

    plain, _, _ = search(False)
    patched, models, witness = search(True)
    assert len(set(plain)) == len(RATES)
    assert patched == pytest.approx(plain, rel=1e-5)
    assert witness.patched["step"] == [True] * 3 * len(RATES)
    assert witness.patched["train_end"] == [False] * len(RATES)
    assert len(models) >= len(RATES)
    assert not any(is_patched(model) for model in models[-len(RATES) :])
