"""The mathematics: which activations can be inverted, and the fitted formulas for their derivatives."""

from .catalogue import CURVES, GELU, GELU_TANH, QUICK_GELU, SILU
from .record import Curve, Fit, MeasuredError

__all__ = ["CURVES", "GELU", "GELU_TANH", "QUICK_GELU", "SILU", "Curve", "Fit", "MeasuredError"]
