"""Recomputes activations, and their products with another projection, in the backward pass: exact.

While the model's forward pass runs, hooks replace what autograd saves. Instead of the output of an activation, or a
product with it, they save how to recompute it: this keeps the activation's input (and the other factor of a product),
which are kept anyway. As with checkpointing, these tensors must not be written to before the backward pass.
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
    """Inside of the context, the model's forward pass keeps no output of an activation.

    Raises:
        Unavailable: the model has no known activation.
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
    """Whether autograd saves only the input for it, as for PyTorch's own functions."""
    saved: list[Tensor] = []
    x = torch.ones(1, requires_grad=True)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: x):
        activation(x)
    return all(_key(tensor) == _key(x) for tensor in saved)


class _OneStep(torch.autograd.Function):
    """A formula of several steps that saves only its input."""

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
class _Result:
    """A tensor that can be recomputed.

    Attributes:
        storage: a weak reference to its storage. While the storage lives, no other one has the same key.
        version: of the tensor. If it has been written to since, it is saved as it is.
        function: computes it from the inputs.
        inputs: of the function.
    """

    storage: StorageWeakRef
    version: int
    function: Callable[..., Tensor]
    inputs: tuple[_Input, ...]


@dataclass(frozen=True)
class _View:
    """A tensor that is, or views, a result that can be recomputed."""

    result: _Result
    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt


_Input: TypeAlias = Tensor | _View


class _Recipes:
    """Which of the existing tensors can be recomputed, and how; for one forward pass at a time."""

    def __init__(self) -> None:
        self._results: dict[int, _Result] = {}
        self._stack = ExitStack()
        self._outer: Any = None
        self._is_running = False

    def begin(self) -> None:
        """Install the hooks."""
        # These hooks hide those that are installed already (those of a meter, for example), so they call them. PyTorch
        # has no public function that returns them.
        self._outer = torch._C._autograd._top_saved_tensors_default_hooks(True)
        self._stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed.unpack()))
        self._stack.enter_context(_Products(self))
        self._is_running = True

    def end(self) -> None:
        """Remove the hooks, and release every tensor."""
        self._is_running = False
        self._stack.close()
        self._results.clear()
        self._outer = None

    def add(self, result: Tensor, function: Callable[..., Tensor], *inputs: Tensor) -> None:
        """Note that a result is ``function(*inputs)``."""
        if not self._is_running:
            return
        storage = StorageWeakRef(result.untyped_storage())
        noted = _Result(storage, result._version, function, tuple(map(self._input, inputs)))
        # A result that was freed is never recomputed, so its inputs must not be held.
        self._results = {key: each for key, each in self._results.items() if not each.storage.expired()}
        self._results[_key(result)] = noted

    def knows(self, tensor: Tensor) -> bool:
        """Whether a tensor, or what it views, can be recomputed."""
        result = self._results.get(_key(tensor))
        return result is not None and not result.storage.expired() and result.version == tensor._version

    def _input(self, tensor: Tensor) -> _Input:
        if not self.knows(tensor):
            return tensor.detach()  # without this, an operation that saves its own output would keep itself alive
        return _View(self._results[_key(tensor)], tensor.size(), tensor.stride(), tensor.storage_offset())

    def _pack(self, tensor: Tensor) -> _Kept | _Recipe:
        return _packed(self._input(tensor), self._outer)


class _Products(TorchFunctionMode):
    """Sees every call of a PyTorch function, and notes products with a tensor that can be recomputed."""

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
    """A tensor that is saved as it is, by the outer hooks if there are any."""

    def __init__(self, tensor: Tensor, outer: Any) -> None:
        self._unpack: Callable[[Any], Tensor]
        pack, self._unpack = outer or (_itself, _itself)
        self._packed = pack(tensor)

    def unpack(self) -> Tensor:
        return self._unpack(self._packed)


class _Recipe:
    """A tensor that is recomputed."""

    def __init__(self, view: _View, outer: Any) -> None:
        self._function = view.result.function
        self._inputs = [_packed(each, outer) for each in view.result.inputs]
        self._geometry = view.size, view.stride, view.offset

    @torch.no_grad()
    def unpack(self) -> Tensor:
        result = self._function(*(each.unpack() for each in self._inputs))
        return result.as_strided(*self._geometry)


def _packed(tensor: _Input, outer: Any) -> _Kept | _Recipe:
    return _Kept(tensor, outer) if isinstance(tensor, Tensor) else _Recipe(tensor, outer)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key
