"""Norms that keep their output, or their input and no copies of it: found, told apart, patched and restored."""

from .kind import Norms

__all__ = ["Norms"]
