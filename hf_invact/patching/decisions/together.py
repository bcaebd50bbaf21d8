"""Decides together for sites that keep the same tensors, of which one alone may save nothing."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ...memory.storages import storages
from ...sites import NotApplicable, Plan, Site
from ..errors import NoProbeError
from ..isolation.undisturbed import undisturbed
from ..probing.compare import difference
from ..probing.probe import Measurement, Scope, autocast, kept_per_token, measure, rounded_gradients
from .groups import decide_by_group
from .planner import Decision, Planner


def decide_together(
    planner: Planner, sites: Sequence[Site], fallbacks: Mapping[Site, Plan | None]
) -> dict[Site, Decision]:
    """Decisions for the sites of one kind in a model, none of which is patched.

    Sites that are measured in the same module, and get the same tensor there, are all patched or all left alone. Their
    decisions say what is kept before and after one more of them is patched. They are also patched where that keeps as
    much, if it is then the tensor itself: what makes it can share it.
    """
    return decide_by_group(planner, sites, fallbacks, partial(_measured, planner))


def _measured(planner: Planner, scope: Scope, sites: Sequence[Site]) -> list[Decision]:
    """The decisions for sites in one module. Those that are patched stay so for those that follow."""
    decisions: dict[Site, Decision] = {}
    scope = replace(scope, counts_arguments=True)  # adapters may be the only ones that save what the scope gets
    with _suspended(sites):
        before = measure(scope, planner.config.autocast_dtype)
        got, is_kept = _run(planner, scope, sites)
        for group in _sharing(got, sites):
            of_group, before = _of_one_tensor(planner, scope, group, before, group[0] in is_kept)
            decisions |= zip(group, of_group, strict=True)
    return [planner.noted(decisions[site]) for site in sites]


@contextmanager
def _suspended(sites: Sequence[Site]) -> Iterator[None]:
    with ExitStack() as originals:
        for site in sites:
            originals.enter_context(site.kind.suspended(site))
        yield


def _of_one_tensor(
    planner: Planner, scope: Scope, sites: Sequence[Site], before: Measurement, is_kept: bool
) -> tuple[list[Decision], Measurement]:
    """The decisions for sites that get the same tensor, and what the scope does then. What is decided is installed.

    Args:
        is_kept: whether the tensor itself is kept before.
    """
    dtype, plan = planner.config.autocast_dtype, sites[0].kind.plans[0]

    def again(seed: int) -> Mapping[str, Tensor | None]:
        with _suspended(sites):
            return rounded_gradients(scope, dtype, seed)

    kept = [before.bytes_per_token]
    try:
        for site in sites[:-1]:
            site.kind.install(site, plan, "eager", strict=True)
            kept.append(kept_per_token(scope, dtype))
        sites[-1].kind.install(sites[-1], plan, "eager", strict=True)
        after = measure(scope, dtype)
        why = difference(before, after, scope.precision or scope.dtype, again)
        less = before.bytes_per_token - after.bytes_per_token
        shares = less == 0 and not is_kept and sites[0] in _run(planner, scope, sites[:1])[1]
        if less <= 0 and not shares and not planner.config.demanded(sites[0].kind):
            why = "nothing would keep less"
    except (NotApplicable, NoProbeError) as error:
        why = str(error)
    if why is None:
        kept.append(after.bytes_per_token)
        return [Decision(plan, *pair) for pair in pairwise(kept)], after
    for site in sites:
        site.kind.restore(site)
    return [Decision(None, kept[0], kept[0], f"left alone: {why}")] * len(sites), before


def _run(planner: Planner, scope: Scope, sites: Sequence[Site]) -> tuple[dict[Site, Tensor], set[Site]]:
    """The tensors that sites get when the scope is run, and for which of them that tensor itself is kept."""
    got: dict[Site, Tensor] = {}
    saved: list[Tensor] = []

    def note(site: Site, input: Tensor, result: Tensor) -> None:
        got.setdefault(site, input)

    def save(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(site.kind.observed(site, partial(note, site)))
        stack.enter_context(undisturbed(scope.module, scope.device))
        stack.enter_context(autocast(scope, planner.config.autocast_dtype))
        stack.enter_context(saved_tensors_hooks(save, lambda tensor: tensor))
        scope.run(scope.few.arguments())
    kept = storages(*saved)
    return got, {site for site, tensor in got.items() if storages(tensor).keys() <= kept.keys()}


def _sharing(got: Mapping[Site, Tensor], sites: Sequence[Site]) -> Iterator[list[Site]]:
    """The sites by the tensor that they get. Those that get none are by themselves."""
    groups: dict[Hashable, list[Site]] = {}
    for site in sites:
        key = frozenset(storages(got[site])) if site in got else site
        groups.setdefault(key, []).append(site)
    yield from groups.values()
