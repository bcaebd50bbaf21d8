"""How a module uses the modules in it: how it calls them, and which of their inputs and results it keeps anyway."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ...memory.storages import storages
from ...sites import Site
from ...sites.errors import PatchingError
from ..errors import NoProbeError
from ..isolation.undisturbed import undisturbed
from ..nested import leaves
from ..probing.probe import Scope, autocast, reason
from ..probing.recording import Call, Replays


@dataclass(frozen=True)
class Use:
    """How a module is used.

    Attributes:
        calls: with a few tokens and with more.
        times: it is called in one run.
        input: equal for modules that get the same tensor.
        input_is_kept, result_is_kept: for the backward pass of something else.
        input_changes, result_changes: something writes to it afterwards.
        dtypes: of its input and its result.
        looks: equal for calls that do the same.
    """

    calls: tuple[Call, Call]
    times: int
    input: Hashable
    input_is_kept: bool
    result_is_kept: bool
    input_changes: bool
    result_changes: bool
    dtypes: tuple[torch.dtype, torch.dtype]
    looks: Hashable


def uses_of(
    scope: Scope, sites: Sequence[Site], autocast_dtype: torch.dtype | None, kinds: Mapping[nn.Module, Hashable]
) -> dict[Site, Use]:
    """How a scope uses some sites that are modules.

    Args:
        kinds: of modules in the scope. Layers of a kind that hold none of the sites, and get none of their inputs and
            results, are not all run: see `Replays`.

    Raises:
        NoProbeError: it does not call one of them.
    """
    modules = {site: module for site in sites if (module := site.module) is not None}
    try:
        more, few = (_Run(scope, call, modules.values(), autocast_dtype, kinds) for call in (scope.many, scope.few))
    except PatchingError:
        raise
    except Exception as error:  # whatever a foreign forward raises
        raise NoProbeError(reason(scope.module, error)) from error
    return {site: few.use(module, more) for site, module in modules.items()}


def saved_by(run: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """What a function returns, and what is saved for the backward pass meanwhile."""
    saved: list[Tensor] = []

    def save(tensor: Tensor) -> Tensor:
        saved.append(tensor.detach())
        return tensor.detach()  # otherwise one that saves its own result would keep itself alive

    with saved_tensors_hooks(save, lambda tensor: tensor):
        return run(), saved


@dataclass(frozen=True)
class _Called:
    call: Call
    input: Tensor
    result: Tensor
    versions: tuple[int, int]


class _Run:
    """One run of a scope.

    Attributes:
        calls: of the modules that are watched.
        outside: what is saved outside of them, for the backward pass.
    """

    def __init__(
        self,
        scope: Scope,
        call: Call,
        watched: Iterable[nn.Module],
        dtype: torch.dtype | None,
        kinds: Mapping[nn.Module, Hashable],
    ) -> None:
        self.calls: dict[nn.Module, list[_Called]] = {module: [] for module in watched}
        self.outside = _SavedOutside()
        arguments = call.arguments()
        with (
            undisturbed(scope.module, scope.device),
            autocast(scope, dtype),
            saved_tensors_hooks(self.outside.save, lambda tensor: tensor),
        ):
            for module in self.calls:  # of an isolated module; `undisturbed` puts the attribute back
                vars(module)["_compiled_call_impl"] = partial(self._call, module, vars(module)["_compiled_call_impl"])
            Replays(kinds, run=self.calls, unless=self._passes_between).watch(scope.module)
            scope.run(arguments)

    def use(self, module: nn.Module, more: _Run) -> Use:
        """How it uses a module.

        Args:
            more: the same with more tokens.

        Raises:
            NoProbeError: it does not call it.
        """
        calls = self.calls[module]
        if not calls or not more.calls[module]:
            raise NoProbeError(f"a {type(module).__name__} is not called by what holds it")
        first, kept = calls[0], storages(*self.outside.tensors).keys()
        return Use(
            calls=(first.call.with_gradient(), more.calls[module][0].call.with_gradient()),
            times=len(calls),
            input=frozenset(storages(first.input)),
            input_is_kept=all(storages(each.input).keys() <= kept for each in calls),
            result_is_kept=all(storages(each.result).keys() <= kept for each in calls),
            input_changes=any(each.input._version != each.versions[0] for each in calls),
            result_changes=any(each.result._version != each.versions[1] for each in calls),
            dtypes=(first.input.dtype, first.result.dtype),
            looks=(first.input.shape, first.input.stride(), first.input.dtype, first.call.needs_gradient),
        )

    def _passes_between(self, arguments: Iterable[Any]) -> bool:
        """Whether a layer that is called with these may keep what a watched module has got or returned."""
        seen = (tensor for calls in self.calls.values() for each in calls for tensor in (each.input, each.result))
        known = {key for tensor in seen for key in storages(tensor)}
        tensors = (each for each in arguments if isinstance(each, Tensor))
        return any(not known.isdisjoint(storages(tensor)) for tensor in tensors)

    def _call(self, module: nn.Module, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = Call.of(args, kwargs)
        self.outside.depth += 1
        try:
            result = run(*args, **kwargs)
        finally:
            self.outside.depth -= 1
        input = next(each for each in leaves((args, kwargs)) if isinstance(each, Tensor))
        self.calls[module].append(_Called(call, input, result, (input._version, result._version)))
        return result


class _SavedOutside:
    """Collects what is saved outside of the watched modules. Apart from their results, whose graph refers to it, so
    that they are freed.

    Attributes:
        tensors: what was saved.
        depth: in how many watched modules the run is.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.depth = 0

    def save(self, tensor: Tensor) -> Tensor:
        if self.depth == 0:
            self.tensors.append(tensor.detach())
        return tensor.detach()  # otherwise one that saves its own result would keep itself alive
