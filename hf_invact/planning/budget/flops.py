"""Counts what the layers of a model compute in a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class _Operations(TorchDispatchMode):
    """Counts the floating-point operations of matrix products, convolutions and attention, as PyTorch's counter."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.count += count(*args, **kwargs, out_val=result)
        return result


def forward_shares(forward: Callable[[], object], layers: Mapping[str, nn.Module]) -> dict[str, float]:
    """The share of a forward pass's operations that each layer has.

    Args:
        forward: runs the model.
        layers: of the model, none within another.
    """
    operations = _Operations()
    counts = dict.fromkeys(layers, 0)
    with torch.no_grad(), _counted(operations, layers, counts), operations:
        forward()
    return {name: count / operations.count if operations.count else 0.0 for name, count in counts.items()}


@contextmanager
def _counted(operations: _Operations, layers: Mapping[str, nn.Module], counts: dict[str, int]) -> Iterator[None]:
    handles = []
    for name, layer in layers.items():

        def enter(*_: object, name: str = name) -> None:
            counts[name] -= operations.count

        def leave(*_: object, name: str = name) -> None:
            counts[name] += operations.count

        handles += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
