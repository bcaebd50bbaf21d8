"""The stages, the most important first. A new one is a module with `cases`, and a line here.

Nothing here imports PyTorch: the process that watches over the stages stays clear of what may crash.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A group of cases that is measured in a process of its own.

    Attributes:
        name: as the command line and the results call it.
        title: for people.
        module: has ``cases(kind)``, which lists the `Case`s for a "cuda" or a "cpu" device.
        share: of the time, relative to the other stages.
    """

    name: str
    title: str
    module: str
    share: float


_MEASURES = "experiments.device.measures"

STAGES = (
    Stage("smoke", "every backend runs and agrees with float64", f"{_MEASURES}.smoke", 3.0),
    Stage("steps", "whole training steps: memory, time and loss", f"{_MEASURES}.steps", 4.0),
    Stage("budget", "memory budgets: predicted and measured peaks", f"{_MEASURES}.budget", 1.0),
    Stage("counted", "what the reproduction counts, measured", f"{_MEASURES}.counted", 2.0),
    Stage("operators", "operators: time and bandwidth", f"{_MEASURES}.operators", 1.5),
    Stage("tests", "the tests marked gpu", f"{_MEASURES}.gpu_tests", 1.5),
)
