"""The operations on tensors: packing, backends, and the operators."""

from .activation import SAVINGS, Saving, gate, invert
from .backends import AUTO, BACKENDS, check_backend, check_device
from .eager.unmultiply import tells_output
from .inputs import wants_gradient
from .learned import SMALLEST_SLOPE, invert_prelu, invert_xielu, prelu_is_invertible
from .operators import activation_derivatives as activation_derivatives  # registers the derivatives

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
