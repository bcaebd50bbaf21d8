"""Measures the memory of training: activations saved for the backward pass, exactly, and the CUDA peak."""

from .meter import SavedActivations, SavedStorage
from .parts import PARTS, by_part, intermediate_units
from .peak import peak_bytes, reset_peak

__all__ = ["PARTS", "SavedActivations", "SavedStorage", "by_part", "intermediate_units", "peak_bytes", "reset_peak"]
