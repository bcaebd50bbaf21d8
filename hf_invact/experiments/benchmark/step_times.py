"""Measures the training steps of one model, in every variant, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from ...memory import SavedActivations
from .implementations import Unavailable
from .models import ModelCase, build_model, make_batch
from .settings import DTYPES, Settings
from .timing import Failure, failure_of, free_memory, significant, synchronize
from .variants import PLAIN, Variant, variants_of

LEAST_ROUNDS = 3


class Training:
    """Whole training steps on one batch: forward, backward, AdamW.

    Its learning rate is 0: every step, and so every variant's first one, begins with the same weights. Dropout draws
    the same numbers in each.
    """

    def __init__(self, case: ModelCase, settings: Settings, device: torch.device) -> None:
        self.device, self.seed = device, settings.seed
        self.model = build_model(case, DTYPES[case.dtype], device, settings.seed)
        self.batch = make_batch(case, self.model.config.vocab_size, device, settings.seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, fused=True)

    def step(self) -> float:
        """Take one; the seconds that it took."""
        torch.manual_seed(self.seed)
        synchronize(self.device)
        began = time.perf_counter()
        self.model(**self.batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        synchronize(self.device)
        return time.perf_counter() - began

    def meter(self) -> dict[str, Any]:
        """The first loss, and the bytes kept for the backward pass."""
        torch.manual_seed(self.seed)
        with SavedActivations(self.model, self.batch.values()) as saved:
            loss = self.model(**self.batch).loss
        return {"first_loss": loss.item(), "kept_bytes": saved.total_bytes}

    def peak(self) -> dict[str, int]:
        """The peak of a step's memory, with the weights and the optimizer's state; nothing on a CPU."""
        if self.device.type != "cuda":
            return {}
        torch.cuda.reset_peak_memory_stats(self.device)
        self.step()
        return {"peak_bytes": torch.cuda.max_memory_allocated(self.device)}


def measure_steps(case: ModelCase, settings: Settings, device: torch.device, deadline: float) -> dict[str, Any]:
    """The entry of the results.

    Args:
        deadline: of `time.monotonic`; after it no round begins, but for the first few.
    """
    training = Training(case, settings, device)
    variants = variants_of(case.architecture, settings.step_backends)
    facts: dict[str, dict[str, Any]] = {}
    for name, variant in variants.items():
        found, failure = _attempt(training, variant, _prepare)
        facts[name] = found if failure is None else failure.record()
    running = {name: variant for name, variant in variants.items() if "first_loss" in facts[name]}
    rounds: list[dict[str, float]] = []
    while len(rounds) < settings.rounds and (len(rounds) < LEAST_ROUNDS or time.monotonic() < deadline):
        seconds: dict[str, float] = {}
        # There and back, so that none always follows the same one.
        for name in list(running) if len(rounds) % 2 == 0 else [*reversed(running)]:
            seconds[name], failure = _attempt(training, running[name], Training.step)
            if failure is not None:
                facts[name] = failure.record()
                del running[name]
        rounds.append(seconds)
    for name in running:
        facts[name] |= _figures(name, rounds)
    weights = sum(parameter.numel() for parameter in training.model.parameters())
    return {
        **case.key,
        "title": case.title,
        "architecture": case.architecture,
        "config": case.config,
        "parameters": weights,
        "sequences": case.sequences,
        "tokens": case.tokens,
        "dtype": case.dtype,
        "attention": "sdpa",
        "rounds": len(rounds),
        "variants": facts,
    }


def _prepare(training: Training) -> dict[str, Any]:
    facts = training.meter()
    training.step()  # the first one compiles, and makes the optimizer's state
    return facts | training.peak()


def _attempt(training: Training, variant: Variant, act: Callable[[Training], Any]) -> tuple[Any, Failure | None]:
    """What it gives in this variant, or why it cannot."""
    failure = None
    try:
        with variant(training.model):
            return act(training), None
    except Unavailable as error:
        failure = Failure(str(error), expected=True)
    except Exception as error:  # of whatever kind: it must not cost the numbers of the others
        failure = failure_of(error)
    training.optimizer.zero_grad()
    free_memory(training.device)
    return None, failure


def _figures(name: str, rounds: list[dict[str, float]]) -> dict[str, Any]:
    figures: dict[str, Any] = {"step_ms": significant(1000 * statistics.median(seconds[name] for seconds in rounds))}
    ratios = sorted(seconds[name] / seconds[PLAIN] for seconds in rounds if seconds.get(PLAIN))
    if name != PLAIN and ratios:
        spread = {"median": statistics.median(ratios), "low": ratios[0], "high": ratios[-1]}
        figures["ratio"] = {key: significant(ratio) for key, ratio in spread.items()}
    return figures
