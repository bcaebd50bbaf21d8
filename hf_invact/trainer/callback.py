"""Inverts a model's activations while a Trainer trains it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from ..patching import InvActConfig, PatchReport, patch_model, unpatch_model
from .memory import MemoryCallback

logger = logging.getLogger(__name__)

# By what the arguments call them, whether --bf16 or `accelerate launch --mixed_precision` says so.
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class InvertedActivationsCallback(MemoryCallback):
    """Patches the model when the Trainer is made (again when `model_init` makes another one), unpatches it at the end.

    Where the training arguments have the flag `use_inverted_activations`, the flag decides; with other arguments the
    callback always patches. Training logs carry memory figures either way, see `MemoryCallback`. When training
    raises, the model stays patched: `hf_invact.unpatch_model` puts it back.

    Args:
        config: what to patch, and how. Default: the training arguments' `inverted_activations_config`.

    Attributes:
        report: what was patched; None before that, or where the flag is off.

    Raises:
        PatchingError: as `hf_invact.patch_model`.
        ValueError: `use_liger_kernel` is on as well.
    """

    def __init__(self, config: InvActConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.report: PatchReport | None = None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._patch(args, state, kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._patch(args, state, kwargs["model"])
        super().on_train_begin(args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_end(args, state, control, **kwargs)
        if self.report is not None:
            unpatch_model(kwargs["model"])

    def _patch(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        if not getattr(args, "use_inverted_activations", True):
            return
        if args.use_liger_kernel:
            raise ValueError(
                "use_liger_kernel and use_inverted_activations both replace the MLP's activation: "
                "Liger would bypass the inverted one. Turn one of the two off"
            )
        report = patch_model(model, self._config(args))
        if report != self.report and state.is_local_process_zero:
            logger.info("%s", report)
        self.report = report

    def _config(self, args: TrainingArguments) -> InvActConfig:
        config = self.config
        if config is None:
            from_arguments = getattr(args, "inverted_activations", None)
            config = from_arguments() if from_arguments is not None else InvActConfig()
        if config.autocast_dtype is not None:
            return config
        return replace(config, autocast_dtype=AUTOCAST_DTYPES.get(args.mixed_precision))
