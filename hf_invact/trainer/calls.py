"""Watches which inverted activations a forward pass calls, and how many tokens their blocks see."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..memory.calls import watch_outputs
from ..patching.weights.sharding import plain_name
from ..sites import patched_sites


class Calls:
    """Of one or several forward passes.

    Attributes:
        uncalled: names of the inverted activations that were not called, as reports call them.
        tokens: by the names of those that were, the tokens for which their blocks have kept something; None where
            the shape of the hidden states does not tell.
    """

    def __init__(self) -> None:
        self.uncalled: list[str] = []
        self.tokens: dict[str, int | None] = {}

    def watch(self, model: nn.Module, until_end: Callable[[Callable[[], None]], object]) -> None:
        """Count from now on.

        Args:
            model: its inverted activations, and the blocks that hold them.
            until_end: takes what ends the counting, and calls it when the measurement ends.
        """
        for site in patched_sites(model):
            name = plain_name(site.name)
            self.uncalled.append(name)
            self.tokens[name] = 0
            assert site.module is not None  # what takes a function's place is a module
            until_end(watch_outputs(site.module, partial(self._note_call, name)))
            until_end(watch_outputs(site.holder, partial(self._note_tokens, name)))

    def _note_call(self, name: str, output: Any) -> None:
        if name in self.uncalled:
            self.uncalled.remove(name)

    def _note_tokens(self, name: str, output: Any) -> None:
        while isinstance(output, (tuple, list)) and output:
            output = output[0]
        if isinstance(output, Tensor) and not output.requires_grad:
            return  # nothing is kept
        seen, count = self.tokens[name], _tokens(output)
        self.tokens[name] = None if seen is None or count is None else seen + count


def _tokens(states: Any) -> int | None:
    """Rows of hidden states; of more than three dimensions it is not known which one is the width."""
    is_known = isinstance(states, Tensor) and states.dim() in (2, 3)
    return states.shape[:-1].numel() if is_known else None
