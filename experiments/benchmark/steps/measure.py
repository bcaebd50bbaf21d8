"""Measures the training steps of one model, in every variant, in turn."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from ..operators.implementations import Unavailable
from ..settings import DTYPES, Settings
from ..timing import Failure, failure_of, free_memory, significant
from .models import ModelCase, build_model, make_batch
from .training import Training
from .variants import PLAIN, StepVariant, variants_of

LEAST_ROUNDS = 3


def measure_steps(case: ModelCase, settings: Settings, device: torch.device, deadline: float) -> dict[str, Any]:
    """Measure a model. Returns its entry of the results.

    Args:
        deadline: a value of `time.monotonic`. After it no round starts, except the first few.
    """
    model = build_model(case, DTYPES[case.dtype], device, settings.seed)
    batch = make_batch(case, model.config.vocab_size, device, settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    training = Training(model, batch, optimizer, settings.seed)
    variants = variants_of(case.architecture, settings.step_backends)
    rounds, facts = compare_variants(training, variants, settings.rounds, deadline)
    return {
        **case.key,
        "title": case.title,
        "architecture": case.architecture,
        "config": case.config,
        "parameters": model.num_parameters(),
        "sequences": case.sequences,
        "tokens": case.tokens,
        "dtype": case.dtype,
        "attention": "sdpa",
        "rounds": rounds,
        "variants": facts,
    }


def compare_variants(
    training: Training,
    variants: Mapping[str, StepVariant],
    rounds: int,
    deadline: float = math.inf,
    catch: type[Exception] | tuple[()] = Exception,
    baselines: Mapping[str, str] = MappingProxyType({}),
) -> tuple[int, dict[str, dict[str, Any]]]:
    """Take a step in each variant in turn, round after round.

    Args:
        variants: by name, including the plain one.
        rounds: the largest number of rounds.
        deadline: a value of `time.monotonic`. After it no round starts, except the first few.
        catch: exceptions that end a variant and not the others. () catches none.
        baselines: for some variants, the name of another one that they are also compared with.

    Returns:
        The number of rounds, and by name what was measured, or why nothing was.
    """
    facts: dict[str, dict[str, Any]] = {}
    running = dict(variants)

    def attempt(name: str, act: Callable[[Training], Any]) -> Any:
        """The result of `act` in this variant. A variant that fails is left out from then on."""
        try:
            with variants[name](training.model):
                return act(training)
        except Unavailable as error:
            failure = Failure(str(error), expected=True)
        except catch as error:
            failure = failure_of(error)
        facts[name] = failure.record()
        del running[name]
        training.optimizer.zero_grad()
        free_memory(training.device)
        return None

    for name in variants:
        found = attempt(name, _prepare)
        if name in running:
            facts[name] = found
    times: list[dict[str, float]] = []
    while len(times) < rounds and (len(times) < LEAST_ROUNDS or time.monotonic() < deadline):
        # Every second round is reversed, so that no variant always follows the same one.
        turn = list(running) if len(times) % 2 == 0 else [*reversed(running)]
        seconds = {name: attempt(name, Training.step) for name in turn}
        times.append({name: value for name, value in seconds.items() if value is not None})
    for name in running:
        facts[name] |= _figures(name, times)
        if (other := baselines.get(name)) in running:
            facts[name]["ratio_to"] = {other: spread(_ratios(name, other, times))}
    return len(times), facts


def _prepare(training: Training) -> dict[str, Any]:
    training.step()  # the first one compiles, and creates the optimizer's state
    return training.meter() | training.peak()


def _figures(name: str, rounds: list[dict[str, float]]) -> dict[str, Any]:
    figures: dict[str, Any] = {"step_ms": significant(1000 * statistics.median(seconds[name] for seconds in rounds))}
    if name != PLAIN and (ratios := _ratios(name, PLAIN, rounds)):
        figures["ratio"] = spread(ratios)
    return figures


def _ratios(name: str, other: str, rounds: list[dict[str, float]]) -> list[float]:
    return [seconds[name] / seconds[other] for seconds in rounds if other in seconds]


def spread(values: list[float]) -> dict[str, float]:
    """Median, quartiles, smallest and largest.

    >>> spread([1.0, 1.02, 1.01, 1.04, 1.03])
    {'median': 1.02, 'lower': 1.01, 'upper': 1.03, 'low': 1.0, 'high': 1.04}
    """
    lower, middle, upper = statistics.quantiles(values * 2 if len(values) == 1 else values, n=4, method="inclusive")
    found = {"median": middle, "lower": lower, "upper": upper, "low": min(values), "high": max(values)}
    return {key: significant(value) for key, value in found.items()}
