"""Predicts what training needs, without weights and without a GPU."""

from .peak import CATEGORIES, MOMENTS, OPTIMIZERS, Peak, predict_peak

__all__ = ["CATEGORIES", "MOMENTS", "OPTIMIZERS", "Peak", "predict_peak"]
