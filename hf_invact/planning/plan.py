"""Predicts the bytes that a model saves for its backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ..inputs.sizes import takes_text
from ..patching import InvActConfig, PatchReport
from .dry_run import DryRun, dry_run, patch_report
from .fake.flash_attention import attention_of
from .model.lora import Lora
from .model.quantized import quantization_of
from .model.setup import Setup
from .peak import Peak
from .variants import BOTH, CHECKPOINTED, INVERTED, PLAIN, TrainingVariant


@dataclass(frozen=True)
class MemoryPlan:
    """What a model saves for the backward pass of one training step, plain and patched.

    Attributes:
        model: its name, as given.
        model_class: the class that was planned.
        batch_size, seq_len, dtype, autocast, lora, gradient_checkpointing, device: as given (but seq_len is None for
            models of images alone).
        autocast_dtype: "bfloat16" or "float16"; None for no autocast.
        quantization: "4bit" or "8bit" where linear layers are; else empty.
        attention: the implementation that was planned.
        parameter_bytes: all weights and buffers.
        trainable_bytes: the trained weights.
        plain: saved bytes by part (of `hf_invact.memory.PARTS`), unpatched.
        patched: saved bytes by part, patched.
        report: what is patched, by site; without sites if nothing can be patched.
        optimizer: of the training step whose peaks are predicted; None without peaks.
        plain_peak, patched_peak: peak memory of a training step, unpatched and patched; None if not asked for.
        notes: what else the user should know, each a sentence.
    """

    model: str
    model_class: str
    batch_size: int
    seq_len: int | None
    dtype: str
    autocast: bool
    lora: Lora | None
    attention: str
    gradient_checkpointing: bool
    device: str
    parameter_bytes: int
    trainable_bytes: int
    plain: Mapping[str, int]
    patched: Mapping[str, int]
    report: PatchReport
    optimizer: str | None = None
    plain_peak: Peak | None = None
    patched_peak: Peak | None = None
    notes: tuple[str, ...] = ()
    autocast_dtype: str | None = None
    quantization: str = ""

    def __str__(self) -> str:
        from .text import render  # which imports this module

        return render(self)

    @property
    def plain_bytes(self) -> int:
        """All saved bytes, unpatched."""
        return sum(self.plain.values())

    @property
    def patched_bytes(self) -> int:
        """All saved bytes, patched."""
        return sum(self.patched.values())

    @property
    def saving(self) -> float:
        """The fraction of the saved bytes that patching removes; 0 if nothing is saved."""
        return 1 - self.patched_bytes / self.plain_bytes if self.plain_bytes else 0.0


def plan_memory(
    model: str | Path | PretrainedConfig | nn.Module,
    batch_size: int,
    seq_len: int | None = None,
    dtype: str | None = None,
    autocast: bool | str = False,
    lora: Lora | None = None,
    attention: str | None = None,
    gradient_checkpointing: bool = False,
    config: InvActConfig | None = None,
    device: str | None = None,
    optimizer: str | None = None,
    quantize: str | None = None,
    padded: bool = False,
) -> MemoryPlan:
    """Predict what a model saves for its backward pass, plain and patched, without its weights and without a GPU.

    The model is built, patched and run on tensors without memory. This takes seconds, and downloads only the model's
    config.

    Args:
        model: a name on the hub, a local folder, a ``config.json``, a config of Transformers, or a model, which is
            planned as it is, with its dtype, adapters and attention. It is copied without its weights, and left as it
            is; whether it is patched does not matter.
        batch_size: sequences or images.
        seq_len: tokens in each sequence; ignored for models of images alone.
        dtype: of the weights: "float32", "bfloat16" (the default) or "float16" (or "fp32", "bf16", "fp16").
        autocast: whether to run under autocast: "bfloat16" as with the Trainer's ``bf16=True``, "float16" as with
            ``fp16=True``; True for bfloat16, or float16 if that is the dtype of the weights. The weights keep `dtype`.
        lora: adapters; None trains all weights.
        attention: "sdpa" (the default), "eager" or "flash_attention_2" (which need not be installed; its memory follows
            its source code, and was not compared with a measurement).
        gradient_checkpointing: whether layers are recomputed in the backward pass, also where it is on in a model.
        config: what to patch, and how.
        device: "cuda" (the default for configs), or "cpu" to predict a run on a CPU. Default: a model's own.
        optimizer: also predict the peak memory of a training step with this optimizer (see `OPTIMIZERS`).
        quantize: "4bit" or "8bit": linear layers but the head as bitsandbytes holds them; in 4 bits as in QLoRA (nf4,
            scales quantized too). The other weights keep `dtype`.
        padded: whether sequences are of different lengths, so that some tokens are padding. Then attention keeps a mask
            in most layers, of the square of the length. Without, sequences are full.

    Raises:
        PlanningError: the model is not found, cannot be built, or does not take such a batch.
        PatchingError: a pattern of `config` matches nothing.
        ValueError: an unknown option, or one that a model has itself.

    >>> import hf_invact
    >>> from transformers import LlamaConfig
    >>> small = LlamaConfig(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4)
    >>> plan = hf_invact.plan_memory(small, batch_size=1, seq_len=128)
    >>> plan.plain["activation"], plan.patched["activation"]
    (524288, 270336)
    >>> plan.report.sites[0].plan
    'gate-output'
    """
    setup = Setup(model, dtype, autocast, lora, attention, config or InvActConfig(), device, quantize, padded)
    with dry_run(setup) as run:
        return plan_from_run(
            run, batch_size, seq_len, gradient_checkpointing=gradient_checkpointing, optimizer=optimizer
        )


def plan_from_run(
    run: DryRun,
    batch_size: int,
    seq_len: int | None,
    *,
    gradient_checkpointing: bool = False,
    optimizer: str | None = None,
) -> MemoryPlan:
    """As `plan_memory`, for a model that is already built."""
    length = run.length(seq_len)
    gradient_checkpointing = gradient_checkpointing or run.was_checkpointed
    plain, patched = (CHECKPOINTED, BOTH) if gradient_checkpointing else (PLAIN, INVERTED)
    saved, peak = _predict(run, plain, batch_size, length, optimizer)
    report, notes = patch_report(run, patched)
    is_patched = report.patched > 0
    patched_saved, patched_peak = _predict(run, patched, batch_size, length, optimizer) if is_patched else (saved, peak)
    weights = list(run.model.parameters())
    return MemoryPlan(
        model=run.source.name,
        model_class=type(run.model).__name__,
        batch_size=batch_size,
        seq_len=length,
        dtype=run.setup.facts.dtype,
        autocast=run.setup.autocast_dtype is not None,
        autocast_dtype=None if run.setup.autocast_dtype is None else str(run.setup.autocast_dtype).partition(".")[2],
        lora=run.setup.lora,
        attention=attention_of(run.model),
        gradient_checkpointing=gradient_checkpointing,
        device=run.setup.facts.device,
        parameter_bytes=_bytes([*weights, *run.model.buffers()]),
        trainable_bytes=_bytes(weight for weight in weights if weight.requires_grad),
        plain=saved,
        patched=patched_saved,
        report=report,
        optimizer=optimizer,
        plain_peak=peak,
        patched_peak=patched_peak,
        quantization=quantization_of(run.model),
        notes=(*run.notes, *_notes(run.model, seq_len, run.setup), *notes),
    )


def _predict(
    run: DryRun, variant: TrainingVariant, batch_size: int, seq_len: int | None, optimizer: str | None
) -> tuple[Mapping[str, int], Peak | None]:
    saved = run.saved(variant, batch_size, seq_len)
    return saved, None if optimizer is None else run.peak(variant, batch_size, seq_len, optimizer)


def _notes(model: PreTrainedModel, seq_len: int | None, setup: Setup) -> Iterator[str]:
    trained = {weight.dtype for weight in model.parameters() if weight.requires_grad}
    if setup.autocast_dtype == torch.float16 and trained != {torch.float32}:
        yield (
            "Under autocast to float16 the Trainer scales gradients, which requires trained weights in float32: load "
            "the model in float32, or train under autocast to bfloat16."
        )
    if seq_len is not None and not takes_text(model):
        yield f"{type(model).__name__} takes images alone, so the sequence length is ignored."
    implementation = attention_of(model)
    if implementation != setup.facts.attention:
        yield f"{type(model).__name__} has no {setup.facts.attention} attention, so {implementation} is planned."
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    has_window = layer_types is None or "sliding_attention" in layer_types
    if implementation == "sdpa" and seq_len and isinstance(window, int) and window <= seq_len and has_window:
        yield (
            f"Sequences of {seq_len} tokens reach the sliding window of {window}, so sdpa attention gets a mask, which "
            "layers save; flash_attention_2 needs none."
        )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
