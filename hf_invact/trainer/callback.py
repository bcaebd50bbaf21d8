"""Inverts a model's activations while a Trainer trains it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from ..memory import peak_bytes
from ..patching import InvActConfig, PatchingError, PatchReport, unpatch_model
from ..patching.config import AUTOCAST_DTYPES, SHORT_NAMES
from ..patching.decisions.memory import Memory
from ..patching.patch import patch
from ..patching.report import join_names
from ..sites.forwards import WITHOUT_LIGER_MLP
from .budget import FIRST_STEPS, LargerBatches, TrainingPlan, compare_peaks, plan_training
from .checkpointed import checkpointed_modules
from .memory import MemoryCallback
from .metering import StepMeter
from .outcome import FILE, Outcome
from .site_calls import SiteCalls
from .trained_module import arguments_of, measured_part, module_of, patchable_module

logger = logging.getLogger(__name__)

_NOT_CALLED = (
    "the first training forward pass did not call these patched sites: %s. This is normal if the batch did not "
    "use that part of the model (another modality, an expert, a dropped layer), or if that part is compiled, where "
    "calls are not seen. Otherwise another library has replaced the code around them, and no memory is saved there: "
    "use only one of the two, or exclude the blocks with InvActConfig(exclude=[...])"
)


class InvertedActivationsCallback(MemoryCallback):
    """Patches the model when the Trainer is made, and unpatches it when training ends.

    A model that `model_init` makes is patched when training begins. If the training arguments have the flag
    `use_inverted_activations`, the flag decides; with other arguments, the callback always patches. Training logs
    contain memory figures either way, see `MemoryCallback`. If training raises, the model stays patched:
    `hf_invact.unpatch_model` restores it.

    When training begins, a line at level WARNING says what was patched, or why nothing was. When training ends, another
    line says what the model saved for the backward pass, and ``inverted_activations.json`` in the output folder gives
    the reason for each site.

    Other replacements of the same part of the model (Liger's MLPs, hub kernels, another copy of this package) are
    refused when training begins at the latest, and the model is then left unpatched. After the first step, a warning
    names the patched sites that its forward pass did not call (if it can be measured, see `MemoryCallback`).

    Args:
        config: what to patch, and how. Default: the training arguments' `inverted_activations_config`.

    Attributes:
        report: what was patched; None before that, or if the flag is off.
        planned: what was chosen for the config's `memory_budget` when training began; None without one.
        require: set it to True to refuse a model in which nothing would be inverted, whatever the config says.

    Raises:
        PatchingError: as `hf_invact.patch_model`; or the Trainer's model is not a module and does not hold one.
        ValueError: `use_liger_kernel` is on too, including Liger's MLPs.
    """

    def __init__(self, config: InvActConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.report: PatchReport | None = None
        self.require = False
        self.planned: TrainingPlan | None = None
        self._memory = Memory()
        self._larger_batches = LargerBatches()
        self._checkpointed: tuple[str, ...] = ()
        self._site_calls = SiteCalls()

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._patch(arguments_of(args, kwargs), state, kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        args = arguments_of(args, kwargs)
        self._patch(args, state, kwargs["model"], kwargs)
        self._site_calls = SiteCalls()
        if self.planned is not None:
            self._larger_batches.watch(patchable_module(kwargs["model"]), self.planned.plan)
            if state.is_local_process_zero:
                logger.warning("%s", self.planned)
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
        if self.saved is not None and self._site_calls.uncalled:
            if state.is_local_process_zero:
                logger.warning(_NOT_CALLED, join_names(self._site_calls.uncalled))
            self._site_calls.uncalled = []
        is_due = self.planned is not None and state.global_step == FIRST_STEPS and state.is_local_process_zero
        measured = peak_bytes().get("peak_cuda_allocated_bytes") if is_due else None
        if self.planned is not None and measured is not None:
            logger.warning("%s", compare_peaks(self.planned, measured))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_end(args, state, control, **kwargs)
        self._larger_batches.end()
        if self.report is not None:
            unpatch_model(patchable_module(kwargs["model"]))
            self._report_outcome(self.report, state, arguments_of(args, kwargs).output_dir)

    def _patch(
        self, args: TrainingArguments, state: TrainerState, trained: Any, begun: Mapping[str, Any] | None = None
    ) -> None:
        """Patch the model.

        Args:
            begun: the callback's other arguments when training begins; None before that, when batches are not known.
        """
        if not getattr(args, "use_inverted_activations", True):
            return
        model = patchable_module(trained)
        self._refuse_liger(args)
        try:
            config = self._config(args)
            if config.memory_budget is not None:
                self.planned = None if begun is None else plan_training(model, config, args, begun)
                config = replace(config, memory_budget=None) if self.planned is None else self.planned.plan.config
            report = patch(model, config, self._memory)
        except PatchingError:
            unpatch_model(model)  # it may be patched since the Trainer was made
            raise
        if report != self.report and state.is_local_process_zero:
            logger.info("%s", report)
        self.report = report

    def _refuse_liger(self, args: TrainingArguments) -> None:
        """Refuse Liger's MLPs, which the Trainer applies when training begins (Transformers before 5.2: earlier)."""
        options = args.liger_kernel_config or {}
        if args.use_liger_kernel and options.get("swiglu", True) and options.get("geglu", True):
            raise ValueError(
                "use_liger_kernel and use_inverted_activations both replace the MLP's activation, and Liger would "
                f"bypass the inverted one. Turn one of the two off, or use Liger without its MLP: {WITHOUT_LIGER_MLP}"
            )

    def _measure_next_forward(self, model: nn.Module) -> StepMeter:
        meter = super()._measure_next_forward(measured_part(model) or model)
        self._site_calls.watch(model, meter.until_end)
        return meter

    def _report_outcome(self, report: PatchReport, state: TrainerState, folder: str | None) -> None:
        saved_bytes = None if self.saved is None else self.saved.total_bytes
        outcome = Outcome(report, self._checkpointed, saved_bytes, self._site_calls.tokens, peak_bytes())
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
        # The arguments know it from --bf16 and from `accelerate launch --mixed_precision`.
        dtype = config.autocast_dtype or AUTOCAST_DTYPES.get(SHORT_NAMES.get(args.mixed_precision, ""))
        return replace(config, autocast_dtype=dtype, require=config.require or self.require)
