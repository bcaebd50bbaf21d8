"""Runs modules around sites, and tells what that has shown of each site."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...sites import Site
from ...sites.errors import PatchingError
from ..isolation.undisturbed import undisturbed
from ..weights.sharding import require_whole
from .guesses import guessed_calls
from .known import KnownCalls
from .probe import Scope, autocast, reason
from .recording import Arguments, Call, Replays
from .signature import Signature, signature
from .surroundings import Surrounding


@dataclass(frozen=True)
class Shown:
    """What a run has shown of a site.

    Attributes:
        is_called: the site.
        is_hidden: what is saved for the backward pass cannot be seen from outside, since the site runs without
            gradients, or the module has set hooks of its own that take what is saved. Checkpointing does one of these.
        is_used: its result, by something else in the module.
        is_given: its input, to the module.
        precision: the least precise dtype that the site, or what follows it, computes in.
    """

    is_called: bool
    is_hidden: bool = False
    is_used: bool = False
    is_given: bool = False
    precision: torch.dtype | None = None


class Runs:
    """Runs modules of a model, alike ones once.

    Args:
        model: the whole model.
        known: how it calls its modules. What it does not call is called with hidden states of a likely width.
        autocast_dtype: as for `measure`.
        together: sites that one run may observe at once: so a model whose layers end with a norm, which each is used
            in the next layer, is not run for each of them.
        in_part: whether layers that hold no site may be answered for by others (see `Replays`).
    """

    def __init__(
        self,
        model: nn.Module,
        known: KnownCalls,
        autocast_dtype: torch.dtype | None = None,
        together: Iterable[Site] = (),
        *,
        in_part: bool = False,
    ) -> None:
        self.known = known
        self._model, self._autocast_dtype, self._in_part = model, autocast_dtype, in_part
        self._together = dict.fromkeys(together)
        self._shown: dict[Hashable, dict[str, Shown] | str] = {}
        self._numbers: dict[Signature, int] = {}
        self._kinds: dict[nn.Module, int] = {}

    def kind_of(self, module: nn.Module) -> int:
        """A number that is equal for alike modules."""
        if module not in self._kinds:
            found = () if module is self._model else signature(module)
            self._kinds[module] = self._numbers.setdefault(found, len(self._numbers))
        return self._kinds[module]

    def of(self, around: Surrounding, site: Site) -> Iterator[tuple[Scope, Shown | str]]:
        """Every way to run a module around a site, and what it shows of the site, or why it fails.

        Raises:
            NoProbeError: the module's weights are sharded or missing.
            PatchingError: what a run has changed could not be put back.
        """
        kind = self.kind_of(around.module), self.kind_of(around.wrapped)
        outer = _prefix(around, site)
        for attempt, scope in enumerate(_attempts(self._model, around, self.known)):
            shown = self._shown.setdefault((kind, attempt), {})
            inner = site.name.removeprefix(outer)
            if not isinstance(shown, str) and inner not in shown:
                inside = [each for each in self._together if each is not site and each.name.startswith(outer)]
                found = self._run(scope, [site, *inside])
                if isinstance(found, str):
                    self._shown[kind, attempt] = shown = found
                else:
                    shown |= {each.name.removeprefix(outer): of_site for each, of_site in found.items()}
            yield scope, shown if isinstance(shown, str) else shown[inner]

    def done(self, site: Site) -> None:
        """Nothing more is asked about a site."""
        self._together.pop(site, None)

    def _run(self, scope: Scope, sites: list[Site]) -> dict[Site, Shown] | str:
        saves = _Saves()
        observers = {site: _Observer(saves) for site in sites}
        arguments = scope.few.arguments()
        try:
            with ExitStack() as stack:
                for site, observer in observers.items():
                    stack.enter_context(site.kind.observed(site, observer.note))
                stack.enter_context(undisturbed(scope.module, scope.device))
                stack.enter_context(autocast(scope, self._autocast_dtype))
                stack.enter_context(torch.autograd.graph.saved_tensors_hooks(saves.note, lambda tensor: tensor))
                if self._in_part:
                    Replays(self.known.kinds, run=[site.holder for site in sites]).watch(scope.module)
                output = scope.run(arguments)
        except PatchingError:
            raise
        except Exception as error:  # whatever a foreign forward raises: reported as the reason
            return reason(scope.module, error)
        return {site: self._shown_by(observer, scope, arguments, output) for site, observer in observers.items()}

    def _shown_by(self, observer: _Observer, scope: Scope, arguments: Arguments, output: Tensor) -> Shown:
        if not observer.results:
            return Shown(is_called=False)
        result = observer.results[-1]
        dtypes = (*(weight.dtype for weight in scope.module.parameters()), output.dtype, result.dtype)
        return Shown(
            is_called=True,
            is_hidden=observer.is_hidden,
            is_used=_uses(output, result),
            is_given=observer.gets_any(arguments),
            precision=_coarsest(scope, *dtypes, autocast_dtype=self._autocast_dtype),
        )


def _prefix(around: Surrounding, site: Site) -> str:
    """What the names of sites in a module begin with."""
    if not around.path:
        return f"{site.holder_name}." if site.holder_name else ""
    return site.holder_name.removesuffix(around.path)


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


class _Observer:
    """Observes the calls of a site.

    Attributes:
        results: of its calls.
        is_hidden: as in `Shown`.
    """

    def __init__(self, saves: _Saves) -> None:
        self.results: list[Tensor] = []
        self.is_hidden = False
        self._inputs: set[int] = set()  # storages of what its calls got
        self._saves = saves

    def note(self, input: Tensor, result: Tensor) -> None:
        self._inputs.add(input.untyped_storage()._cdata)
        self.results.append(result)
        before = self._saves.count
        torch.ones((), device="cpu", requires_grad=True).exp()
        self.is_hidden |= self._saves.count == before

    def gets_any(self, arguments: Arguments) -> bool:
        """Whether the site gets an argument of the module that is run, or a view of one."""
        return any(tensor.untyped_storage()._cdata in self._inputs for tensor in arguments.tensors)


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
