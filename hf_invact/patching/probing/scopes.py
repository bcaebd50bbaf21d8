"""Finds what can be run by itself and holds both a site and what consumes its result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...sites import Site
from ...sites.errors import PatchingError
from ..errors import NoProbeError
from ..isolation.undisturbed import undisturbed
from ..weights.sharding import require_whole
from .guesses import guessed_calls
from .known import KnownCalls
from .probe import Scope, autocast, reason
from .recording import Arguments, Call, Replays
from .surroundings import Surrounding


def find_scope(
    model: nn.Module,
    site: Site,
    around: Sequence[Surrounding],
    known: KnownCalls,
    autocast_dtype: torch.dtype | None = None,
    *,
    makes_input: bool = True,
) -> tuple[Scope, nn.Module]:
    """The smallest module around a site that can be run by itself, makes the site's input and uses its result.

    A module that is given the site's input is taken only if no module around it can be run: whether anything else saves
    that input cannot be seen in it.

    Args:
        model: the whole model.
        site: what is not patched.
        around: what to try: the `surroundings` of the site's holder.
        known: how the model calls them. What it does not call is called with hidden states of a likely width.
        autocast_dtype: as for `measure`.
        makes_input: whether it has to make the site's input, and to be run as a whole: else layers that do not hold the
            site may be answered for by others (see `Replays`).

    Returns:
        What to run, and the outermost module that was tried.

    Raises:
        NoProbeError: there is none, or its weights are sharded or missing.
        PatchingError: what a run has changed could not be put back.
    """
    replays = None if makes_input else Replays(known.kinds, run=[site.holder])
    failures: list[str] = []
    second_best: Scope | None = None
    done = 0  # the innermost level that is ruled out
    for each in around:
        if each.level <= done:
            continue
        for scope in _attempts(model, each, known):
            arguments = scope.few.arguments()
            try:
                output, observer = _try(scope, arguments, site, autocast_dtype, replays)
            except PatchingError:
                raise
            except Exception as error:  # whatever a foreign forward raises: reported as the reason
                failures.append(reason(scope.module, error))
                continue
            if not observer.results:
                failures.insert(0, f"{type(scope.module).__name__} does not call it")
                if each.module is not each.wrapped:
                    done = each.level  # it calls something else instead of what it wraps
                continue
            if observer.is_hidden:
                who = type(scope.module).__name__
                raise NoProbeError(
                    f"{who} runs it without gradients, or checkpoints or offloads in a way that cannot be turned off"
                )
            if _uses(output, observer.results[-1]):
                dtypes = (*(weight.dtype for weight in scope.module.parameters()), output.dtype)
                precision = _coarsest(scope, *dtypes, observer.results[-1].dtype, autocast_dtype=autocast_dtype)
                scope = replace(scope, precision=precision)
                if not (makes_input and observer.gets_any(arguments)):
                    return scope, each.module
                second_best = second_best or scope
                break
            failures.insert(0, f"what uses the result of {type(scope.module).__name__} cannot be run by itself")
            break
    if second_best is not None:
        return second_best, around[-1].module
    failures.append("the size of its hidden states is not known")
    if known.failure and not any(known.of(each.module) for each in around):
        failures[0] = f"{failures[0]}; {known.failure}"
    raise NoProbeError(failures[0])


def _attempts(model: nn.Module, around: Surrounding, known: KnownCalls) -> Iterator[Scope]:
    module = around.module
    weights = [weight for weight in module.parameters() if weight.is_floating_point()]
    weights = weights or [weight for weight in model.parameters() if weight.is_floating_point()]
    if not weights:
        return
    require_whole(model, module)
    dtype, device = weights[0].dtype, weights[0].device
    if (calls := known.of(module)) is not None:
        few, many = calls
        yield Scope(module, few, many, _tokens(module, few), dtype, device)
        return
    for few, many, tokens in guessed_calls(model, module, around.wrapped, dtype, device):
        yield Scope(module, few, many, tokens, dtype, device)


def _tokens(module: nn.Module, call: Call) -> int:
    """In the hidden states: the first floating-point tensor with several dimensions. The last of these is the width,
    but for images of channels first. Where there are none, in the ids of a text: the first tensor of two dimensions."""
    tensors = [each for each in (*call.args, *call.kwargs.values()) if isinstance(each, Tensor)]
    states = next((each for each in tensors if each.is_floating_point() and each.dim() > 1), None)
    if states is None:
        return next((each.numel() for each in tensors if each.dim() == 2), 1)
    channels = {each.in_channels for each in module.modules() if isinstance(each, nn.Conv2d)}
    width = states.shape[1] if states.dim() == 4 and states.shape[1] in channels else states.shape[-1]
    return max(1, states.numel() // max(1, width))


def _try(
    scope: Scope, arguments: Arguments, site: Site, autocast_dtype: torch.dtype | None, replays: Replays | None
) -> tuple[Tensor, _Observer]:
    observer = _Observer()
    hooks = torch.autograd.graph.saved_tensors_hooks(observer.saves.note, lambda tensor: tensor)
    with (
        site.kind.observed(site, observer.note),
        undisturbed(scope.module, scope.device),
        autocast(scope, autocast_dtype),
        hooks,
    ):
        if replays is not None:
            replays.watch(scope.module)
        return scope.run(arguments), observer


class _Observer:
    """Observes the calls of a site.

    Attributes:
        inputs: storages of what its calls got.
        results: of its calls.
        is_hidden: whether what is saved for the backward pass cannot be seen from outside, since it runs without
            gradients, or the module has set hooks of its own that take what is saved. Checkpointing does one of these.
    """

    def __init__(self) -> None:
        self.inputs: set[int] = set()
        self.results: list[Tensor] = []
        self.is_hidden = False
        self.saves = _Saves()

    def note(self, input: Tensor, result: Tensor) -> None:
        self.inputs.add(input.untyped_storage()._cdata)
        self.results.append(result)
        before = self.saves.count
        torch.ones((), device="cpu", requires_grad=True).exp()
        self.is_hidden |= self.saves.count == before

    def gets_any(self, arguments: Arguments) -> bool:
        """Whether the site gets an argument of the module that is run, or a view of one."""
        return any(tensor.untyped_storage()._cdata in self.inputs for tensor in arguments.tensors)


class _Saves:
    """Counts what is saved for backward. Apart from the results, whose graph refers to it, so that they are freed."""

    def __init__(self) -> None:
        self.count = 0

    def note(self, tensor: Tensor) -> Tensor:
        self.count += 1
        return tensor.detach()  # otherwise one that saves its own result would keep itself alive


def _uses(output: Tensor, result: Tensor) -> bool:
    """Whether the output is more than the site's result, a view or a product of it: then its consumer has run."""
    function = output.grad_fn
    if function is None or output.untyped_storage()._cdata == result.untyped_storage()._cdata:
        return False
    is_product = type(function).__name__ == "MulBackward0"
    return not (is_product and any(before is result.grad_fn for before, _ in function.next_functions))


def _coarsest(scope: Scope, *dtypes: torch.dtype, autocast_dtype: torch.dtype | None) -> torch.dtype:
    """The least precise of these dtypes and of what the scope computes in."""
    found = {scope.dtype, *dtypes}
    kind = scope.device.type
    if autocast_dtype is not None:
        found.add(autocast_dtype)
    elif torch.is_autocast_enabled(kind):
        found.add(torch.get_autocast_dtype(kind))
    # In those of one byte weights are only stored.
    half_or_more = [dtype for dtype in found if dtype.is_floating_point and dtype.itemsize > 1]
    return max(half_or_more, key=lambda dtype: torch.finfo(dtype).eps)
