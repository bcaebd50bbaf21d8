"""Predicts what training keeps in memory, without weights and without a GPU."""

from .count import plan_memory
from .errors import PlanningError
from .lora import Lora
from .records import MemoryPlan

__all__ = ["Lora", "MemoryPlan", "PlanningError", "plan_memory"]
