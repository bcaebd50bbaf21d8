"""What a method of comparison is."""

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
    """A way to keep less for the backward pass of a model, or to keep what is kept.

    Attributes:
        name: as results call it.
        title: for people.
        source: where it was published; empty for what needs no source.
        is_exact: whether its gradients are the plain model's.
        install: makes the context in which a model is trained that way.
        function: makes an activation of a curve, whose gradient is the method's. Raises `Unavailable` where the method
            has none for this curve.
    """

    name: str
    title: str
    source: str
    is_exact: bool
    install: Callable[[PreTrainedModel], AbstractContextManager[Any]]
    function: Callable[[Curve], Function]

    def applied(self, model: PreTrainedModel) -> AbstractContextManager[Any]:
        """The model trained that way inside, and exactly as it was afterwards.

        Raises:
            Unavailable: on entering, where the method cannot be had for this model. It is then as it was.
        """
        return self.install(model)
