"""Predicts what training keeps in memory, without weights and without a GPU."""

from ..display.sizes import parse_size
from .compare import Comparison, VariantMemory, compare_memory, comparison_of
from .dry_run import DryRun, dry_run
from .errors import PlanningError
from .fit import Largest, MemoryFit, VariantFit, fit_memory, fit_of
from .model.lora import Lora
from .model.setup import Setup
from .peak import CATEGORIES, MOMENTS, OPTIMIZERS, Peak, predict_peak
from .plan import MemoryPlan, plan_memory, plan_of
from .plot import check_plot, save_plot
from .text import as_json, render, render_comparison, render_fit

__all__ = [
    "CATEGORIES",
    "MOMENTS",
    "OPTIMIZERS",
    "Comparison",
    "DryRun",
    "Largest",
    "Lora",
    "MemoryFit",
    "MemoryPlan",
    "Peak",
    "PlanningError",
    "Setup",
    "VariantFit",
    "VariantMemory",
    "as_json",
    "check_plot",
    "compare_memory",
    "comparison_of",
    "dry_run",
    "fit_memory",
    "fit_of",
    "parse_size",
    "plan_memory",
    "plan_of",
    "predict_peak",
    "render",
    "render_comparison",
    "render_fit",
    "save_plot",
]
