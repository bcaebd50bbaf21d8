"""Token ids, masks and labels. They are real among fake tensors, since models decide by their values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten

REAL_TOKENS = 1 << 16
"""The most for which every element is stored."""


def tokens(value: int, *shape: int) -> Tensor:
    """Integers of one value. Few are real, also where tensors are fake; many are fake, and have no memory."""
    if math.prod(shape) > REAL_TOKENS:
        return torch.full(shape, value)
    with unset_fake_temporarily():
        return torch.full(shape, value)


def mask_of_ones(*shape: int) -> Tensor:
    """A mask that hides nothing, which is real, however large: models ask whether it does."""
    with unset_fake_temporarily():
        return alike(torch.ones(1, dtype=torch.long), shape) if math.prod(shape) > REAL_TOKENS else tokens(1, *shape)


def padding_mask(*shape: int) -> Tensor:
    """A mask that hides the last token of the last sequence (of many tokens: all of them), which is real."""
    with unset_fake_temporarily():
        if math.prod(shape) > REAL_TOKENS:
            return alike(torch.zeros(1, dtype=torch.long), shape)
        mask = tokens(1, *shape)
        mask.view(-1)[-1] = 0
        return mask


def alike(element: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor whose elements are all the same one.

    Its storage has the size that it would have otherwise, for the count. But only one element is ever written, so the
    rest is address space and no memory.
    """
    storage = torch.empty(math.prod(shape), dtype=element.dtype)
    storage[:1] = element.reshape(1)
    return storage.as_strided(shape, [0] * len(shape))


def _has_fake(args: tuple[Any, ...]) -> bool:
    """Whether one of the arguments is a fake tensor: so are most, and to look into lists as well takes longer."""
    return any(isinstance(each, FakeTensor) for each in args)


def _are_alike(tensor: Tensor) -> bool:
    return tensor.numel() > REAL_TOKENS and not any(tensor.stride())


class RealIntegers(TorchFunctionMode):
    """Computes for real what has no fake argument: token ids, masks and positions, and what is made of them.

    Models decide by their values: whether a mask hides anything, or positions say that sequences are packed.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _has_fake(args):
            return func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not given or any(isinstance(tensor, FakeTensor) or tensor.is_floating_point() for tensor in given):
            return func(*args, **kwargs)
        with unset_fake_temporarily() as fake_mode:
            if not any(map(_are_alike, given)):
                return func(*args, **kwargs)
            with ComputedOnce(fake_mode):
                return func(*args, **kwargs)


class RealSettings(RealIntegers):
    """Computes for real, besides, integers and single numbers that are made of nothing, such as positions.

    For small batches: all of them have memory. Models loop over sizes that they compute from positions, and draw a
    number to decide whether they skip a layer.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _has_fake(args):
            return func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if given and all(not isinstance(tensor, FakeTensor) and _is_setting(tensor) for tensor in given):
            with unset_fake_temporarily():
                return func(*args, **(kwargs or {}))
        if not given and func in _FACTORIES:
            with unset_fake_temporarily():
                made = func(*args, **(kwargs or {}))
            if _is_setting(made):
                return made
        return super().__torch_function__(func, types, args, kwargs)


_FACTORIES = (torch.arange, torch.full, torch.ones, torch.rand, torch.tensor, torch.zeros)


def _is_setting(tensor: Tensor) -> bool:
    return not tensor.dim() or not (tensor.is_floating_point() or tensor.is_complex())


class ComputedOnce(TorchDispatchMode):
    """Computes one element where all are alike. What else is made of them is fake, since nobody asks for its values.

    Args:
        fake_mode: of fake tensors.
    """

    def __init__(self, fake_mode: Any) -> None:
        super().__init__()
        self._fake_mode = fake_mode

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func.is_view or not any(map(_are_alike, given)):
            return func(*args, **kwargs)
        with self._fake_mode:
            fake_args, fake_kwargs = tree_map_only(Tensor, self._fake_mode.from_tensor, (args, kwargs))
            fake = func(*fake_args, **fake_kwargs)
        most = max(tensor.numel() for tensor in given)
        if not _can_be_computed_once(func) or any(any(tensor.stride()) for tensor in given) or fake.numel() > most:
            return fake
        args, kwargs = tree_map_only(Tensor, _first, (args, kwargs))
        element = func(*args, **kwargs)
        if func in _SUMS:
            element = element * (most // fake.numel())
        return alike(element, fake.shape)


_SUMS = (aten.sum.default, aten.sum.dim_IntList)
_KEEP_THE_VALUE = (aten._to_copy.default, aten.all.default, aten.all.dim, aten.any.default, aten.any.dim)


def _can_be_computed_once(func: Any) -> bool:
    is_elementwise = torch.Tag.pointwise in func.tags and not func._schema.is_mutable
    return is_elementwise or func in _KEEP_THE_VALUE or func in _SUMS


def _first(tensor: Tensor) -> Tensor:
    """Of one element, with as many dimensions."""
    return tensor[(slice(1),) * tensor.dim()]
