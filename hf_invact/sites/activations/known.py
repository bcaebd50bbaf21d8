"""Lists the activations that can be inverted."""

from __future__ import annotations

from ...curves import CURVES, ClosedForm, Curve
from .recognize import learned_activations

_GROUPS = {
    (False, True): "fitted formula, one bit per element",
    (False, False): "fitted formula, no bit",
    (True, True): "exact formula, one bit per element",
    (True, False): "exact formula, no bit",
}
_LEARNED = "with learned parameters"


def known_activations() -> dict[str, list[str]]:
    """Names by how they are inverted."""
    groups: dict[str, list[str]] = {group: [] for group in _GROUPS.values()}
    for curve in CURVES.values():
        groups[_group(curve)].append(curve.name)
    groups[_LEARNED] = list(learned_activations())
    return {group: names for group, names in groups.items() if names}


def _group(curve: Curve) -> str:
    return _GROUPS[isinstance(curve.inverse, ClosedForm), curve.x_min is not None]
