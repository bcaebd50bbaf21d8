"""What training keeps in memory: saved activations, exactly, and the peak of the CUDA devices."""

from .meter import SavedActivations, SavedStorage
from .parts import PARTS, by_part, intermediate_units
from .peak import peak_bytes, reset_peak

__all__ = ["PARTS", "SavedActivations", "SavedStorage", "by_part", "intermediate_units", "peak_bytes", "reset_peak"]
