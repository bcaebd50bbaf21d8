"""The ways to train a model whose step times are compared."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ...benchmark.operators.implementations import INVERTED
from ...benchmark.steps.variants import CHECKPOINTING, PLAIN, StepVariant, checkpointing, inverted_by, variants_of
from ...benchmark.tables import label
from ...methods.catalogue import METHODS

COMPILED, COMPILED_INVERTED = "compiled", "compiled-inverted"
BASELINES = MappingProxyType({COMPILED_INVERTED: COMPILED})
BACKENDS = MappingProxyType({"cpu": ("eager", "compile"), "cuda": ("triton", "compile", "eager")})
BACKEND_OF_COMPILED = MappingProxyType({"cpu": "compile", "cuda": "triton"})  # the fastest one
_TITLES = {COMPILED: "torch.compile", COMPILED_INVERTED: "torch.compile, inverted"}


def variants_for(model: PreTrainedModel, compiles: bool = True) -> dict[str, StepVariant]:
    """By name: plain, inverted with each backend, all alternatives, and if `compiles`, the compiled model."""
    device = model.device.type
    chosen = variants_of(model.config.model_type, BACKENDS[device])
    chosen |= {name: method.applied for name, method in METHODS.items()}
    if compiles:
        chosen[COMPILED] = Compiled(nullcontext)
        chosen[COMPILED_INVERTED] = Compiled(inverted_by(BACKEND_OF_COMPILED[device]))
    return chosen


def variants_with_adapters(model: PreTrainedModel) -> dict[str, StepVariant]:
    """By name: plain, adapters that keep their input once and inverted activations by each backend, checkpointing."""
    chosen: dict[str, StepVariant] = {PLAIN: nullcontext}
    for backend in BACKENDS[model.device.type]:
        chosen[INVERTED + backend] = inverted_by(backend, ("adapter", "activation"))
    return chosen | {CHECKPOINTING: checkpointing}


def title(name: str) -> str:
    """The title of a variant.

    >>> title("inverted-eager"), title("compiled-inverted")
    ('inverted (eager)', 'torch.compile, inverted')
    """
    if name in METHODS:
        return METHODS[name].title
    return _TITLES.get(name) or label(name)


class Compiled:
    """`torch.compile` of the whole model in another variant, which is entered and compiled once.

    (Entering the variant again would install new objects, for which the model would be compiled again.)
    """

    def __init__(self, variant: StepVariant) -> None:
        self._variant = variant
        self._entered = ExitStack()
        self._twin: Any = None

    @contextmanager
    def __call__(self, model: PreTrainedModel) -> Iterator[None]:
        """Inside of the context, calls of the model run the compiled one, which has the same weights."""
        if self._twin is None:
            self._twin = _twin_of(model)
            self._entered.enter_context(self._variant(self._twin))
            self._twin.compile()
        model._compiled_call_impl = self._twin._compiled_call_impl
        try:
            yield
        finally:
            model._compiled_call_impl = None


def _twin_of(model: nn.Module) -> nn.Module:
    """A copy that shares the parameters and buffers."""
    shared: list[torch.Tensor] = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
