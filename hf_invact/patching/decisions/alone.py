"""Decides for sites that are modules: each is measured by itself, beside what the module around it keeps anyway."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ...memory.storages import storages, tensor_bytes
from ...sites import NotApplicable, Plan, Site
from ..errors import NoProbeError
from ..isolation.undisturbed import undisturbed
from ..probing.compare import difference
from ..probing.probe import Measurement, Scope, autocast, measure, rounded_gradients
from ..probing.signature import signature
from .groups import decide_by_group
from .planner import Decision, Planner
from .uses import Use, saved_by, uses_of


@dataclass(frozen=True)
class Option:
    """What can be done at a site, and the bytes per token that it then keeps in one call.

    Attributes:
        plan: None leaves the site alone.
        beside: what is neither its input nor its result.
        input, result: 0 where it is not kept.
        refused: why it cannot be done; empty where it can.
    """

    plan: Plan | None
    beside: int = 0
    input: int = 0
    result: int = 0
    refused: str = ""


def decide_alone(
    planner: Planner, sites: Sequence[Site], fallbacks: Mapping[Site, Plan | None]
) -> dict[Site, Decision]:
    """Decisions for the sites of one kind in a model, each of which is a module, and none of which is patched.

    What a site keeps does not count if the module around it keeps it anyway. Sites that get the same tensor are decided
    together: if one keeps it, it costs the others nothing.
    """
    alone = _Alone(planner)
    return decide_by_group(planner, sites, fallbacks, alone.measured)


class _Alone:
    """Measures sites. Alike ones that are called alike share what was found."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self._options: dict[Hashable, list[Option]] = {}

    def measured(self, scope: Scope, sites: Sequence[Site]) -> list[Decision]:
        """The decisions for sites in one module."""
        uses = uses_of(scope, sites, self.planner.config.autocast_dtype, self.planner.places.runs.known.kinds)
        decisions: dict[Site, Decision] = {}
        for group in _with_one_input(uses, sites):
            options = [_without_changed(self._options_of(scope, site, uses[site]), uses[site]) for site in group]
            decisions |= zip(group, _decisions(options, [uses[site] for site in group]), strict=True)
        return [self.planner.noted(decisions[site]) for site in sites]

    def _options_of(self, scope: Scope, site: Site, use: Use) -> list[Option]:
        assert site.module is not None
        key = signature(site.module), site.key, scope.tokens, use.looks
        if key not in self._options:
            self._options[key] = list(self._measure(_by_itself(scope, site, use), site))
        return self._options[key]

    def _measure(self, scope: Scope, site: Site) -> Iterator[Option]:
        """Nothing first, then the plans in their order."""
        if not scope.few.arguments().tensors:  # of a weight: what it keeps does not grow with the tokens
            yield Option(None)
            return
        config = self.planner.config
        plain = measure(scope, config.autocast_dtype)
        demanded = config.demanded(site.kind)
        options = [self._option(scope, None, plain)]
        for plan in demanded or site.kind.plans:
            try:
                with site.kind.suspended(site):
                    # What is kept does not depend on the backend, and others than this would be compiled for a probe.
                    site.kind.install(site, plan, "eager", strict=True)
                    patched = measure(scope, config.autocast_dtype)
                    option = self._option(scope, plan, patched)
                again = partial(rounded_gradients, scope, config.autocast_dtype)
                changed = difference(plain, patched, scope.precision or scope.dtype, again)
                options.append(replace(option, refused=changed or ""))
            except NotApplicable as error:
                options.append(Option(plan, refused=str(error)))
            except NoProbeError as error:
                options.append(Option(plan, refused=f"once patched, {error}"))
        if demanded and any(option.plan and not option.refused for option in options):
            options[0] = replace(options[0], refused="the config demands a plan")
        yield from options

    def _option(self, scope: Scope, plan: Plan | None, measured: Measurement) -> Option:
        """What the module keeps as it is now."""
        with undisturbed(scope.module, scope.device), autocast(scope, self.planner.config.autocast_dtype):
            arguments = scope.few.arguments()
            y, saved = saved_by(partial(scope.run, arguments))
        input, result = (_share(tensor, saved, scope) for tensor in (arguments.tensors[0], y))
        return Option(plan, measured.bytes_per_token - input - result, input, result)


def _share(tensor: Tensor, saved: Sequence[Tensor], scope: Scope) -> int:
    """Bytes per token of a tensor, if it is saved."""
    is_saved = storages(tensor).keys() <= storages(*saved).keys()
    return tensor_bytes(tensor) // scope.tokens if is_saved else 0


def _by_itself(around: Scope, site: Site, use: Use) -> Scope:
    """The scope in which a site alone is run."""
    assert site.module is not None
    dtypes = {*use.dtypes, *(weight.dtype for weight in site.module.parameters())}
    precision = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    return Scope(
        site.module, *use.calls, around.tokens, use.dtypes[0], around.device, precision=precision, counts_arguments=True
    )


def _with_one_input(uses: Mapping[Site, Use], sites: Sequence[Site]) -> Iterator[list[Site]]:
    groups: dict[Hashable, list[Site]] = {}
    for site in sites:
        groups.setdefault(uses[site].input, []).append(site)
    yield from groups.values()


def _without_changed(options: Sequence[Option], use: Use) -> list[Option]:
    """Options in which no plan keeps a tensor that the model writes to afterwards."""

    def checked(option: Option) -> Option:
        for size, is_changed, what in (
            (option.input, use.input_changes, "input"),
            (option.result, use.result_changes, "result"),
        ):
            if option.plan and size and is_changed:
                return replace(option, refused=f"its {what} is written to afterwards")
        return option

    return [checked(option) for option in options]


def _decisions(options: Sequence[Sequence[Option]], uses: Sequence[Use]) -> list[Decision]:
    """The decisions for sites that get the same tensor: the best if it is kept, or the best if it is not."""
    plain = [each[0] for each in options]
    usable = [[option for option in each if not option.refused] for each in options]
    kept = [min(each, key=partial(_bytes, use)) for each, use in zip(usable, uses, strict=True)]
    freed = [[option for option in each if not option.input] for each in usable]
    best = kept
    if all(freed):
        not_kept = [min(each, key=partial(_bytes, use)) for each, use in zip(freed, uses, strict=True)]
        best = min(kept, not_kept, key=lambda chosen: sum(_all_bytes(chosen, uses)))
    rows = zip(best, options, _all_bytes(plain, uses), _all_bytes(best, uses), strict=True)
    return [_decision(*row) for row in rows]


def _bytes(use: Use, option: Option) -> int:
    """Per token, without its input."""
    return use.times * (option.beside + (0 if use.result_is_kept else option.result))


def _all_bytes(chosen: Sequence[Option], uses: Sequence[Use]) -> list[int]:
    """Per token, for each of these sites: their input counts for the first of them that keeps it."""
    found: list[int] = []
    is_kept = uses[0].input_is_kept
    for option, use in zip(chosen, uses, strict=True):
        found.append(_bytes(use, option) + (0 if is_kept else use.times * option.input))
        is_kept = is_kept or option.input > 0
    return found


def _decision(option: Option, options: Sequence[Option], before: int, after: int) -> Decision:
    if option.plan is not None:
        return Decision(option.plan, before, after)
    refused = [each.refused for each in options if each.refused]
    return Decision(None, before, before, f"left alone: {refused[-1] if refused else 'nothing would keep less'}")
