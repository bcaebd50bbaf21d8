"""Measures the ratio of the step times with and without inverted activations, from alternating steps."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from hf_invact.patching import inverted_activations
from hf_invact.trainer import InvActTrainingArguments

from ..benchmark.steps.measure import compare_variants
from ..benchmark.steps.training import Training
from ..benchmark.steps.variants import PLAIN, StepVariant
from ..finetuning.arguments import RunArguments
from ..finetuning.run import TrainingSetup, build

PAIRS = 9
INVERTED = "inverted"


class TrainerSteps(Training):
    """Steps on the first batch of a run's own data, as the Trainer takes them."""

    def __init__(self, experiment: TrainingSetup, arguments: InvActTrainingArguments) -> None:
        self.data = experiment.data
        self.trainer = experiment.trainer(arguments, [])
        # With autocast, this is another callable.
        self.prepared = self.trainer.accelerator.prepare(experiment.model)
        self.prepared.train()
        batch = dict(next(iter(self.trainer.get_train_dataloader())))
        super().__init__(experiment.model, batch, self.trainer.create_optimizer(), arguments.seed)

    def loss(self) -> Tensor:
        """The forward pass."""
        with self.trainer.compute_loss_context_manager():
            loss: Tensor = self.trainer.compute_loss(self.prepared, dict(self.batch))
        return loss

    def update(self, loss: Tensor) -> None:
        """The backward pass, clipping, and the optimizer's step."""
        accelerator, largest_norm = self.trainer.accelerator, self.trainer.args.max_grad_norm
        accelerator.backward(loss)
        if largest_norm:
            accelerator.clip_grad_norm_(self.prepared.parameters(), largest_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


def steps_of(run: RunArguments) -> TrainerSteps:
    """The plain training steps of a run.

    Raises:
        ConfigError: a model, file or value of the run cannot be used.
    """
    # Fields of Transformers' class, which mypy does not see.
    changes: dict[str, Any] = {"use_inverted_activations": False, "learning_rate": 0.0}
    training = dataclasses.replace(run.training, **changes)
    return TrainerSteps(build(dataclasses.replace(run, training=training)), training)


def measure_step_time(run: RunArguments, pairs: int = PAIRS) -> dict[str, Any]:
    """Time whole training steps (forward, backward, optimizer) on one batch, plain and patched in turn.

    Returns:
        The median of the pairs' ratios (patched over plain), the smallest and the largest, and the number of pairs.
    """
    config = run.training.inverted_activations()
    variants: dict[str, StepVariant] = {PLAIN: nullcontext, INVERTED: lambda model: inverted_activations(model, config)}
    count, facts = compare_variants(steps_of(run), variants, pairs, catch=())
    ratio = facts[INVERTED]["ratio"]
    return {"ratio": ratio["median"], "low": ratio["low"], "high": ratio["high"], "pairs": count}
