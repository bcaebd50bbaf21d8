"""The keys of curves: strings that name them in this process."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .record import Curve

KEYS: dict[Curve, str] = {}
BY_KEY: dict[str, Curve] = {}
_LOCK = Lock()


def new_key(curve: Curve) -> str:
    """The curve's name where no other curve has taken it, else with a number. Equal records have one key."""
    with _LOCK:
        key = KEYS.get(curve)
        if key is None:
            # Curves of one name differ in their parameters, as softplus(1) and softplus(2) do.
            others = sum(other.name == curve.name for other in KEYS)
            key = f"{curve.name}#{others + 1}" if others else curve.name
            KEYS[curve], BY_KEY[key] = key, curve
        return key
