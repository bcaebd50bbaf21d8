"""After a training that ends with an exception, the model can be unpatched, and trained again like a fresh one."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments, set_seed

from hf_invact import InvertedActivationsCallback, unpatch_model
from hf_invact.sites.activations import install
from tests.models import tiny_model
from tests.trainer.helpers import arguments, installed_hooks, is_patched, losses, make_trainer

MESSAGE = "the test is out of memory."  # a message that accelerate recognizes
ERRORS = [torch.OutOfMemoryError, KeyboardInterrupt, RuntimeError]
each_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)


class Fault:
    """Raises once, at the given call, and counts the calls."""

    def __init__(self, error: type[BaseException], at: int) -> None:
        self.error, self.at, self.calls = error, at, 0

    def __call__(self, *args: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error(MESSAGE)


def in_forward(model: PreTrainedModel, fault: Fault) -> None:
    """After the activations of the last layer."""
    list(install.patched(model))[-1][1].register_forward_hook(lambda *args: fault())


def in_backward(model: PreTrainedModel, fault: Fault) -> None:
    """When the gradient reaches the first layer's block, after the last layer's was computed."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(fault)

    next(iter(install.patched(model)))[1].register_forward_hook(hook)


def in_operator(model: PreTrainedModel, fault: Fault) -> None:
    """Just before the inverted activation's own backward pass."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        node = output.grad_fn
        while node is not None and "hf_invact" not in node.name():
            node = next((before for before, _ in node.next_functions if before is not None), None)
        if node is not None:
            node.register_prehook(fault)

    next(iter(install.patched(model)))[1].register_forward_hook(hook)


MODELS = ("bert", "llama")
PLACES = (in_forward, in_backward, in_operator)
# Every error at every place and step, and either model with each pair of these.
FAULTS = [
    pytest.param(ERRORS[error], PLACES[place], step, MODELS[(error + place + step) % 2])
    for error, place, step in itertools.product(range(3), range(3), (1, 2))
]


def train(model: PreTrainedModel, args: TrainingArguments) -> list[float]:
    set_seed(args.seed)
    trainer = make_trainer(model, args, InvertedActivationsCallback())
    trainer.train()
    return losses(trainer)


@pytest.fixture(scope="module")
def of_fresh_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """The losses of a training that is not interrupted."""
    args = arguments(tmp_path_factory.mktemp("fresh"), use_inverted_activations=True)
    return {name: train(tiny_model(name), args) for name in MODELS}


@pytest.mark.parametrize(("error", "place", "step", "name"), FAULTS, ids=lambda value: getattr(value, "__name__", None))
def test_trains_again_as_a_fresh_model(
    error: type[BaseException],
    place: Callable[[PreTrainedModel, Fault], None],
    step: int,
    name: str,
    of_fresh_models: dict[str, list[float]],
    tmp_path: Path,
) -> None:
    class Place(TrainerCallback):
        """After the model is patched, so that only calls of the training are counted."""

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            before = {module: len(module._forward_hooks) for module in model.modules()}
            place(model, fault)
            blocks.extend(module for module in before if len(module._forward_hooks) > before[module])

    blocks: list[nn.Module] = []
    args = arguments(tmp_path, use_inverted_activations=True)
    model, fault = tiny_model(name), Fault(error, step)
    trainer = make_trainer(model, args, InvertedActivationsCallback(), Place())
    with pytest.raises(error, match=MESSAGE):
        trainer.train()
    assert fault.calls == step
    assert is_patched(model)
    unpatch_model(model)
    assert not is_patched(model)
    assert list(install.patched(model)) == []
    blocks.pop()._forward_hooks.clear()  # the test's own
    assert installed_hooks(model) == 0
    assert "forward" not in vars(model)

    model.load_state_dict(tiny_model(name).state_dict())
    model.zero_grad()
    again = train(model, args)
    assert len(again) == 3
    assert again == of_fresh_models[name]
    assert not is_patched(model)
    assert installed_hooks(model) == 0


@each_error
def test_an_interrupted_step_is_freed(error: type[BaseException], tmp_path: Path) -> None:
    """If a failed step kept holding memory, the next one would fail too."""
    model = tiny_model("llama")
    args = arguments(tmp_path, use_inverted_activations=True)
    products: list[weakref.ref[Tensor]] = []

    class Place(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            for _, block, _ in install.patched(model):
                down: nn.Module = block.down_proj
                down.register_forward_pre_hook(lambda module, args: products.append(weakref.ref(args[0])))
            in_forward(model, Fault(error, 1))

    trainer = make_trainer(model, args, InvertedActivationsCallback(), Place())
    with pytest.raises(error):
        trainer.train()
    gc.collect()  # frames and tracebacks
    assert len(products) == 2
    assert [reference() for reference in products] == [None, None]


def test_a_batch_that_does_not_fit_is_halved(tmp_path: Path) -> None:
    """`auto_find_batch_size` starts another training when one runs out of memory."""

    class Place(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            if fault.calls == 0:
                in_backward(model, fault)

    model, fault = tiny_model("llama"), Fault(torch.OutOfMemoryError, 1)
    args = arguments(tmp_path, use_inverted_activations=True, per_device_train_batch_size=4, auto_find_batch_size=True)
    trainer = make_trainer(model, args, InvertedActivationsCallback(), Place())
    trainer.train()
    assert fault.calls > 1
    assert trainer._train_batch_size < 4
    assert len(losses(trainer)) >= 3
    assert not is_patched(model)
