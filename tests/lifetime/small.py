"""The training that is killed and resumed: six steps, with a checkpoint after every second one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, set_seed

from tests.models import tiny_model
from tests.trainer.helpers import arguments, make_trainer

MODELS = ("bert", "llama")
STEPS = 6


def train(
    name: str, folder: Path, *callbacks: TrainerCallback, checkpoint: Path | None = None, **options: Any
) -> Trainer:
    """Train with the flag on."""
    args = arguments(
        folder, use_inverted_activations=True, max_steps=STEPS, save_strategy="steps", save_steps=2, logging_steps=1
    )
    set_seed(args.seed)
    trainer = make_trainer(tiny_model(name), args, *callbacks, **options)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer
