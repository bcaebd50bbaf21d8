"""Finds what can be run by itself and holds both an activation and what consumes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...sites import Site
from ...sites.errors import PatchingError
from ..errors import NoProbeError
from ..isolation.undisturbed import undisturbed
from ..weights.sharding import require_whole
from .probe import TOKENS, Scope, autocast, reason
from .surroundings import Surrounding, surroundings

WIDTHS = 4
WITHOUT_ATTENTION = ("feed_forward_chunk", "ff_chunk")  # methods of the layers of BERT, of Longformer, and their kin


def find_scope(
    model: nn.Module,
    site: Site,
    autocast_dtype: torch.dtype | None = None,
    around: list[Surrounding] | None = None,
) -> Scope:
    """The smallest module around a site that runs on hidden states alone and uses the site's result.

    Args:
        model: the whole model, for its width.
        site: what is not patched.
        autocast_dtype: as for `measure`.
        around: what to try; None for the `surroundings` of the site's holder.

    Raises:
        NoProbeError: there is none, or its weights are sharded or missing.
        PatchingError: what a run has changed could not be put back.
    """
    failures: list[str] = []
    done = 0  # the level that is settled
    for each in surroundings(model, site.holder_name) if around is None else around:
        if each.level <= done:
            continue
        for scope in _attempts(model, each):
            try:
                output, witness = _try(scope, site, autocast_dtype)
            except PatchingError:
                raise
            except Exception as error:  # whatever a foreign forward raises: reported as the reason
                failures.append(reason(scope.module, error))
                continue
            if not witness.results:
                failures.insert(0, f"{type(scope.module).__name__} does not call it")
                if each.module is not each.wrapped:
                    done = each.level  # it calls something else in the place of what it wraps
                continue
            if witness.is_hidden:
                who = type(scope.module).__name__
                raise NoProbeError(
                    f"{who} runs it without gradients, or checkpoints or offloads in a way that cannot be turned off"
                )
            if _uses(output, witness.results[-1]):
                return replace(
                    scope, precision=_coarsest(scope, witness.results[-1], output, autocast_dtype=autocast_dtype)
                )
            failures.insert(0, f"what uses the result of {type(scope.module).__name__} cannot be run by itself")
            break
    raise NoProbeError(failures[0] if failures else "the size of its hidden states is not known")


def _attempts(model: nn.Module, around: Surrounding) -> Iterator[Scope]:
    module = around.module
    weights = [weight for weight in module.parameters() if weight.is_floating_point()]
    weights = weights or [weight for weight in model.parameters() if weight.is_floating_point()]
    if not weights:
        return
    require_whole(model, module)
    dtype, device = weights[0].dtype, weights[0].device
    for width in _widths(model, module):
        for name in WITHOUT_ATTENTION:
            if hasattr(module, name):
                yield Scope(module, width, dtype, device, name)
        yield Scope(module, width, dtype, device, wrapped=around.wrapped)
        yield Scope(module, width, dtype, device, wrapped=around.wrapped, has_mask=True)
    for width in dict.fromkeys(each.in_channels for each in module.modules() if isinstance(each, nn.Conv2d)):
        yield Scope(module, width, dtype, device, wrapped=around.wrapped, is_image=True)


def _widths(model: nn.Module, module: nn.Module) -> list[int]:
    """Candidates for the size of hidden states."""
    config = getattr(model, "config", None)
    found = [getattr(config, "hidden_size", None)]
    for each in module.modules():
        found += [getattr(each, "in_features", None), getattr(each, "nx", None)]
    return list(dict.fromkeys(width for width in found if isinstance(width, int)))[:WIDTHS]


def _try(scope: Scope, site: Site, autocast_dtype: torch.dtype | None) -> tuple[Tensor, _Witness]:
    witness = _Witness()
    hooks = torch.autograd.graph.saved_tensors_hooks(witness.saves.note, lambda tensor: tensor)
    with (
        site.kind.observed(site, witness.note),
        undisturbed(scope.module, scope.device),
        autocast(scope, autocast_dtype),
        hooks,
    ):
        return scope.run(scope.hidden_states(TOKENS)), witness


class _Witness:
    """Sees how a site is called.

    Attributes:
        results: of its calls.
        is_hidden: whether what is saved for the backward pass cannot be seen from outside, since it runs without
            gradients, or the module has set hooks of its own that take what is saved. Checkpointing does one of these.
    """

    def __init__(self) -> None:
        self.results: list[Tensor] = []
        self.is_hidden = False
        self.saves = _Saves()

    def note(self, result: Tensor) -> None:
        self.results.append(result)
        before = self.saves.count
        torch.ones((), device="cpu", requires_grad=True).exp()
        self.is_hidden |= self.saves.count == before


class _Saves:
    """Counts what is saved for the backward pass. Apart from the results, whose graph holds it: they would never go."""

    def __init__(self) -> None:
        self.count = 0

    def note(self, tensor: Tensor) -> Tensor:
        self.count += 1
        return tensor.detach()  # else one that saves its own result would hold itself


def _uses(output: Tensor, result: Tensor) -> bool:
    """Whether more is returned than the activation's result, a view or a product of it: else it is used elsewhere."""
    function = output.grad_fn
    if function is None or output.untyped_storage()._cdata == result.untyped_storage()._cdata:
        return False
    is_product = type(function).__name__ == "MulBackward0"
    return not (is_product and any(before is result.grad_fn for before, _ in function.next_functions))


def _coarsest(scope: Scope, *tensors: Tensor, autocast_dtype: torch.dtype | None) -> torch.dtype:
    """The least precise dtype that an activation, or what follows it, computes in."""
    dtypes = {scope.dtype, *(tensor.dtype for tensor in (*tensors, *scope.module.parameters()))}
    kind = scope.device.type
    if autocast_dtype is not None:
        dtypes.add(autocast_dtype)
    elif torch.is_autocast_enabled(kind):
        dtypes.add(torch.get_autocast_dtype(kind))
    # In those of one byte weights are only stored.
    half_or_more = [dtype for dtype in dtypes if dtype.is_floating_point and dtype.itemsize > 1]
    return max(half_or_more, key=lambda dtype: torch.finfo(dtype).eps)
