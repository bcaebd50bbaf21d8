"""The operations on tensors: packing, backends, and the autograd function."""

from .activation import SAVINGS, Saving, gate, invert
from .backends import AUTO, BACKENDS, check_backend

__all__ = ["AUTO", "BACKENDS", "SAVINGS", "Saving", "check_backend", "gate", "invert"]
