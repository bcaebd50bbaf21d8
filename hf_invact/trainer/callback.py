"""Inverts a model's activations while a Trainer trains it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from ..memory import peak_bytes
from ..patching import InvActConfig, PatchingError, PatchReport, patch_model, unpatch_model
from ..patching.report import join_names
from .calls import Calls
from .checkpointed import checkpointed_modules
from .given import arguments_of, measured_part, module_of, patchable_module
from .memory import MemoryCallback
from .metering import StepMeter
from .outcome import FILE, Outcome

logger = logging.getLogger(__name__)

# By what the arguments call them, whether --bf16 or `accelerate launch --mixed_precision` says so.
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_NOT_CALLED = (
    "inverted activations that the first training forward pass did not call: %s. This is as it should be if the batch "
    "did not use that part of the model (another modality, an expert, a layer that was dropped), or if it runs in "
    "compiled code, where calls are not seen. Otherwise another library has replaced the code around them, and nothing "
    "is saved there: apply only one of the two, or exclude the blocks with InvActConfig(exclude=[...])"
)


class InvertedActivationsCallback(MemoryCallback):
    """Patches the model when the Trainer is made (again when `model_init` makes another one), unpatches it at the end.

    Where the training arguments have the flag `use_inverted_activations`, the flag decides; with other arguments the
    callback always patches. Training logs carry memory figures either way, see `MemoryCallback`. When training
    raises, the model stays patched: `hf_invact.unpatch_model` puts it back.

    When training begins, one line at level WARNING says what was done, or why nothing was. When it has ended, another
    one says what the model kept, and ``inverted_activations.json`` in the output folder says why, site by site.

    What replaces the same part of the model (Liger's MLPs, hub kernels, another copy of this package) is refused when
    training begins at the latest, and the model is left unpatched then. Inverted activations that the first training
    forward pass did not call are named in a warning after its step (where it can be measured, see `MemoryCallback`).

    Args:
        config: what to patch, and how. Default: the training arguments' `inverted_activations_config`.

    Attributes:
        report: what was patched; None before that, or where the flag is off.
        require: set it to refuse a model in which nothing would be inverted, whatever the config says.

    Raises:
        PatchingError: as `hf_invact.patch_model`; or the Trainer's model is no module and holds none.
        ValueError: `use_liger_kernel` is on as well, with Liger's MLPs.
    """

    def __init__(self, config: InvActConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.report: PatchReport | None = None
        self.require = False
        self._checkpointed: tuple[str, ...] = ()
        self._calls = Calls()

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._patch(arguments_of(args, kwargs), state, kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        args = arguments_of(args, kwargs)
        self._patch(args, state, kwargs["model"])
        self._calls = Calls()
        if self.report is not None:
            self._checkpointed = checkpointed_modules(patchable_module(kwargs["model"]))
            if state.is_local_process_zero:
                logger.warning("%s", self.report.summary(self._checkpointed))
        super().on_train_begin(args, state, control, **kwargs)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if (model := module_of(kwargs["model"])) is not None:
            super().on_step_begin(arguments_of(args, kwargs), state, control, **{**kwargs, "model": model})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **{**kwargs, "model": measured_part(module_of(kwargs["model"]))})
        if self.saved is not None and self._calls.uncalled:
            if state.is_local_process_zero:
                logger.warning(_NOT_CALLED, join_names(self._calls.uncalled))
            self._calls.uncalled = []

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_end(args, state, control, **kwargs)
        if self.report is not None:
            unpatch_model(patchable_module(kwargs["model"]))
            self._tell_outcome(self.report, state, arguments_of(args, kwargs).output_dir)

    def _patch(self, args: TrainingArguments, state: TrainerState, given: Any) -> None:
        if not getattr(args, "use_inverted_activations", True):
            return
        model = patchable_module(given)
        # The Trainer applies Liger when training begins (before Transformers 5.2: has applied it). No need to wait.
        options = args.liger_kernel_config or {}
        if args.use_liger_kernel and options.get("swiglu", True) and options.get("geglu", True):
            raise ValueError(
                "use_liger_kernel and use_inverted_activations both replace the MLP's activation: Liger would bypass "
                "the inverted one. Turn one of the two off, or keep Liger's other kernels with "
                "liger_kernel_config={'swiglu': False, 'geglu': False}"
            )
        try:
            report = patch_model(model, self._config(args))
        except PatchingError:
            unpatch_model(model)  # what is patched since the Trainer was made
            raise
        if report != self.report and state.is_local_process_zero:
            logger.info("%s", report)
        self.report = report

    def _measure_next_forward(self, model: nn.Module) -> StepMeter:
        meter = super()._measure_next_forward(measured_part(model) or model)
        self._calls.watch(model, meter.until_end)
        return meter

    def _tell_outcome(self, report: PatchReport, state: TrainerState, folder: str | None) -> None:
        kept = None if self.saved is None else self.saved.total_bytes
        outcome = Outcome(report, self._checkpointed, kept, self._calls.tokens, peak_bytes())
        path: Path | None = None
        if state.is_world_process_zero and folder is not None:
            try:
                path = outcome.write(folder)
            except OSError as error:
                logger.warning("%s could not be written: %s", FILE, error)
        if state.is_local_process_zero:
            logger.warning("%s", outcome.text(path))

    def _config(self, args: TrainingArguments) -> InvActConfig:
        config = self.config
        if config is None:
            from_arguments = getattr(args, "inverted_activations", None)
            config = from_arguments() if from_arguments is not None else InvActConfig()
        dtype = config.autocast_dtype or AUTOCAST_DTYPES.get(args.mixed_precision)
        return replace(config, autocast_dtype=dtype, require=config.require or self.require)
