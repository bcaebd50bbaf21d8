"""How norms are computed: the forms of PyTorch and Transformers, and which of them a module has."""

from .forms import FORMS, LAYER_NORM, LLAMA, RMS_NORM, form_by_name
from .recognize import Recognized, UnsuitableNorm, recognize
from .record import NormForm

__all__ = [
    "FORMS",
    "LAYER_NORM",
    "LLAMA",
    "RMS_NORM",
    "NormForm",
    "Recognized",
    "UnsuitableNorm",
    "form_by_name",
    "recognize",
]
