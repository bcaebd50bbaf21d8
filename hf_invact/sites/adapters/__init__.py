"""Adapters of PEFT: what they keep of the input of their layer."""

from .kind import AdapterInputs

__all__ = ["AdapterInputs"]
