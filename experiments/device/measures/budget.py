"""Steps within a memory budget: the predicted peak beside the measured one."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from hf_invact.patching import inverted_activations
from hf_invact.patching.checkpoints import checkpointable_layers
from hf_invact.planning.budget.choose import budget_from_run, with_reserve
from hf_invact.planning.dry_run import dry_run
from hf_invact.planning.model.setup import Setup
from hf_invact.planning.variants import mixed

from ...benchmark.steps.training import Training
from ...reproduce.budget.measured import step_peak
from ..case import Case, Conditions
from .steps import MODELS, Trained, training_of

OPTIMIZER = "adamw_fused"


def cases(kind: str) -> list[Case]:
    """One for each model."""
    return [Case(trained.model.model, partial(measure, trained)) for trained in MODELS[kind]]


def measure(trained: Trained, conditions: Conditions) -> dict[str, Any]:
    """A budget half way between what a step needs with no layer checkpointed and with all, and what it then takes."""
    case, training = trained.model, training_of(trained, conditions)
    size, device = (case.sequences, case.tokens), conditions.device
    with dry_run(Setup(training.model)) as run:
        layers = len(checkpointable_layers(run.model))
        none, every = (run.peak(mixed(count), *size, OPTIMIZER).total_bytes for count in (0, layers))
        budget = with_reserve((none + min(none, every)) // 2, device.type)
        plan = budget_from_run(run, *size, budget, optimizer=OPTIMIZER)
    with inverted_activations(training.model, plan.config):
        taken = _on_gpu(training) if device.type == "cuda" else {"measured_bytes": _on_cpu(training)}
    return {
        "title": case.title,
        "lora": dict(trained.lora) or None,
        "sequences": case.sequences,
        "tokens": case.tokens,
        "dtype": case.dtype,
        "budget_bytes": budget,
        "reserve_bytes": plan.reserve_bytes,
        "layers": layers,
        "checkpointed": len(plan.checkpointed),
        "patch_checkpointed": plan.patch_checkpointed,
        "moment": plan.peak.moment,
        "predicted_bytes": plan.peak.total_bytes,
        **taken,
    }


def _on_cpu(training: Training) -> int:
    return step_peak(training.model, training.batch, training.optimizer)


def _on_gpu(training: Training) -> dict[str, int]:
    """The peak of the second step, and all that is taken then: also the allocator's rest, and CUDA's context."""
    training.step()
    torch.cuda.empty_cache()
    peak = training.peak()["peak_bytes"]
    free, total = torch.cuda.mem_get_info()
    return {"measured_bytes": peak, "used_bytes": total - free}
