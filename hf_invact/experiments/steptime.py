"""Step time with and without inverted activations, as a ratio of alternating steps in one process."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import torch
from torch import nn

from ..patching import patch_model, unpatch_model
from .arguments import RunArguments
from .finetune import FinetuneTrainer, build, now

PAIRS = 9
WARM_UP = 2


def measure_step_time(run: RunArguments, pairs: int = PAIRS) -> dict[str, Any]:
    """Time whole training steps (forward, backward, optimizer) on one batch, plain and patched in turn.

    Returns:
        The median of the pairs' ratios (patched over plain), the smallest and the largest, and the number of pairs.
    """
    run = dataclasses.replace(run, training=dataclasses.replace(run.training, use_inverted_activations=False))
    experiment = build(run)
    trainer = experiment.trainer(run.training, [])
    model = trainer.accelerator.prepare(trainer.model)
    optimizer = trainer.create_optimizer()
    batch = next(iter(trainer.get_train_dataloader()))

    def timed(patched: bool) -> float:
        if patched:
            patch_model(experiment.model, run.training.inverted_activations())
        try:
            began = now()
            _step(trainer, model, optimizer, batch)
            return now() - began
        finally:
            unpatch_model(experiment.model)

    for _ in range(WARM_UP):
        timed(False), timed(True)
    ratios = sorted(timed(True) / timed(False) for _ in range(pairs))
    return {"ratio": statistics.median(ratios), "low": ratios[0], "high": ratios[-1], "pairs": pairs}


def _step(trainer: FinetuneTrainer, model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Any]) -> None:
    model.train()
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(model, dict(batch))
    trainer.accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
