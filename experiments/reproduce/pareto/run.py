"""Measures memory against step time: plain, compiled, checkpointed, and ours with more or fewer checkpoints."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ...benchmark.steps.measure import compare_variants
from ...common.environment import describe_environment
from ...common.files import write_atomically, write_json
from ...compare.steptime import steps_of
from ...finetuning.arguments import parse_run
from ..steps.run import SETTINGS, entry_of, finished
from ..subjects import LORA_SUBJECTS, QUICK_LORA_SUBJECTS, SUBJECTS
from .plots import png_of
from .variants import title, variants_for

PART = "pareto"


@dataclass(frozen=True)
class ParetoModel:
    """A model and its data, from the config of a run.

    Attributes:
        name, title: in the results.
        config: the run's config.
        options: further arguments of the run.
        rounds: how many steps each variant takes.
        compiles: whether it is also compiled as a whole, which takes minutes.
    """

    name: str
    title: str
    config: str
    options: tuple[str, ...]
    rounds: int = 15
    compiles: bool = False

    def settings(self) -> dict[str, Any]:
        """What decides the result, as JSON returns it."""
        values = {"config": self.config, "options": list(self.options)}
        return {**values, "rounds": self.rounds, "compiles": self.compiles}


_SIZE = ("--max_seq_length", "128", "--per_device_train_batch_size", "2")
_SMOLLM2, _SMOLLM2_LORA, _TINY = SUBJECTS[0], LORA_SUBJECTS[0], QUICK_LORA_SUBJECTS[0]
FULL = (
    ParetoModel("smollm2-135m", "SmolLM2-135M, full fine-tuning", str(_SMOLLM2.config), _SIZE, compiles=True),
    ParetoModel("smollm2-135m-lora", "SmolLM2-135M, LoRA", str(_SMOLLM2_LORA.config), _SIZE),
)
QUICK = (ParetoModel(_TINY.name, "Llama, tiny, LoRA", str(_TINY.config), _TINY.overrides, rounds=2),)


def run(folder: Path, quick: bool, console: Console, command: str) -> Path:
    """Write pareto.json and its figure into the folder.

    Raises:
        ConfigError: the results in the folder are damaged.
    """
    path, models = folder / f"{PART}.json", QUICK if quick else FULL
    content: dict[str, Any] = {
        **{"command": command, "environment": describe_environment()},
        "settings": {**SETTINGS, "quick": quick},
    }
    entries = finished(path, content, models)
    folder.mkdir(parents=True, exist_ok=True)
    for model in models:
        if model.name not in entries:
            began = time.monotonic()
            entries[model.name] = entry_of(model, _measured)
            console.print(f"{model.title}: {time.monotonic() - began:.0f} s", markup=False, highlight=False)
        content["entries"] = [entries[each.name] for each in models if each.name in entries]
        write_json(path, content)
    write_atomically(folder / f"{PART}-time.png", png_of(content))
    return path


def _measured(model: ParetoModel) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        training = steps_of(parse_run([model.config, *model.options, "--output_dir", folder]))
    variants = variants_for(training.model, model.compiles)
    rounds, facts = compare_variants(training, variants, model.rounds)
    return {
        "parameters": training.model.num_parameters(),
        "dtype": str(training.model.dtype).removeprefix("torch."),
        "batch": list(training.batch["input_ids"].shape),
        "data": training.data,
        "rounds": rounds,
        "variants": {name: {"title": title(name), **facts[name]} for name in variants},
    }
