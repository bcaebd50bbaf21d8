"""The operations on tensors: packing, backends, and the autograd function."""

from .activation import invert
from .backends import AUTO, BACKENDS, check_backend

__all__ = ["AUTO", "BACKENDS", "check_backend", "invert"]
