"""The operations on tensors: packing, backends, and the operators."""

from . import autograd as autograd  # registers the derivatives
from .activation import SAVINGS, Saving, gate, invert
from .backends import AUTO, BACKENDS, check_backend, check_device
from .learned import SMALLEST_SLOPE, invert_prelu, invert_xielu, prelu_is_invertible
from .quotient import tells_output
from .wanted import wants_gradient

__all__ = [
    "AUTO",
    "BACKENDS",
    "SAVINGS",
    "SMALLEST_SLOPE",
    "Saving",
    "check_backend",
    "check_device",
    "gate",
    "invert",
    "invert_prelu",
    "invert_xielu",
    "prelu_is_invertible",
    "tells_output",
    "wants_gradient",
]
