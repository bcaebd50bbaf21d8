"""Curves by key: operators take numbers, tensors and strings, so that one of their arguments names the curve."""

from __future__ import annotations

from ..curves import Curve
from ..curves.keys import BY_KEY as _CURVES
from ..curves.keys import KEYS as _KEYS


def curve_of(key: str) -> Curve:
    """The curve with this key (see `curves.Curve`).

    Raises:
        ValueError: no curve has it.
    """
    if key not in _CURVES:
        raise ValueError(
            f"no curve has the key {key!r}: operators take the key of a curve of the same process, "
            f"which are {', '.join(_KEYS.values())}"
        )
    return _CURVES[key]
