"""Predicts what training keeps in memory, without weights and without a GPU."""

from .count import plan_memory
from .errors import PlanningError
from .lora import Lora
from .peak import CATEGORIES, MOMENTS, OPTIMIZERS, Peak, predict_peak
from .records import MemoryPlan, as_json
from .text import render

__all__ = [
    "CATEGORIES",
    "MOMENTS",
    "OPTIMIZERS",
    "Lora",
    "MemoryPlan",
    "Peak",
    "PlanningError",
    "as_json",
    "plan_memory",
    "predict_peak",
    "render",
]
