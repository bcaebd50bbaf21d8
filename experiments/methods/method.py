"""A method that inverted activations are compared with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from hf_invact.curves import Curve

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    """A way to train a model, mostly one that saves less for backward.

    Attributes:
        name: in the results.
        title: in tables and figures.
        source: where it was published; empty if it needs no source.
        is_exact: whether its gradients are those of the plain model.
        install: takes a model; returns the context in which it is trained with this method.
        function: takes a curve; returns its activation with the gradient of this method. Raises `Unavailable` if the
            method does not support the curve.
    """

    name: str
    title: str
    source: str
    is_exact: bool
    install: Callable[[PreTrainedModel], AbstractContextManager[Any]]
    function: Callable[[Curve], Function]

    def applied(self, model: PreTrainedModel) -> AbstractContextManager[Any]:
        """Install the method inside of the context. Afterwards the model is exactly as it was.

        Raises:
            Unavailable: on entering, if the method does not support this model, which is then unchanged.
        """
        return self.install(model)
