"""Compares memory budgets with what real steps on a CPU then take, and predicts a 7B model for one GPU."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import MistralConfig

from hf_invact import BudgetPlan, InvActConfig, Lora, plan_budget
from hf_invact.patching import unpatch_model
from hf_invact.patching.checkpoints import checkpointable_layers
from hf_invact.patching.decisions.memory import Memory
from hf_invact.patching.patch import patch
from hf_invact.planning import make_optimizer
from hf_invact.planning.budget.choose import budget_from_run
from hf_invact.planning.dry_run import DryRun, dry_run
from hf_invact.planning.model.setup import Setup
from hf_invact.planning.variants import mixed

from ...benchmark.timing import Failure
from ...common.environment import describe_environment
from ...common.errors import ConfigError
from ...common.files import write_json
from ...compare.steptime import steps_of
from ...finetuning.arguments import parse_run
from ..subjects import LORA_SUBJECTS, QUICK_LORA_SUBJECTS, SUBJECTS
from .measured import step_peak

PART = "budget"
BUDGETS = 5
OPTIMIZER = "adamw_fused"

Measured = Callable[[int, bool], int]
"""The measured peak with so many layers checkpointed, and patched as well or not."""


@dataclasses.dataclass(frozen=True)
class BudgetModel:
    """A model and its data, from the config of a run.

    Attributes:
        name, title: in the results.
        config: the run's config.
        options: further arguments of the run.
    """

    name: str
    title: str
    config: str
    options: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Predicted:
    """A model that is planned from its config, for a GPU.

    Attributes:
        title: in the results.
        lora: its adapters.
        layers: of the model, if not all.
    """

    title: str
    lora: Lora
    layers: int = 32


_SIZE = ("--max_seq_length", "256", "--per_device_train_batch_size", "4")
_LORA = '{"r": 16, "lora_dropout": 0.05, "target_modules": "all-linear"}'
_SMOLLM2, _MINILM, _SMOLLM2_LORA, _TINY = SUBJECTS[0], SUBJECTS[1], LORA_SUBJECTS[0], QUICK_LORA_SUBJECTS[0]
FULL = (
    BudgetModel("smollm2-135m", "SmolLM2-135M, full", str(_SMOLLM2.config), _SIZE),
    BudgetModel("smollm2-135m-lora", "SmolLM2-135M, LoRA", str(_SMOLLM2_LORA.config), _SIZE),
    BudgetModel("minilm", "MiniLM-L6 (a BERT), full", str(_MINILM.config), ("--per_device_train_batch_size", "16")),
    BudgetModel(
        *("minilm-lora", "MiniLM-L6 (a BERT), LoRA", str(_MINILM.config)),
        ("--per_device_train_batch_size", "16", "--lora", _LORA),
    ),
)
QUICK = (BudgetModel(_TINY.name, "Llama, tiny, LoRA", str(_TINY.config), _TINY.overrides),)
PREDICTED = (
    Predicted("Mistral-7B, QLoRA, dropout 0.05", Lora(r=16, dropout=0.05)),
    Predicted("Mistral-7B, QLoRA, no dropout", Lora(r=16)),
)
QUICK_PREDICTED = (dataclasses.replace(PREDICTED[1], title="Mistral, 1 layer of 7B, QLoRA", layers=1),)
GPU, SEQUENCES, TOKENS = "24GiB", 1, 8192


def run(folder: Path, quick: bool, console: Console, command: str) -> Path:
    """Write budget.json into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        **{"command": command, "environment": describe_environment()},
        "settings": {"quick": quick, "optimizer": OPTIMIZER, "seed": 0},
        "predicted": [_predicted(each) for each in (QUICK_PREDICTED if quick else PREDICTED)],
        "entries": [],
    }
    for model in QUICK if quick else FULL:
        began = time.monotonic()
        content["entries"].append({"model": model.name, "title": model.title} | _entry(model))
        console.print(f"{model.title}: {time.monotonic() - began:.0f} s", markup=False, highlight=False)
        write_json(folder / f"{PART}.json", content)
    return folder / f"{PART}.json"


def _predicted(case: Predicted) -> dict[str, Any]:
    """What is planned for a GPU, and the peaks with nothing and everything checkpointed."""
    size = {"intermediate_size": 14336, "num_key_value_heads": 8, "num_hidden_layers": case.layers}
    config = MistralConfig(**size, vocab_size=32768, sliding_window=None)
    options: dict[str, Any] = {"autocast": "bfloat16", "quantize": "4bit", "lora": case.lora}
    plan = plan_budget(config, SEQUENCES, TOKENS, GPU, optimizer=OPTIMIZER, **options)
    return {"title": case.title, "budget": GPU, "batch": [SEQUENCES, TOKENS], **_facts(plan)}


def _facts(plan: BudgetPlan) -> dict[str, Any]:
    return {
        "budget_bytes": plan.budget_bytes,
        "reserve_bytes": plan.reserve_bytes,
        "layers": plan.layers,
        "checkpointed": len(plan.checkpointed),
        "patch_checkpointed": plan.patch_checkpointed,
        "extra_forward": plan.extra_forward,
        "predicted_bytes": plan.peak.total_bytes,
        "moment": plan.peak.moment,
        "one_less_bytes": None if plan.one_less is None else plan.one_less.total_bytes,
    }


def _entry(model: BudgetModel) -> dict[str, Any]:
    try:
        with tempfile.TemporaryDirectory() as folder:
            training = steps_of(parse_run([model.config, *model.options, "--output_dir", folder]))
    except ConfigError as error:  # for example, the package with the weights is not installed
        return Failure(str(error), expected=True).record()
    trained, batch = training.model, training.batch
    optimizer = make_optimizer(OPTIMIZER, [weight for weight in trained.parameters() if weight.requires_grad])
    memory, peaks = Memory(), dict[tuple[int, bool], int]()

    def measured(count: int, patch_checkpointed: bool) -> int:
        key = count, patch_checkpointed
        if key not in peaks:
            patch(trained, InvActConfig(checkpoint_layers=count, patch_checkpointed=patch_checkpointed), memory)
            peaks[key] = step_peak(trained, batch, optimizer)
        return peaks[key]

    sequences, tokens = batch["input_ids"].shape
    padded = "attention_mask" in batch and not bool(batch["attention_mask"].all())
    with dry_run(Setup(trained, padded=padded)) as planned:
        budgets = [*_budgets(planned, sequences, tokens)]
        plans = [budget_from_run(planned, sequences, tokens, budget, optimizer=OPTIMIZER) for budget in budgets]
    found = [_compared(plan, measured) for plan in plans]
    unpatch_model(trained)
    return {"batch": [sequences, tokens], "layers": plans[0].layers, "budgets": found}


def _budgets(planned: DryRun, sequences: int, tokens: int) -> list[int]:
    """From what is needed with nothing checkpointed down to what everything checkpointed needs."""
    ends = [
        planned.peak(variant, sequences, tokens, OPTIMIZER).total_bytes
        for variant in (mixed(0), mixed(len(checkpointable_layers(planned.model)), patch_checkpointed=True))
    ]
    most, least = max(ends), min(ends)
    return [most - round(part * (most - least) / (BUDGETS - 1)) for part in range(BUDGETS)]


def _compared(plan: BudgetPlan, measured: Measured) -> dict[str, Any]:
    """A plan with the measured peaks: its own, and the lower one with one checkpointed layer less."""
    count = len(plan.checkpointed)
    less = min(measured(count - 1, False), measured(count - 1, True)) if count else None
    return {
        **_facts(plan),
        "measured_bytes": measured(count, plan.patch_checkpointed),
        "one_less_measured_bytes": less,
    }
