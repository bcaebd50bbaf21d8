"""The models that are fine-tuned and timed, and the runs of each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..compare.plan import Experiment, PlannedRun

CONFIGS = Path("configs")
CONTROL = "control"
ADAPTERS = "adapters"  # with LoRA: the inputs of adapters alone, which is exact
SMALL_SEEDS = (0, 1, 2, 3, 4)
PRETRAINED_SEEDS = (0, 1, 2)
GRADIENT_CHECKS = 3


@dataclass(frozen=True)
class Subject:
    """A model with its data.

    Attributes:
        name, title: in files, and in tables.
        config: of a run, as `scripts/finetune.py` takes it.
        seeds: of the runs, plain, inverted and control.
        methods: other methods to train with the first seed, for comparison.
        has_adapters: whether it is trained with LoRA, so that there is a variant `ADAPTERS` too.
        overrides: arguments for each run.
    """

    name: str
    title: str
    config: Path
    seeds: tuple[int, ...] = SMALL_SEEDS
    methods: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    has_adapters: bool = False

    def runs(self, folder: Path) -> list[PlannedRun]:
        """All of its runs, each in its own folder inside of `folder`."""
        checks = ("--gradient_checks", str(GRADIENT_CHECKS))
        runs = []
        for seed in self.seeds:
            is_first = seed == self.seeds[0]
            runs.append(self._run(folder, "plain", seed, *(checks if is_first else ())))
            if self.has_adapters:
                runs.append(self._run(folder, ADAPTERS, seed, *_inverted("adapter")))
            runs.append(self._run(folder, "inverted", seed, *_inverted()))
            runs.append(self._run(folder, CONTROL, seed, "--nudge_weight", "true"))
        runs += [self._run(folder, method, self.seeds[0], "--method", method) for method in self.methods]
        return runs

    def _run(self, folder: Path, variant: str, seed: int, *options: str) -> PlannedRun:
        own = folder / "runs" / f"{self.name}-{variant}-seed{seed}"
        experiment = Experiment(self.name, self.title, self.config, None)
        argv = (str(self.config), *self.overrides, "--seed", str(seed), "--output_dir", str(own), *options)
        return PlannedRun(experiment, variant, seed, own, argv)


def _inverted(*sites: str) -> tuple[str, ...]:
    """With these kinds of sites; all of them by default."""
    config = ("--inverted_activations_config", json.dumps({"sites": sites})) if sites else ()
    return "--use_inverted_activations", "true", *config


METHODS = ("few-bit-2", "few-bit-3", "few-bit-4", "mesa-8", "actnn-2", "nested-forward-ad", "published", "recompute")

SUBJECTS = (
    Subject("smollm2-135m", "SmolLM2-135M", CONFIGS / "smollm2-135m.yaml", PRETRAINED_SEEDS),
    Subject("minilm", "MiniLM-L6", CONFIGS / "minilm.yaml", PRETRAINED_SEEDS),
    Subject("gpt2", "GPT-2, small", CONFIGS / "demo" / "gpt2.yaml"),
    Subject("bert", "BERT, small", CONFIGS / "demo" / "bert.yaml", methods=METHODS),
    Subject("mistral", "Mistral, small", CONFIGS / "demo" / "mistral.yaml"),
    Subject("llama", "Llama, small", CONFIGS / "demo" / "llama.yaml", methods=METHODS),
)
_QUICK = ("--max_steps", "3", "--max_eval_samples", "8")
QUICK_SUBJECTS = (Subject("llama", "Llama, small", CONFIGS / "demo" / "llama.yaml", (0, 1), ("few-bit-3",), _QUICK),)
LORA_SUBJECTS = (
    Subject(
        "smollm2-135m-lora", "SmolLM2-135M", CONFIGS / "smollm2-135m-lora.yaml", PRETRAINED_SEEDS, has_adapters=True
    ),
)
# Fresh weights, since the pretrained ones may not be installed.
_TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
_TINY_LORA = (
    *("--max_seq_length", "32", "--tokenizer_vocab_size", "300"),
    *("--model_config", json.dumps({**_TINY, "num_key_value_heads": 2, "max_position_embeddings": 32})),
    *("--lora", json.dumps({"r": 4, "lora_dropout": 0.05, "target_modules": "all-linear"})),
)
QUICK_LORA_SUBJECTS = (
    Subject(
        "llama-lora",
        "Llama, tiny",
        CONFIGS / "demo" / "llama.yaml",
        (0, 1),
        overrides=(*_QUICK, *_TINY_LORA),
        has_adapters=True,
    ),
)
