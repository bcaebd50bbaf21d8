"""Counts the bytes of live tensors as CUDA's allocator would."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
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
    """The memory of one storage, which is alive from the tick `born` until before the tick `died`."""

    bytes: int
    born: int = 0
    died: float = math.inf
    category: str | None = None


class LiveStorages(TorchDispatchMode):
    """Follows each storage that an operation returns inside the context, until it is released.

    A storage counts once, however many views or names it has. Fake and real tensors count the same. Memory that a
    kernel allocates and frees while it runs is counted where `workspace` tells it.

    `begin` divides the time inside into moments, each with a peak of its own. `mark` gives storages a category. It may
    follow the peak: a category holds for the whole life of a storage.

    Args:
        workspace: tells how many bytes an operation takes while it runs, from it and its arguments.
    """

    def __init__(self, workspace: Callable[..., int] | None = None) -> None:
        super().__init__()
        self._workspace = workspace
        self._alive: dict[int, tuple[weakref.ref[Any], _Block]] = {}
        self._blocks: list[_Block] = []
        self._tick = 0
        self._now = 0
        self._moment = ""
        self._peaks = {"": (0, 0)}  # bytes and tick, by moment
        self._sum: _Block | None = None  # the latest sum of two gradients, not counted yet
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
        if self._workspace is not None and (taken := self._workspace(func, args, kwargs or {})):
            block = _Block(taken)
            self._allocate(block)
            self._release(block)
        return output

    def begin(self, moment: str) -> None:
        """Start a moment, with what is alive now. If it began before, it starts again."""
        self._settle()
        self._moment = moment
        self._peaks[moment] = (self._now, self._tick)

    def mark(self, tensors: Iterable[Tensor], category: str) -> None:
        """Give tensors a category, unless they have one. They count from now on if they did not before."""
        self._settle()
        for tensor in tensors:
            block = self._block_of(tensor)
            block.category = block.category or category

    def mark_rest(self, category: str) -> None:
        """Give a category to all live storages without one."""
        self._settle()
        for _, block in self._alive.values():
            block.category = block.category or category

    def forget(self, tensors: Iterable[Tensor]) -> None:
        """Stop counting tensors that are not in the device's memory."""
        for tensor in tensors:
            self._release(self._block_of(tensor))
            self._follow(tensor, _Block(0))

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Never count tensors that were there before, unless they count already."""
        for tensor in tensors:
            if _key(tensor) not in self._alive:
                self._follow(tensor, _Block(0))

    def peak(self, moment: str) -> dict[str | None, int]:
        """Bytes by category (None: without one) at the peak of a moment."""
        self._settle()
        _, tick = self._peaks[moment]
        totals: dict[str | None, int] = {}
        for block in self._blocks:
            if block.born <= tick < block.died:
                totals[block.category] = totals.get(block.category, 0) + block.bytes
        return totals

    def held(self, category: str) -> int:
        """Bytes of a category that are alive now."""
        self._settle()
        return sum(block.bytes for _, block in self._alive.values() if block.category == category)

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
        """Follow a sum of gradients, which autograd computes in place unless a dispatch mode is active.

        It adds in place to a gradient of an earlier node that nothing else references. So such a sum counts only from
        the next operation on: if the first gradient is released by then, the two never count together. Autograd does
        not add in place to a view, which keeps its base alive.
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
    """The number of the autograd node that is running, or ran last; None outside of a backward pass."""
    node = torch._C._current_autograd_node()
    return None if node is None else node._sequence_nr()


def _rounded(tensor: Tensor) -> int:
    return -(-tensor.untyped_storage().nbytes() // BLOCK_BYTES) * BLOCK_BYTES


def _key(tensor: Tensor) -> int:
    """Identifies a storage while it is alive."""
    key: int = tensor.untyped_storage()._cdata
    return key
