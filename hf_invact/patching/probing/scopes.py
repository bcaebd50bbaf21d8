"""Finds what can be run by itself and holds both a site and what consumes its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from ...sites import Site
from ..errors import NoProbeError
from .probe import Scope
from .runs import Runs
from .surroundings import Surrounding


def find_scope(
    site: Site, around: Sequence[Surrounding], runs: Runs, *, makes_input: bool = True
) -> tuple[Scope, nn.Module]:
    """The smallest module around a site that can be run by itself, makes the site's input and uses its result.

    A module that is given the site's input is taken only if no module around it can be run: whether anything else saves
    that input cannot be seen in it.

    Args:
        site: what is not patched.
        around: what to try: the `surroundings` of the site's holder.
        runs: what their runs show.
        makes_input: whether it has to make the site's input.

    Returns:
        What to run, and the outermost module that was tried.

    Raises:
        NoProbeError: there is none, or its weights are sharded or missing.
        PatchingError: what a run has changed could not be put back.
    """
    failures: list[str] = []
    second_best: Scope | None = None
    done = 0  # the innermost level that is ruled out
    for each in around:
        if each.level <= done:
            continue
        for scope, shown in runs.of(each, site):
            who = type(scope.module).__name__
            if isinstance(shown, str):
                failures.append(shown)
                continue
            if not shown.is_called:
                failures.insert(0, f"{who} does not call it")
                if each.module is not each.wrapped:
                    done = each.level  # it calls something else instead of what it wraps
                continue
            if shown.is_hidden:
                raise NoProbeError(
                    f"{who} runs it without gradients, or checkpoints or offloads in a way that cannot be turned off"
                )
            if shown.is_used:
                scope = replace(scope, precision=shown.precision)
                if not (makes_input and shown.is_given):
                    return scope, each.module
                second_best = second_best or scope
                break
            failures.insert(0, f"what uses the result of {who} cannot be run by itself")
            break
    if second_best is not None:
        return second_best, around[-1].module
    failures.append("the size of its hidden states is not known")
    if runs.known.failure and not any(runs.known.of(each.module) for each in around):
        failures[0] = f"{failures[0]}; {runs.known.failure}"
    raise NoProbeError(failures[0])
