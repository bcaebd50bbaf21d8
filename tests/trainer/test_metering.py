"""A metered first step gives the same results, compiled code and copies as an unmetered one, or says why not."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

from hf_invact import InvertedActivationsCallback, MemoryCallback, unpatch_model
from hf_invact.memory import SavedActivations
from hf_invact.trainer.metering import hooks_are_active
from tests.helpers import normal
from tests.models import batch, each_model, tiny_model
from tests.trainer.helpers import SAVED, arguments, installed_hooks, make_trainer, records, training_logs

LOGGER = "hf_invact.trainer.memory"
ARGUMENTS: Any = SimpleNamespace(torch_compile=False, n_gpu=1)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.GELU())


def attributes(model: nn.Module) -> list[dict[str, object]]:
    return [dict(vars(module)) for module in model.modules()]


def begin(callback: MemoryCallback, model: Any, **options: Any) -> tuple[Any, ...]:
    events = SimpleNamespace(**{**vars(ARGUMENTS), **options}), TrainerState(), TrainerControl()
    callback.on_train_begin(*events, model=model)
    callback.on_step_begin(*events, model=model)
    return events


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER and record.levelname == "WARNING"]


class Compiles(TrainerCallback):
    """Compiles the layers when training begins, each as one graph."""

    def __init__(self) -> None:
        self.counter = CompileCounter()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        for layer in model.model.layers:
            layer.compile(backend=self.counter, fullgraph=True)


@pytest.mark.parametrize("callback", [None, MemoryCallback, InvertedActivationsCallback])
def test_layers_that_the_user_compiled_are_compiled_as_without_a_callback(
    callback: type[MemoryCallback] | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.compiler.reset()
    compiles, callbacks = Compiles(), [callback()] if callback else []
    flag = callback is InvertedActivationsCallback
    args = arguments(tmp_path, use_inverted_activations=flag)
    trainer = make_trainer(tiny_model("llama"), args, compiles, *callbacks)
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        trainer.train()
    assert compiles.counter.frame_count == 1
    assert [SAVED in entry for entry in training_logs(trainer)] == [False] * 3
    reason = "torch.compile is used: model.layers.0 and 1 more of its modules are compiled"
    assert warnings_of(caplog) == ([f"saved activation bytes are not measured: {reason}"] if callback else [])


@pytest.mark.parametrize(
    ("options", "model", "reason"),
    [
        ({"torch_compile": True}, mlp(), "torch.compile is on"),
        ({"n_gpu": 2}, mlp(), "nn.DataParallel replicates the model"),
        ({}, torch.compile(mlp()), "torch.compile is used: the model is compiled"),
        ({}, SimpleNamespace(model_body=mlp()), "the model is a SimpleNamespace, not an nn.Module"),
    ],
    ids=["torch_compile", "n_gpu", "compiled", "no module"],
)
def test_what_is_not_measured_is_said_once(
    options: dict[str, Any], model: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    callback = MemoryCallback()
    events = begin(callback, model, **options)
    callback.on_step_end(*events, model=model)
    callback.on_step_begin(*events, model=model)
    (warning,) = warnings_of(caplog)
    assert reason in warning
    assert callback.saved is None
    assert SAVED not in callback.figures()


def test_a_model_that_is_not_called_itself_is_not_measured(caplog: pytest.LogCaptureFixture) -> None:
    model, callback = mlp(), MemoryCallback()
    before = attributes(model)
    events = begin(callback, model)
    model[1](model[0](normal(2, 4))).sum().backward()
    callback.on_step_end(*events, model=model)
    (warning,) = warnings_of(caplog)
    assert "no training forward pass went through the model itself" in warning
    assert attributes(model) == before


class TakesAGradient(nn.Module):
    """Computes gradients in its forward pass, as models of forces do. PyTorch refuses that under saved-tensor hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(4, 4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.layer(x))
        gradient: Tensor = torch.func.grad(lambda y: y.square().sum())(x)
        return gradient


def test_a_model_that_the_meter_cannot_run_trains_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    model, callback = TakesAGradient(), MemoryCallback()
    torch.manual_seed(0)
    expected = model(normal(2, 4))
    events = begin(callback, model)
    torch.manual_seed(0)
    found = model(normal(2, 4))
    assert torch.equal(found, expected)
    callback.on_step_end(*events, model=model)
    (warning,) = warnings_of(caplog)
    assert "the model uses torch.func.grad" in warning
    assert callback.figures() == {}


class Copies(TrainerCallback):
    """Copies the model at the beginning of the first step, as for averaged weights or a reference model."""

    copied: nn.Module | None = None

    def __init__(self, how: Callable[[nn.Module], nn.Module]) -> None:
        self.how = how

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.copied is None:
            self.copied = self.how(model)


def pickled(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copied: nn.Module = torch.load(buffer, weights_only=False)
    return copied


@pytest.mark.parametrize("flag", [False, True], ids=["plain", "patched"])
@pytest.mark.parametrize("how", [copy.deepcopy, pickled])
def test_a_copy_made_in_the_first_step_is_not_metered(
    how: Callable[[nn.Module], nn.Module], flag: bool, tmp_path: Path
) -> None:
    model, copies, callback = tiny_model("llama"), Copies(how), InvertedActivationsCallback()
    args = arguments(tmp_path, use_inverted_activations=flag)
    make_trainer(model, args, callback, copies).train()
    measured = callback.figures()
    assert copies.copied is not None
    unpatch_model(copies.copied)
    copies.copied(**batch(model)).loss.backward()
    assert callback.figures() == measured
    assert installed_hooks(copies.copied) == 0
    assert not any({"forward", "_compiled_call_impl"} & set(vars(module)) for module in copies.copied.modules())


class Pairs(Trainer):
    """Its loss compares two forward passes, as those of Sentence-Transformers do."""

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        ids = inputs["input_ids"]
        loss: Tensor = (model(input_ids=ids).logits - model(input_ids=ids.flip(0)).logits).square().mean()
        return loss


def test_all_forward_passes_of_a_step_are_counted(tmp_path: Path) -> None:
    model, callback = tiny_model("llama"), MemoryCallback()
    args = arguments(tmp_path, gradient_accumulation_steps=2)
    trainer = make_trainer(model, args, callback, cls=Pairs)
    ids = torch.stack([row["input_ids"] for row in records()[:2]])
    with SavedActivations(model) as expected:
        outputs = [model(input_ids=ids).logits, model(input_ids=ids).logits]
    trainer.train()
    assert len(outputs) == 2
    assert [entry[SAVED] for entry in training_logs(trainer)] == [pytest.approx(expected.total_bytes, abs=256)] * 3
    assert callback.saved is not None
    assert sum(callback.saved_by_part.values()) == callback.saved.total_bytes


def test_ends_when_the_first_backward_pass_is_over_even_if_it_fails() -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

    model, callback = mlp(), MemoryCallback()
    before = attributes(model)
    begin(callback, model)
    with pytest.raises(RuntimeError, match="out of memory"):
        Fails.apply(model(normal(2, 4))).sum().backward()
    measured = callback.figures()
    model(normal(6, 4))
    assert attributes(model) == before
    assert not hooks_are_active()
    assert callback.figures() == measured == {SAVED: 2 * 4 * 4 + 2 * 8 * 4}


@each_model
def test_two_callbacks_measure_the_same(name: str, tmp_path: Path) -> None:
    first, second = MemoryCallback(), InvertedActivationsCallback()
    make_trainer(tiny_model(name), arguments(tmp_path, max_steps=1), first, second).train()
    assert first.figures() == second.figures()
    assert first.figures()[SAVED] > 0
