"""The operations on tensors: the functions that use inverted activations, their operators, and the backends."""

from .activation import SAVINGS, Saving, gate, invert
from .adapter import adapter_input
from .backends import AUTO, BACKENDS, check_backend, check_device
from .channels import count_lost
from .inputs import is_array, wants_gradient
from .learned import SMALLEST_SLOPE, invert_prelu, invert_xielu, prelu_is_invertible
from .norm import NORM_SAVINGS, NormSaving, check_norm_saving, normalize
from .operators.activation import tells_output

__all__ = [
    "AUTO",
    "BACKENDS",
    "NORM_SAVINGS",
    "SAVINGS",
    "SMALLEST_SLOPE",
    "NormSaving",
    "Saving",
    "adapter_input",
    "check_backend",
    "check_device",
    "check_norm_saving",
    "count_lost",
    "gate",
    "invert",
    "invert_prelu",
    "invert_xielu",
    "is_array",
    "normalize",
    "prelu_is_invertible",
    "tells_output",
    "wants_gradient",
]
