"""Curves by key: operators take numbers, tensors and strings, so that one of their arguments names the curve."""

from __future__ import annotations

import torch

from ..curves import CURVES, Curve

_KEYS: dict[Curve, str] = {}
_CURVES: dict[str, Curve] = {}
# By identity, which compilers understand of any object; the objects are held so that no other gets their number.
_KNOWN: dict[int, tuple[str, Curve]] = {}


def key_of(curve: Curve) -> str:
    """The curve's name where no other curve has taken it, else with a number. Equal records have one key."""
    if id(curve) in _KNOWN:
        return _KNOWN[id(curve)][0]
    key: str = _intern(curve)
    if not torch.compiler.is_compiling():  # a graph would depend on its not being known
        _KNOWN[id(curve)] = key, curve
    return key


@torch.compiler.assume_constant_result
def _intern(curve: Curve) -> str:
    key = _KEYS.get(curve)
    if key is None:
        # Curves of one name differ in their parameters, as softplus(1) and softplus(2) do.
        others = sum(other.name == curve.name for other in _KEYS)
        key = f"{curve.name}#{others + 1}" if others else curve.name
        _KEYS[curve], _CURVES[key] = key, curve
    return key


def curve_of(key: str) -> Curve:
    """The curve that `key_of` gave this key.

    Raises:
        ValueError: no curve has it.
    """
    if key not in _CURVES:
        raise ValueError(f"no curve has the key {key!r}: operators take a key that `key_of` gave in the same process")
    return _CURVES[key]


for _curve in CURVES.values():
    key_of(_curve)
