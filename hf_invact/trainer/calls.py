"""Watches which inverted activations a forward pass calls, and how many tokens their blocks see."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..memory.calls import watch_outputs
from ..patching import slot
from ..patching.sharding import plain_name


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
        for block_name, block, attribute in slot.patched(model):
            name = plain_name(f"{block_name}.{attribute}" if block_name else attribute)
            self.uncalled.append(name)
            self.tokens[name] = 0
            until_end(watch_outputs(getattr(block, attribute), partial(self._note_call, name)))
            until_end(watch_outputs(block, partial(self._note_tokens, name)))

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
