"""The peak memory of a training step."""

from .optimizers import OPTIMIZERS, make_optimizer
from .predict import CATEGORIES, MOMENTS, Peak, predict_peak

__all__ = ["CATEGORIES", "MOMENTS", "OPTIMIZERS", "Peak", "make_optimizer", "predict_peak"]
