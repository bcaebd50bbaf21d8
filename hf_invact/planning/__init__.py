"""Predicts the memory of training, without weights and without a GPU."""

from ..display.sizes import parse_size
from .budget.choose import BudgetPlan, budget_from_run, plan_budget
from .budget.text import render_budget
from .compare import Comparison, VariantMemory, compare_memory, comparison_from_run
from .dry_run import DryRun, dry_run
from .errors import PlanningError
from .fit import Largest, MemoryFit, VariantFit, fit_from_run, fit_memory
from .model.lora import Lora
from .model.setup import Setup
from .peak import CATEGORIES, MOMENTS, OPTIMIZERS, Peak, make_optimizer, predict_peak
from .plan import MemoryPlan, plan_from_run, plan_memory
from .plot import check_plot, save_plot
from .text import as_json, render, render_comparison, render_fit

__all__ = [
    "CATEGORIES",
    "MOMENTS",
    "OPTIMIZERS",
    "BudgetPlan",
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
    "budget_from_run",
    "check_plot",
    "compare_memory",
    "comparison_from_run",
    "dry_run",
    "fit_from_run",
    "fit_memory",
    "make_optimizer",
    "parse_size",
    "plan_budget",
    "plan_from_run",
    "plan_memory",
    "predict_peak",
    "render",
    "render_budget",
    "render_comparison",
    "render_fit",
    "save_plot",
]
