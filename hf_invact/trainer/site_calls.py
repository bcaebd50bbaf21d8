"""Records which patched sites a forward pass calls, and how many tokens their blocks process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..memory.module_calls import not_compiled, watch_outputs
from ..patching.weights.sharding import plain_name
from ..sites import patched_sites


class SiteCalls:
    """Calls of the patched sites during one or several forward passes.

    Attributes:
        uncalled: names of the patched sites that were not called, as in reports.
        tokens: by name, the number of tokens for which the block saved something; None where the shape of the hidden
            states does not give it.
    """

    def __init__(self) -> None:
        self.uncalled: list[str] = []
        self.tokens: dict[str, int | None] = {}

    def watch(self, model: nn.Module, until_end: Callable[[Callable[[], None]], object]) -> None:
        """Start to record the patched sites of a model and the blocks that hold them.

        Args:
            model: a patched model.
            until_end: registers a function to call when the measurement ends.
        """
        for site in patched_sites(model):
            name = plain_name(site.name)
            self.uncalled.append(name)
            self.tokens[name] = 0
            assert site.module is not None  # what takes a function's place is a module
            until_end(watch_outputs(site.module, partial(not_compiled(self._note_call), name)))
            until_end(watch_outputs(site.holder, partial(not_compiled(self._note_tokens), name)))

    def _note_call(self, name: str, output: Any) -> None:
        if name in self.uncalled:
            self.uncalled.remove(name)

    def _note_tokens(self, name: str, output: Any) -> None:
        while isinstance(output, (tuple, list, Mapping)) and output:
            output = next(iter(output.values() if isinstance(output, Mapping) else output))
        if isinstance(output, Tensor) and not output.requires_grad:
            return  # nothing is saved for the backward pass
        total, count = self.tokens[name], _tokens(output)
        self.tokens[name] = None if total is None or count is None else total + count


def _tokens(states: Any) -> int | None:
    """Rows of hidden states; None for more than three dimensions, where the width may be any of them."""
    is_known = isinstance(states, Tensor) and states.dim() in (2, 3)
    return states.shape[:-1].numel() if is_known else None
