"""Predicts what training keeps in memory, without weights and without a GPU."""

from ..display.sizes import parse_size
from .count import plan_memory, plan_of
from .dry_run import DryRun, dry_run
from .errors import PlanningError
from .fit import Largest, MemoryFit, VariantFit, fit_memory, fit_of
from .lora import Lora
from .peak import CATEGORIES, MOMENTS, OPTIMIZERS, Peak, predict_peak
from .plot import check_plot, save_plot
from .records import MemoryPlan, as_json
from .setup import Setup
from .text import render
from .text_variants import render_comparison, render_fit
from .variants import Comparison, VariantMemory, compare_memory, comparison_of

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
