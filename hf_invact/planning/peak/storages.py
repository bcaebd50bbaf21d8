"""Counts the bytes of the tensors that are alive, as CUDA's allocator would."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK_BYTES = 512
"""CUDA's caching allocator hands out multiples of this."""


@dataclass(eq=False)
class _Block:
    """The memory of one storage. It is alive at the ticks from `born` to before `died`."""

    bytes: int
    born: int = 0
    died: float = math.inf
    category: str | None = None


class LiveStorages(TorchDispatchMode):
    """Follows each storage that an operation returns inside the context until it is released.

    A storage counts once, however many views or names it has. Fake and real tensors count the same. Not seen: what a
    kernel allocates and frees while it runs.

    The time inside is divided by `begin` into moments, each of which has a peak of its own. What its bytes are is told
    by `mark`, which may come after the peak: a category holds for the storage's whole life.
    """

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[weakref.ref[Any], _Block]] = {}
        self._blocks: list[_Block] = []
        self._tick = 0
        self._now = 0
        self._moment = ""
        self._peaks = {"": (0, 0)}  # bytes and tick, by moment
        self._sum: _Block | None = None  # of two gradients, made just now, which does not count yet
        self._node: int | None = None
        self._node_began = 0  # a tick

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if not tensors:
            return output
        self._settle()
        if (node := _running_node()) != self._node:
            self._node, self._node_began = node, self._tick
        if func is torch.ops.aten.add.Tensor and node is not None:
            self._follow_sum(tensors[0], onto=args[0])
        else:
            for tensor in tensors:
                self._block_of(tensor)
        return output

    def begin(self, moment: str) -> None:
        """What follows, and what is alive already, belongs to this moment. One that begins again is forgotten."""
        self._settle()
        self._moment = moment
        self._peaks[moment] = (self._now, self._tick)

    def mark(self, tensors: Iterable[Tensor], category: str) -> None:
        """Say what these tensors are, where nothing was said before. They count from now on, if they did not yet."""
        self._settle()
        for tensor in tensors:
            block = self._block_of(tensor)
            block.category = block.category or category

    def mark_rest(self, category: str) -> None:
        """Say what everything else is that is alive now."""
        self._settle()
        for _, block in self._alive.values():
            block.category = block.category or category

    def forget(self, tensors: Iterable[Tensor]) -> None:
        """These are not in the device's memory: they do not count from now on."""
        for tensor in tensors:
            self._release(self._block_of(tensor))
            self._follow(tensor, _Block(0))

    def peak(self, moment: str) -> dict[str | None, int]:
        """Bytes by category (None: not marked) when most was alive in this moment."""
        self._settle()
        _, tick = self._peaks[moment]
        totals: dict[str | None, int] = {}
        for block in self._blocks:
            if block.born <= tick < block.died:
                totals[block.category] = totals.get(block.category, 0) + block.bytes
        return totals

    def _block_of(self, tensor: Tensor) -> _Block:
        key = _key(tensor)
        if key not in self._alive:
            block = _Block(_rounded(tensor))
            self._follow(tensor, block)
            self._allocate(block)
        return self._alive[key][1]

    def _follow(self, tensor: Tensor, block: _Block) -> None:
        key = _key(tensor)
        self._alive[key] = (weakref.ref(tensor.untyped_storage(), lambda _: self._on_release(key)), block)

    def _on_release(self, key: int) -> None:
        _, block = self._alive.pop(key)
        self._release(block)

    def _allocate(self, block: _Block) -> None:
        self._tick += 1
        block.born = self._tick
        self._blocks.append(block)
        self._now += block.bytes
        if self._now > self._peaks[self._moment][0]:
            self._peaks[self._moment] = (self._now, self._tick)

    def _release(self, block: _Block) -> None:
        self._tick += 1
        block.died = self._tick
        self._now -= block.bytes

    def _follow_sum(self, total: Tensor, onto: Tensor) -> None:
        """Autograd adds gradients in place, where nothing else holds the first; but not while a dispatch mode looks on.

        So where the first comes from an earlier node, the sum does not count before the next operation: if the first
        is released until then, they never count both. A view holds its base, and is no place to add to.
        """
        if self._block_of(onto).born > self._node_began or onto._is_view():
            self._block_of(total)
        else:
            self._sum = _Block(_rounded(total))
            self._follow(total, self._sum)

    def _settle(self) -> None:
        if self._sum is not None:
            self._allocate(self._sum)
            self._sum = None


def _running_node() -> int | None:
    """The number of the node of autograd's graph that runs now, or has just run; None outside of a backward pass."""
    node = torch._C._current_autograd_node()
    return None if node is None else node._sequence_nr()


def _rounded(tensor: Tensor) -> int:
    return -(-tensor.untyped_storage().nbytes() // BLOCK_BYTES) * BLOCK_BYTES


def _key(tensor: Tensor) -> int:
    """Identifies a storage while it lives."""
    key: int = tensor.untyped_storage()._cdata
    return key
