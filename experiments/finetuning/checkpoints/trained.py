"""Loads a training that had already ended from its last checkpoint, instead of training again."""

from __future__ import annotations

import logging
from pathlib import Path

from transformers import Trainer, TrainerState, TrainingArguments

from hf_invact.patching import unpatch_model

from ...common.errors import ConfigError
from .integrity import STATE, read_state
from .resume import check_checkpoint, check_complete

logger = logging.getLogger(__name__)


def is_trained(checkpoint: Path, training: TrainingArguments) -> bool:
    """Whether a complete checkpoint is that of the last step. (The Trainer would take another step from it.)"""
    state = read_state(checkpoint) or {}
    if training.max_steps > 0:
        return bool(state["global_step"] >= training.max_steps)
    return bool(state["global_step"] >= state["max_steps"] and (state.get("epoch") or 0) >= training.num_train_epochs)


def load_trained(trainer: Trainer, checkpoint: Path) -> None:
    """Load the trained weights (the best ones if the arguments ask for them) and the logs of the training.

    Raises:
        ConfigError: the weights are sharded, or the best ones are missing.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ConfigError(
            f"{checkpoint} is the checkpoint of the last step, but sharded weights cannot be evaluated without "
            "training; evaluate it with your own script, or remove it to continue from the previous one"
        )
    state = TrainerState.load_from_json(str(checkpoint / STATE))
    weights = checkpoint
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint:
        weights = checkpoint.parent / Path(state.best_model_checkpoint).name
        check_complete(weights)
        check_checkpoint(weights, trainer.model)
    trainer._load_from_checkpoint(str(weights))
    state.is_local_process_zero = trainer.is_local_process_zero()
    state.is_world_process_zero = trainer.is_world_process_zero()
    trainer.state = state
    trainer.save_state()
    unpatch_model(trainer.model)  # as after training
    logger.info("already trained: evaluating %s", weights)
