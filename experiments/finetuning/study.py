"""What a study asks of a run beside its training: a control, another method, gradients compared on the way."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_invact.patching import InvActConfig, inverted_activations

from ..common.errors import ConfigError
from ..methods.catalogue import METHODS
from .gradients import cosine_distance, gradient, relative_error


@dataclass
class StudyArguments:
    """What is changed or measured for the sake of a comparison."""

    method: str | None = field(
        default=None,
        metadata={"help": f"Another way to save memory in the activations, for comparison: {', '.join(METHODS)}."},
    )
    nudge_weight: bool = field(
        default=False,
        metadata={
            "help": "Move one weight by one unit in the last place before training: the control that shows how far two "
            "equal trainings drift apart."
        },
    )
    gradient_checks: int = field(
        default=0,
        metadata={
            "help": "Compare the whole gradient, plain and inverted, in float32 and bfloat16, at so many points of the "
            "training. It does not change the training."
        },
    )

    def __post_init__(self) -> None:
        if self.method is not None and self.method not in METHODS:
            raise ConfigError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.gradient_checks < 0:
            raise ConfigError(f"gradient_checks must be 0 or more, got {self.gradient_checks}")

    def applied(self, model: PreTrainedModel) -> AbstractContextManager[Any]:
        """The method, if there is one, on the model inside of the context."""
        return nullcontext() if self.method is None else METHODS[self.method].applied(model)


def nudge(model: nn.Module) -> None:
    """Move one trained weight by one unit in the last place."""
    weight = _nudged_weight(model)
    weight.copy_(torch.nextafter(weight, torch.full_like(weight, torch.inf)))


@contextmanager
def nudged(model: nn.Module) -> Iterator[None]:
    """One trained weight moved by one unit in the last place inside of the context, and put back afterwards."""
    weight = _nudged_weight(model)
    before = weight.clone()
    nudge(model)
    try:
        yield
    finally:
        weight.copy_(before)


def _nudged_weight(model: nn.Module) -> Tensor:
    """The largest number of the first trained matrix that every token passes through: a view, of one element.

    A unit in the last place of a small one would be lost in the sums that it enters.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = (weight for weight in model.parameters() if weight.requires_grad and weight.ndim == 2)
    weights = next(weight for weight in matrices if id(weight) not in embeddings).detach().view(-1)
    largest = int(weights.abs().argmax())
    return weights[largest : largest + 1]


class GradientChecks(TrainerCallback):
    """Compares whole gradients of one batch, plain and inverted, at several points of a plain training.

    Args:
        points: how many, the first before the first step and the last after the last one.
        batch: on the model's device.
        config: how to invert.

    Attributes:
        found: an entry for each point and dtype. Beside the distance of the inverted gradient from the plain one it
            tells that of a plain gradient with one weight moved by one unit in the last place, and for bfloat16 that
            of the plain one from the plain one in float32: the errors that training has anyway.
    """

    def __init__(self, points: int, batch: dict[str, Any], config: InvActConfig) -> None:
        self.points, self.batch, self.config = points, batch, config
        self.found: list[dict[str, Any]] = []

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._check(kwargs["model"], state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._check(kwargs["model"], state)

    def _check(self, model: PreTrainedModel, state: TrainerState) -> None:
        steps = {round(point * state.max_steps / max(1, self.points - 1)) for point in range(self.points)}
        if state.global_step not in steps:
            return
        exact = gradient(model, self.batch)
        self.found.append({"step": state.global_step, "dtype": "fp32", **self._distances(model, exact)})
        half = copy.deepcopy(model).bfloat16()
        plain = gradient(half, self.batch)
        from_float32 = {"plain_from_fp32": cosine_distance(plain, exact)}
        self.found.append({"step": state.global_step, "dtype": "bf16", **self._distances(half, plain), **from_float32})

    def _distances(self, model: PreTrainedModel, plain: list[Tensor]) -> dict[str, float]:
        with inverted_activations(model, self.config):
            inverted = gradient(model, self.batch)
        with nudged(model):
            control = gradient(model, self.batch)
        return {
            "cosine_distance": cosine_distance(inverted, plain),
            "relative_error": relative_error(inverted, plain),
            "control_cosine_distance": cosine_distance(control, plain),
            "control_relative_error": relative_error(control, plain),
        }
