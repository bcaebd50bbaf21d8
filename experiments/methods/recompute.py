"""Activations, and their products with another projection, computed again in the backward pass: exact.

While the model's forward runs, hooks stand where autograd saves tensors. Where the next layer would save the output of
an activation, or a product with it, they save how to make it again: that keeps the activation's input (and of a product
the other factor), which are kept anyway. As with checkpointing, nobody may write to these in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from .elementwise import substituted

_PRODUCTS = (torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)


@contextmanager
def recomputed_activations(model: nn.Module) -> Iterator[None]:
    """A model whose forward pass keeps no output of an activation inside.

    Raises:
        Unavailable: it has no activation that is known.
    """
    recipes = _Recipes()
    with ExitStack() as stack:
        stack.enter_context(substituted(model, lambda found, original: _RecomputedActivation(original, recipes)))
        begin = model.register_forward_pre_hook(lambda module, args: recipes.begin())
        stack.callback(begin.remove)
        end = model.register_forward_hook(lambda module, args, output: recipes.end(), always_call=True)
        stack.callback(end.remove)
        yield


class _RecomputedActivation(nn.Module):
    original: Callable[[Tensor], Tensor]

    def __init__(self, original: Callable[[Tensor], Tensor], recipes: _Recipes) -> None:
        super().__init__()
        object.__setattr__(self, "original", original)  # not as a submodule
        self.recipes = recipes
        self.saves_input_alone = _saves_input_alone(original)

    def forward(self, input: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and input.requires_grad):
            return self.original(input)
        output = self.original(input) if self.saves_input_alone else _OneStep.apply(input, self.original)
        self.recipes.add(output, self.original, input)
        return output


def _saves_input_alone(activation: Callable[[Tensor], Tensor]) -> bool:
    """Whether autograd keeps nothing else for it, as for PyTorch's own functions."""
    saved: list[Tensor] = []
    x = torch.ones(1, requires_grad=True)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: x):
        activation(x)
    return all(_key(tensor) == _key(x) for tensor in saved)


class _OneStep(torch.autograd.Function):
    """A formula of several steps that keeps its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.activation = activation
        ctx.save_for_backward(x)
        return activation(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (dx,) = torch.autograd.grad(ctx.activation(x), x, dy)
        return dx, None


@dataclass(frozen=True)
class _Made:
    """A result that can be made again.

    Attributes:
        storage: of the result, which it does not keep alive. While this lives, no other storage has its key.
        version: of the result. A tensor that has been written to since is saved as it is.
        parts: what it was made of.
    """

    storage: StorageWeakRef
    version: int
    function: Callable[..., Tensor]
    parts: tuple[_Part, ...]


@dataclass(frozen=True)
class _View:
    """A tensor that is, or views, a result that can be made again."""

    made: _Made
    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt


_Part: TypeAlias = Tensor | _View


class _Recipes:
    """What can be made again of the tensors that exist, during one forward pass at a time."""

    def __init__(self) -> None:
        self._made: dict[int, _Made] = {}
        self._stack = ExitStack()
        self._outer: Any = None
        self._is_running = False

    def begin(self) -> None:
        """Stand where autograd saves tensors."""
        # What hooks stand there already (a meter's, say) would see nothing any more. PyTorch has no public way to them.
        self._outer = torch._C._autograd._top_saved_tensors_default_hooks(True)
        self._stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed.unpack()))
        self._stack.enter_context(_Products(self))
        self._is_running = True

    def end(self) -> None:
        """Go away, and hold nothing any more."""
        self._is_running = False
        self._stack.close()
        self._made.clear()
        self._outer = None

    def add(self, result: Tensor, function: Callable[..., Tensor], *parts: Tensor) -> None:
        """Note that a result is ``function(*parts)``."""
        if not self._is_running:
            return
        storage = StorageWeakRef(result.untyped_storage())
        made = _Made(storage, result._version, function, tuple(map(self._part, parts)))
        # What is freed needs not be made again, and its parts are not to be held.
        self._made = {key: each for key, each in self._made.items() if not each.storage.expired()}
        self._made[_key(result)] = made

    def knows(self, tensor: Tensor) -> bool:
        """Whether a tensor, or what it views, can be made again."""
        made = self._made.get(_key(tensor))
        return made is not None and not made.storage.expired() and made.version == tensor._version

    def _part(self, tensor: Tensor) -> _Part:
        if not self.knows(tensor):
            return tensor.detach()  # an operation that saves its own output would else be held by what it holds
        return _View(self._made[_key(tensor)], tensor.size(), tensor.stride(), tensor.storage_offset())

    def _pack(self, tensor: Tensor) -> _Kept | _Recipe:
        return _packed(self._part(tensor), self._outer)


class _Products(TorchFunctionMode):
    """Sees every call of a function of PyTorch, and notes products with what can be made again."""

    def __init__(self, recipes: _Recipes) -> None:
        super().__init__()
        self.recipes = recipes

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _PRODUCTS and not kwargs and result.requires_grad and self._may_be_noted(args):
            self.recipes.add(result, torch.mul, *args)
        return result

    def _may_be_noted(self, factors: tuple[Any, ...]) -> bool:
        are_tensors = all(isinstance(factor, Tensor) for factor in factors)
        return are_tensors and any(map(self.recipes.knows, factors))


class _Kept:
    """A tensor that is saved as it is, by the hooks around if there are any."""

    def __init__(self, tensor: Tensor, outer: Any) -> None:
        self._unpack: Callable[[Any], Tensor]
        pack, self._unpack = outer or (_itself, _itself)
        self._packed = pack(tensor)

    def unpack(self) -> Tensor:
        return self._unpack(self._packed)


class _Recipe:
    """A tensor that is made again."""

    def __init__(self, view: _View, outer: Any) -> None:
        self._function = view.made.function
        self._parts = [_packed(part, outer) for part in view.made.parts]
        self._geometry = view.size, view.stride, view.offset

    @torch.no_grad()
    def unpack(self) -> Tensor:
        result = self._function(*(part.unpack() for part in self._parts))
        return result.as_strided(*self._geometry)


def _packed(part: _Part, outer: Any) -> _Kept | _Recipe:
    return _Kept(part, outer) if isinstance(part, Tensor) else _Recipe(part, outer)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key
