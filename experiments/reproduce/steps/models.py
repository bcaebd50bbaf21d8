"""The models whose training steps are timed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ...benchmark.steps.variants import StepVariant
from ...common.yaml_files import read_yaml
from ...finetuning.arguments import RunArguments, parse_run
from ..subjects import LORA_SUBJECTS, QUICK_LORA_SUBJECTS, SUBJECTS
from .variants import variants_for, variants_with_adapters


@dataclass(frozen=True)
class StepModel:
    """A model and its data, from the config of a run.

    Attributes:
        name, title: in the results.
        config: the run's config.
        options: further arguments of the run.
        rounds: how many steps each variant takes; short steps need more of them for a precise median.
        seconds: for the variants that are not ours. After them no round starts, except the first few.
        compiles: whether the model is also compiled.
        has_adapters: whether it is trained with LoRA, which is compared in fewer ways.
    """

    name: str
    title: str
    config: str
    options: tuple[str, ...] = ()
    rounds: int = 41
    seconds: float = 45.0
    compiles: bool = True
    has_adapters: bool = False

    def run(self, folder: Path) -> RunArguments:
        """The run's arguments.

        Args:
            folder: for the files that the Trainer writes.

        Raises:
            ConfigError: an argument is invalid.
        """
        return parse_run([self.config, *self.options, "--output_dir", str(folder)])

    def variants(self, model: PreTrainedModel) -> dict[str, StepVariant]:
        """The ways to train the run's model that are compared, by name."""
        return variants_with_adapters(model) if self.has_adapters else variants_for(model, self.compiles)

    def settings(self) -> dict[str, Any]:
        """What decides the result, as JSON returns it.

        Raises:
            ConfigError: the config cannot be read.
        """
        values = {key: value for key, value in read_yaml(Path(self.config)).items() if key != "output_dir"}
        return {
            "config": self.config,
            "values": values,
            "options": list(self.options),
            "rounds": self.rounds,
            "seconds": self.seconds,
            "compiles": self.compiles,
        }


LARGEST = "smollm2-135m"  # compiling it takes minutes
_ROUNDS = {LARGEST: 15}
_SECONDS = {LARGEST: 120.0, "minilm": 120.0}
FULL = tuple(
    StepModel(
        subject.name,
        subject.title,
        str(subject.config),
        subject.overrides,
        rounds=_ROUNDS.get(subject.name, StepModel.rounds),
        seconds=_SECONDS.get(subject.name, StepModel.seconds),
        compiles=subject.name != LARGEST,
    )
    for subject in SUBJECTS
)
_TINY = ("--max_seq_length", "32", "--per_device_train_batch_size", "2", "--tokenizer_vocab_size", "300")
QUICK = (
    StepModel(
        "gpt2",
        "GPT-2, tiny",
        "configs/demo/gpt2.yaml",
        (*_TINY, "--model_config", '{"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32}'),
        rounds=2,
        seconds=1.0,
        compiles=False,
    ),
    StepModel(
        "llama",
        "Llama, tiny",
        "configs/demo/llama.yaml",
        (
            *_TINY,
            "--model_config",
            '{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, '
            '"num_key_value_heads": 2, "max_position_embeddings": 32}',
        ),
        rounds=2,
        seconds=1.0,
    ),
)
# Longer sequences than those that it is trained on, so that a step is not all calls.
FULL_LORA = tuple(
    StepModel(
        *(subject.name, f"{subject.title} with LoRA", str(subject.config), ("--max_seq_length", "128")),
        rounds=25,
        seconds=120.0,
        has_adapters=True,
    )
    for subject in LORA_SUBJECTS
)
QUICK_LORA = tuple(
    StepModel(
        *(subject.name, f"{subject.title}, with LoRA", str(subject.config), subject.overrides),
        rounds=2,
        seconds=1.0,
        has_adapters=True,
    )
    for subject in QUICK_LORA_SUBJECTS
)
