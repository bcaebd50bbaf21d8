"""Records how modules are called, and answers for a layer with what one of its kind has returned."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..isolation.isolate import modules_in
from ..nested import leaves, mapped

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, enum.Enum, torch.dtype, torch.device, torch.Size)

_CAPTURING = "transformers.utils.output_capturing"


@dataclass(frozen=True)
class Call:
    """How a module was called.

    Attributes:
        args, kwargs: the arguments. Tensors are copies without a history; parameters are themselves.
        needs_gradient: for each tensor or other value in them, in the order of ``leaves((args, kwargs))``, whether
            it is a tensor, but no parameter, that a gradient was to be computed for.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    needs_gradient: tuple[bool, ...]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The call with these arguments, which may be changed afterwards."""
        needs_gradient = tuple(map(_needs_gradient, leaves((args, kwargs))))
        args, kwargs = mapped(partial(_copied, {}), (args, kwargs))
        return cls(args, kwargs, needs_gradient)

    def with_gradient(self) -> Call:
        """The same call, with a gradient for its hidden states if nothing in it needs one.

        Hidden states are the first floating-point tensor of several dimensions.
        """
        values = list(leaves((self.args, self.kwargs)))
        states = (place for place, value in enumerate(values) if _could_be_hidden_states(value))
        if any(self.needs_gradient) or (first := next(states, None)) is None:
            return self
        return replace(self, needs_gradient=tuple(place == first for place in range(len(values))))

    def arguments(self) -> Arguments:
        """To call a module with: new copies every time, since it may change them."""
        copies: dict[int, Tensor] = {}
        inputs: dict[int, Tensor] = {}
        for value, needs_gradient in zip(leaves((self.args, self.kwargs)), self.needs_gradient, strict=True):
            if needs_gradient and id(value) not in inputs:
                inputs[id(value)] = leaf = value.detach().requires_grad_()
                copies[id(value)] = leaf.clone()
        args, kwargs = mapped(partial(_copied, copies), (self.args, self.kwargs))
        return Arguments(args, kwargs, list(inputs.values()), list(copies.values()))


@dataclass(frozen=True)
class Arguments:
    """What to call a module with.

    Attributes:
        args, kwargs: the arguments.
        leaves: those to differentiate by. What is passed are copies of them, since no module may write to a leaf.
        tensors: all that are passed but parameters, each once. Who counts what a module keeps leaves these out.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    leaves: list[Tensor]
    tensors: list[Tensor]


def _could_be_hidden_states(value: Any) -> bool:
    is_passed = isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
    return is_passed and value.is_floating_point() and value.dim() > 1


def _copied(copies: dict[int, Tensor], value: Any) -> Any:
    """A copy of a tensor, the same one for the same tensor; anything else as it is."""
    if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
        return value
    if id(value) not in copies:
        copies[id(value)] = value.detach().clone()
    return copies[id(value)]


def _needs_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad and not isinstance(value, nn.Parameter)


class Stop(BaseException):
    """Ends a run that has shown all that is wanted. Not an `Exception`: models catch those."""


class Replays:
    """Answers for layers with what one of their kind has returned, where they are called alike.

    Layers are the outermost modules of a kind that several have.

    Args:
        kinds: of modules. Those of a kind are alike.
        run: modules that have to run themselves, so that no layer that holds one is answered for.
        unless: tells of arguments with which a layer has to run itself.
    """

    def __init__(
        self,
        kinds: Mapping[nn.Module, Hashable],
        run: Collection[nn.Module] = (),
        unless: Callable[[Iterable[Any]], bool] = lambda arguments: False,
    ) -> None:
        self._kinds, self._unless, counts = kinds, unless, Counter(kinds.values())
        layers = set(_outermost({module for module, kind in kinds.items() if counts[kind] > 1}))
        self._layers = {layer for layer in layers if not run or set(run).isdisjoint(layer.modules())}
        self._results: dict[Hashable, list[tuple[object, _Result]]] = {}

    def watch(self, model: nn.Module) -> None:
        """Answer for the layers in an isolated model, in their attributes: `undisturbed` puts them back."""
        for module in self._layers.intersection(model.modules()):
            vars(module)["_compiled_call_impl"] = partial(self.call, module, vars(module)["_compiled_call_impl"])

    def call(self, module: nn.Module, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a module returns, which is run only if none of its kind was called alike."""
        if module not in self._layers or (before := _description_of(args, kwargs)) is None:
            return run(*args, **kwargs)
        results = self._results.setdefault(self._kinds[module], [])
        for description, result in results:
            if description == before and not self._unless(leaves((args, kwargs))):
                return result.again()
        versions = _versions(args, kwargs)
        output = run(*args, **kwargs)
        if before == _description_of(args, kwargs) and versions == _versions(args, kwargs):
            new = _Result.of(output)
            if new is not None:
                results.append((before, new))
        return output


class Recorder:
    """Notes the first call of each kind, or the first that needed a gradient, and raises `Stop` after the last.

    A layer that is called like an earlier one of its kind is not run: see `Replays`.

    Args:
        kinds: of the modules to watch. Those of a kind are alike.
        wanted: the kinds to stop after.
        gradients: whether any weight needs one. Else the first call of each kind is enough.

    Attributes:
        found: the calls so far.
    """

    def __init__(self, kinds: Mapping[nn.Module, Hashable], wanted: Collection[Hashable], gradients: bool) -> None:
        self.found: dict[Hashable, Call] = {}
        self._kinds, self._wanted, self._gradients = kinds, set(wanted), gradients
        self._uncalled: dict[Hashable, set[nn.Module]] = {}
        for module, kind in kinds.items():
            self._uncalled.setdefault(kind, set()).add(module)
        self._replays = Replays(kinds)

    def watch(self, model: nn.Module) -> None:
        """Intercept the calls of an isolated model's modules, in their attributes: `undisturbed` puts them back."""
        for module in modules_in(model).values():
            run = vars(module)["_compiled_call_impl"]
            if module in self._kinds:
                run = partial(self._call, module, run)
            vars(module)["_compiled_call_impl"] = partial(_run_and_capture, module, run)

    def _call(self, module: nn.Module, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._note(module, self._kinds[module], args, kwargs)
        return self._replays.call(module, run, *args, **kwargs)

    def _note(self, module: nn.Module, kind: Hashable, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._uncalled[kind].discard(module)
        if kind in self.found and (any(self.found[kind].needs_gradient) or not self._gradients):
            return
        call = Call.of(args, kwargs)
        if kind not in self.found or any(call.needs_gradient):
            self.found[kind] = call
        is_last = any(call.needs_gradient) or not self._gradients or not self._uncalled[kind]
        if is_last:
            self._wanted.discard(kind)
            if not self._wanted:
                raise Stop


def _run_and_capture(module: nn.Module, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run the hooks by which models of Transformers collect hidden states for themselves: some compute with these."""
    output = run(*args, **kwargs)
    for hook in module._forward_hooks.values():
        if getattr(hook, "__module__", None) == _CAPTURING:
            hook(module, args, output)
    return output


def _outermost(modules: Collection[nn.Module]) -> Iterator[nn.Module]:
    inner = {each for module in modules for each in module.modules() if each is not module}
    return (module for module in modules if module not in inner)


@dataclass(frozen=True)
class _Result:
    """What a layer has returned: a copy, and which of the values in it needed a gradient."""

    output: Any
    needs_gradient: tuple[bool, ...]

    @classmethod
    def of(cls, output: Any) -> _Result | None:
        """None if it holds what cannot be copied."""
        if not all(isinstance(value, (Tensor, *_PLAIN)) for value in leaves(output)):
            return None
        needs_gradient = tuple(map(_needs_gradient, leaves(output)))
        return cls(mapped(partial(_copied, {}), output), needs_gradient)

    def again(self) -> Any:
        """A copy, to which the model may write."""
        needs_gradient = iter(self.needs_gradient)

        def copied(value: Any) -> Any:
            needs = next(needs_gradient)
            is_passed = isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
            return value.detach().requires_grad_(needs).clone() if is_passed else value

        return mapped(copied, self.output)


def _description(value: Any) -> object:
    """Equal for arguments for which a layer returns the same, up to numbers in tensors.

    Raises:
        _Unknown: nobody can tell that of a value in them.
    """
    if isinstance(value, Tensor):
        return type(value), value.shape, value.dtype, value.device, value.requires_grad
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, dict):
        return type(value), tuple((key, _description(each)) for key, each in value.items())
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(_description, value))
    raise _Unknown


class _Unknown(Exception):
    pass


def _description_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> object | None:
    try:
        return _description((args, kwargs))
    except _Unknown:
        return None


def _versions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    """Which change where a tensor is written to."""
    return [value._version for value in leaves((args, kwargs)) if isinstance(value, Tensor)]
