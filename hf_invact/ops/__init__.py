"""The operations on tensors: packing, backends, and the autograd functions."""

from .activation import invert
from .backends import AUTO, BACKENDS, check_backend
from .learned import SMALLEST_SLOPE, invert_prelu, invert_xielu, prelu_is_invertible

__all__ = [
    "AUTO",
    "BACKENDS",
    "SMALLEST_SLOPE",
    "check_backend",
    "invert",
    "invert_prelu",
    "invert_xielu",
    "prelu_is_invertible",
]
