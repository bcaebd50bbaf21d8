"""The keys of curves: strings that stand for them in this process, where only a string can be passed."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .record import Curve

_KEYS: dict[Curve, str] = {}
_CURVES: dict[str, Curve] = {}
_LOCK = Lock()


def new_key(curve: Curve) -> str:
    """The curve's name, with a number if another curve has the name already. Equal records have the same key."""
    with _LOCK:
        key = _KEYS.get(curve)
        if key is None:
            # Curves with one name differ in their parameters, as softplus(1) and softplus(2) do.
            others = sum(other.name == curve.name for other in _KEYS)
            key = f"{curve.name}#{others + 1}" if others else curve.name
            _KEYS[curve], _CURVES[key] = key, curve
        return key


def curve_by_key(key: str) -> Curve:
    """The curve with this key (see `record.Curve`).

    Raises:
        ValueError: no curve has it.
    """
    if key not in _CURVES:
        raise ValueError(
            f"no curve has the key {key!r}: operators take the key of a curve of the same process, "
            f"which are {', '.join(_CURVES)}"
        )
    return _CURVES[key]
