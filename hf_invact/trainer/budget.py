"""Plans a training for a memory budget, and compares the prediction with what is measured."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..display.sizes import size
from ..inputs.sizes import takes_text
from ..patching import InvActConfig, PatchingError
from ..patching.budget import parse_budget
from ..patching.weights.sharding import is_sharded
from ..planning import BudgetPlan, PlanningError
from ..planning.batch import batch_in_words
from ..planning.budget.choose import budget_from_run
from ..planning.dry_run import dry_run
from ..planning.fake.flash_attention import FLASH_ATTENTION
from ..planning.model.real import facts_of, transformers_model
from ..planning.model.setup import Setup
from .batches import Length, is_packed, longest_sequence, planned_optimizer, sequences_of_a_record

logger = logging.getLogger(__name__)

FIRST_STEPS = 3  # after which the measured peak is compared: a step has the optimizer's state from the second on


@dataclass(frozen=True)
class TrainingPlan:
    """What is planned for a training.

    Attributes:
        plan: the layers to checkpoint.
        length: of its sequences; None for images alone.
        note: on what was planned in place of something else; else empty.
        replaces: whether gradient checkpointing is on in the training arguments.
    """

    plan: BudgetPlan
    length: Length | None
    note: str
    replaces: bool

    def __str__(self) -> str:
        text = str(self.plan)
        if self.replaces:
            text += f"\n  in place of all {self.plan.layers}, which gradient_checkpointing asks for"
        if self.length is not None:
            text += f"\n  sequences of {self.length.tokens:,} tokens: {self.length.source}"
        return f"{text}\n  {self.note}" if self.note else text


def plan_training(model: nn.Module, config: InvActConfig, args: Any, others: Mapping[str, Any]) -> TrainingPlan:
    """Choose the layers to checkpoint for the budget of a config.

    Args:
        model: as it is trained, or wrapped.
        args: the training arguments.
        others: the other arguments of the callback.

    Raises:
        PatchingError: nothing fits, or what decides it is not known.
    """
    try:
        return _plan_training(model, config, args, others)
    except (PlanningError, ValueError) as error:
        raise PatchingError(f"memory_budget={config.memory_budget!r}: {error}") from error


def _plan_training(model: nn.Module, config: InvActConfig, args: Any, others: Mapping[str, Any]) -> TrainingPlan:
    inner = transformers_model(model)
    if is_sharded(model):
        raise PlanningError(
            "the weights are sharded, and whole ones would be planned. Choose the layers by hand: checkpoint_layers"
        )
    length = longest_sequence(args, others, config.seq_len) if takes_text(inner) else None
    if length is None and takes_text(inner):
        raise PlanningError(
            "it is unknown how long the sequences are at most: neither the training arguments, the collator nor the "
            'data tell. Say so in inverted_activations_config: "seq_len": 2048'
        )
    device = next(inner.parameters()).device
    optimizer, note = planned_optimizer(others.get("optimizer"))
    sequences = args.per_device_train_batch_size * sequences_of_a_record(others)
    has_mask = facts_of(model).attention != FLASH_ATTENTION and not is_packed(args)
    padded = length is not None and sequences > 1 and has_mask
    with dry_run(Setup(model, autocast=_autocast(config), config=config, padded=padded)) as run:
        plan = budget_from_run(
            run,
            sequences,
            None if length is None else length.tokens,
            parse_budget(config.memory_budget).on(device),
            optimizer=optimizer,
            accumulates=args.gradient_accumulation_steps > 1,
            other_bytes=_held_by_others(run.model, device) + (_gradient_bytes(inner) if args.world_size > 1 else 0),
        )
    return TrainingPlan(plan, length, note, bool(args.gradient_checkpointing))


def _held_by_others(planned: nn.Module, device: torch.device) -> int:
    """Bytes on a GPU that are not the model's: of a reference model, for one."""
    if device.type != "cuda":
        return 0
    own = sum(each.numel() * each.element_size() for each in (*planned.parameters(), *planned.buffers()))
    return max(0, torch.cuda.memory_allocated(device) - own)


def _gradient_bytes(model: nn.Module) -> int:
    """What DistributedDataParallel's buckets take, which hold a copy of each gradient."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters() if weight.requires_grad)


def _autocast(config: InvActConfig) -> str | bool:
    return False if config.autocast_dtype is None else str(config.autocast_dtype).partition(".")[2]


def compare_peaks(planned: TrainingPlan, measured: int) -> str:
    """A line with the measured peak beside the predicted one."""
    plan = planned.plan
    change = measured / plan.peak.total_bytes - 1
    return (
        f"peak memory of the first {FIRST_STEPS} steps: {size(measured)} measured, {size(plan.peak.total_bytes)} "
        f"predicted ({change:+.1%}), {size(plan.budget_bytes)} allowed"
    )


class LargerBatches:
    """Warns once of a batch that is larger than what was planned."""

    def __init__(self) -> None:
        self._handle: RemovableHandle | None = None

    def watch(self, model: nn.Module, plan: BudgetPlan) -> None:
        """Look at the batches of a model until `end`, or until one is larger."""
        self.end()

        def look(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            ids = next((value for value in (kwargs.get("input_ids"), *args) if isinstance(value, Tensor)), None)
            if not model.training or ids is None or ids.dim() < 2 or plan.seq_len is None:
                return
            if ids.shape[0] * ids.shape[1] > plan.batch_size * plan.seq_len:
                logger.warning(
                    "a batch of %s is larger than the planned one of %s, so the memory budget may not hold. Plan for "
                    'it: "seq_len" in inverted_activations_config',
                    batch_in_words(ids.shape[0], ids.shape[1]),
                    batch_in_words(plan.batch_size, plan.seq_len),
                )
                self.end()

        self._handle = model.register_forward_pre_hook(look, with_kwargs=True)

    def end(self) -> None:
        """Stop looking."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
