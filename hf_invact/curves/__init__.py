"""The mathematics: which activations can be inverted, and the formulas for their derivatives."""

from .catalogue import CURVES, GELU, GELU_TANH, MISH, QUICK_GELU, SILU, add_curve, clipped_gelu
from .closed import HARDSWISH, LAPLACE, RELU2, RELU6, SQRTSOFTPLUS, elu, leaky_relu, selu, softplus
from .custom import fit_curve
from .record import ClosedForm, Curve, Fit, Formula, Ratio
from .shape import UnsuitableActivation
from .xielu import XIELU

__all__ = [
    "CURVES",
    "GELU",
    "GELU_TANH",
    "HARDSWISH",
    "LAPLACE",
    "MISH",
    "QUICK_GELU",
    "RELU2",
    "RELU6",
    "SILU",
    "SQRTSOFTPLUS",
    "XIELU",
    "ClosedForm",
    "Curve",
    "Fit",
    "Formula",
    "Ratio",
    "UnsuitableActivation",
    "add_curve",
    "clipped_gelu",
    "elu",
    "fit_curve",
    "leaky_relu",
    "selu",
    "softplus",
]
