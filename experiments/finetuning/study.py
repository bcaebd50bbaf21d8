"""What a study adds to a run: a control, another method, or comparisons of gradients during training."""

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
    """Changes and measurements that only comparisons need."""

    method: str | None = field(
        default=None,
        metadata={"help": f"Another way to save memory in the activations, for comparison: {', '.join(METHODS)}."},
    )
    nudge_weight: bool = field(
        default=False,
        metadata={
            "help": "Move one weight by one unit in the last place before training: the control, which shows how far "
            "two almost equal trainings drift apart."
        },
    )
    gradient_checks: int = field(
        default=0,
        metadata={
            "help": "Compare the whole gradient, plain and inverted, in float32 and bfloat16, at this many points of "
            "the training. This does not change the training."
        },
    )

    def __post_init__(self) -> None:
        if self.method is not None and self.method not in METHODS:
            raise ConfigError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.gradient_checks < 0:
            raise ConfigError(f"gradient_checks must be 0 or more, got {self.gradient_checks}")

    def applied(self, model: PreTrainedModel) -> AbstractContextManager[Any]:
        """A context in which the model is trained with the method, if there is one."""
        return nullcontext() if self.method is None else METHODS[self.method].applied(model)


def nudge(model: nn.Module) -> None:
    """Move one trained weight by one unit in the last place."""
    weight = _nudged_weight(model)
    weight.copy_(torch.nextafter(weight, torch.full_like(weight, torch.inf)))


@contextmanager
def nudged(model: nn.Module) -> Iterator[None]:
    """Inside of the context, one trained weight is moved by one unit in the last place."""
    weight = _nudged_weight(model)
    before = weight.clone()
    nudge(model)
    try:
        yield
    finally:
        weight.copy_(before)


def _nudged_weight(model: nn.Module) -> Tensor:
    """A view of the largest number in the first trained matrix that is not an embedding: all tokens use it.

    The last place of a small number would be lost in the sums.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = (weight for weight in model.parameters() if weight.requires_grad and weight.ndim == 2)
    weights = next(weight for weight in matrices if id(weight) not in embeddings).detach().view(-1)
    largest = int(weights.abs().argmax())
    return weights[largest : largest + 1]


class GradientChecks(TrainerCallback):
    """Compares whole gradients of one batch, plain and inverted, at several points of a plain training.

    Args:
        points: how many. The first is before the first step, the last one after the last step.
        batch: on the model's device.
        config: of the patched model.

    Attributes:
        found: an entry for each point and dtype, with the distance of the inverted gradient from the plain one. For
            comparison, it has the distance after one weight was moved by one unit in the last place, and for bfloat16
            that of the plain gradient from the plain one in float32: errors that training has anyway.
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
