"""The compared ways to train a model. Each is a context that is entered for one step, on the same model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from hf_invact.patching import InvActConfig, PatchReport, unpatch_model
from hf_invact.patching.decisions.memory import Memory
from hf_invact.patching.patch import patch

from ..operators.implementations import INVERTED, Unavailable, import_liger

PLAIN, FUSED, CHECKPOINTING, LIGER = "plain", "fused", "checkpointing", "liger"
StepVariant = Callable[[PreTrainedModel], AbstractContextManager[Any]]


def variants_of(architecture: str, backends: Sequence[str]) -> dict[str, StepVariant]:
    """By name: plain, inverted with each backend, and the alternatives that save memory."""
    chosen: dict[str, StepVariant] = {PLAIN: nullcontext}
    for backend in backends:
        chosen[INVERTED + backend] = inverted_by(backend)
    if architecture == "gpt2":
        chosen[FUSED] = fused_gelu
    chosen[CHECKPOINTING] = checkpointing
    chosen[LIGER] = liger
    return chosen


def inverted_by(backend: str, sites: tuple[str, ...] = ("activation",), **options: Any) -> StepVariant:
    """Inverted activations, computed by one backend, and other kinds of sites if they are named.

    Args:
        options: more of `InvActConfig`.
    """
    config, memory = InvActConfig(backend=backend, sites=sites, **options), Memory()

    @contextmanager
    def inverted(model: PreTrainedModel) -> Iterator[PatchReport]:
        report = patch(model, config, memory)  # which measures the model the first time
        try:
            yield report
        finally:
            unpatch_model(model)

    return inverted


@contextmanager
def fused_gelu(model: PreTrainedModel) -> Iterator[None]:
    """GPT-2 as with ``activation_function="gelu_pytorch_tanh"``: PyTorch's fused function for the same formula."""
    blocks = [block.mlp for block in model.transformer.h]
    before = [block.act for block in blocks]
    for block in blocks:
        block.act = ACT2FN["gelu_pytorch_tanh"]
    try:
        yield
    finally:
        for block, activation in zip(blocks, before, strict=True):
            block.act = activation


@contextmanager
def checkpointing(model: PreTrainedModel) -> Iterator[None]:
    """Activation checkpointing of each layer, as the Trainer's ``gradient_checkpointing`` does it."""
    # Newer versions of Transformers renamed it, and warn about the old name.
    word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{word}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(model, f"{word}_checkpointing_disable")()


@contextmanager
def liger(model: PreTrainedModel) -> Iterator[None]:
    """Liger's gated MLP, without its other kernels.

    Raises:
        Unavailable: Liger has no kernel for this model, or the package or a GPU is missing.
    """
    layers = getattr(getattr(model, "model", None), "layers", ())
    blocks: list[nn.Module] = [layer.mlp for layer in layers if hasattr(layer.mlp, "gate_proj")]
    if not blocks:
        raise Unavailable("Liger has no kernel for this MLP")
    device: torch.device = model.device
    forward = import_liger("liger_kernel.transformers.swiglu", "LigerSwiGLUMLP", device).forward
    with ExitStack() as stack:
        for block in blocks:
            vars(block)["forward"] = MethodType(forward, block)
            stack.callback(vars(block).pop, "forward")
        yield
