"""The flag and its options: two fields for training arguments."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from ..patching import InvActConfig


@dataclass
class InvActArgumentsMixin:
    """Adds the two fields to other training arguments: ``class Arguments(InvActArgumentsMixin, SFTConfig)``.

    Decorate the subclass with `dataclasses.dataclass`, like all training arguments.

    Raises:
        ValueError: `inverted_activations_config` is not a JSON mapping, or has an unknown key or an invalid value.
    """

    use_inverted_activations: bool = field(
        default=False,
        metadata={
            "help": "Keep the output of activations and one bit per element for the backward pass, and the input of a "
            "layer once for all of its LoRA adapters."
        },
    )
    inverted_activations_config: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": 'Options for --use_inverted_activations, as JSON: \'{"include": ["*.mlp"]}\'.'},
    )

    def __post_init__(self) -> None:
        if isinstance(self.inverted_activations_config, str):
            try:
                self.inverted_activations_config = json.loads(self.inverted_activations_config)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"inverted_activations_config is not valid JSON ({error}); got {self.inverted_activations_config!r}"
                ) from error
        self.inverted_activations()
        next_post_init = getattr(super(), "__post_init__", None)
        if next_post_init is not None:
            next_post_init()

    def inverted_activations(self) -> InvActConfig:
        """The options as a config.

        Raises:
            ValueError: an unknown key or an invalid value.
        """
        options = {} if self.inverted_activations_config is None else self.inverted_activations_config
        if not isinstance(options, dict):
            raise ValueError(
                f"inverted_activations_config must be a mapping, got {type(options).__name__}: {options!r}"
            )
        return InvActConfig.from_dict(options)


@dataclass
class InvActTrainingArguments(InvActArgumentsMixin, TrainingArguments):
    """`transformers.TrainingArguments` with `use_inverted_activations` and `inverted_activations_config`."""
