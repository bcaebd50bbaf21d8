"""How a model calls the modules around its sites."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import NoProbeError
from .arguments import calls
from .recording import Call
from .signature import Signature, signature

SAMPLES = (2, 4)  # batch normalization refuses a single value


class KnownCalls:
    """The calls of some modules of a model, which is run when the first is asked for.

    It is run on few samples and on twice as many, see `calls`. Modules that are alike share their calls. A call in
    which nothing needs a gradient gets one for its hidden states. Otherwise nothing would be saved for backward, but in
    training they may need one (of a trained prompt, or by ``enable_input_require_grads``).

    Args:
        model: with nothing patched in it.
        modules: those of interest.
        autocast_dtype: what it runs under; None leaves the autocast that is active, if any.
    """

    def __init__(self, model: nn.Module, modules: Iterable[nn.Module], autocast_dtype: torch.dtype | None) -> None:
        self._model, self._autocast_dtype = model, autocast_dtype
        self._modules = list(dict.fromkeys(modules))

    def of(self, module: nn.Module) -> tuple[Call, Call] | None:
        """With few samples and with twice as many; None if it is not known."""
        found, kind = self._found[0], self.kinds.get(module)
        return None if kind is None else found.get(kind)

    @property
    def failure(self) -> str | None:
        """Why calls are missing, in a line; None if none is missing, or the model holds no model of Transformers."""
        return self._found[1]

    @cached_property
    def kinds(self) -> dict[nn.Module, int]:
        """A number for each of the modules, equal for those that are alike."""
        numbers: dict[Signature, int] = {}
        found = ((module, () if module is self._model else signature(module)) for module in self._modules)
        return {module: numbers.setdefault(kind, len(numbers)) for module, kind in found}

    @cached_property
    def _found(self) -> tuple[dict[object, tuple[Call, Call]], str | None]:
        if not any(isinstance(module, PreTrainedModel) for module in self._model.modules()):
            return {}, None
        try:
            few, many = (calls(self._model, self.kinds, samples, self._autocast_dtype) for samples in SAMPLES)
        except NoProbeError as error:
            return {}, str(error)
        both = {
            kind: (call.with_gradient(), many.found[kind].with_gradient())
            for kind, call in few.found.items()
            if kind in many.found
        }
        return both, few.failure or many.failure
