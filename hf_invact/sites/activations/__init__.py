"""Activations that keep their output instead of their input: found, told apart, patched and restored."""

from .kind import Activations, ActivationSite

__all__ = ["ActivationSite", "Activations"]
