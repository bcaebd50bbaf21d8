"""Runs the command ``hf-invact plan``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ..display.sizes import parse_size
from .budget.choose import budget_from_run
from .compare import comparison_from_run
from .dry_run import DryRun, dry_run, no_progress
from .fit import fit_from_run
from .model.lora import parse_lora
from .model.setup import Setup
from .plan import plan_from_run
from .plot import check_plot, save_plot
from .text import as_json


def run(options: argparse.Namespace) -> int:
    """Print the plan, and the comparison and the fit if they are asked for.

    Args:
        options: from the parser of `hf_invact.cli`; texts are not parsed yet.

    Raises:
        ValueError: an invalid argument.
        OSError: the figure cannot be written.
    """
    if options.plot is not None:
        check_plot(options.plot)
    lora = None if options.lora is None else _read("--lora", parse_lora, options.lora)
    budget, fit = (
        None if text is None else _read(option, parse_size, text)
        for option, text in (("--budget", options.budget), ("--fit", options.fit))
    )
    setup = Setup(
        options.model,
        dtype=options.dtype,
        autocast=options.autocast,
        lora=lora,
        attention=options.attn,
        quantize=options.quantize,
        padded=options.padded,
    )
    printed: dict[str, Any] = {}
    progress = _show_progress if sys.stderr.isatty() else no_progress
    with dry_run(setup, progress) as model:
        for name, answer, text in _answers(model, options, budget, fit):
            progress("")
            if not options.json:
                print(f"\n{text}" if printed else text, flush=True)
            printed |= {name: as_json(answer)} if name else as_json(answer)
    if options.json:
        print(json.dumps(printed, indent=2))
    return 0


def _read(option: str, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"argument {option}: {error}") from None


def _answers(
    model: DryRun, options: argparse.Namespace, budget_bytes: int | None, fit_bytes: int | None
) -> Iterator[tuple[str, Any, str]]:
    """For each answer its name in JSON (empty for the plan, whose fields are at the top), its record and its text."""
    size = options.batch_size, options.seq_len
    plan = plan_from_run(
        model, *size, gradient_checkpointing=options.gradient_checkpointing, optimizer=options.optimizer
    )
    yield "", plan, str(plan)
    if options.compare or options.plot is not None:
        comparison = comparison_from_run(model, *size, optimizer=options.optimizer if options.compare else None)
        text = str(comparison)
        if options.plot is not None:
            save_plot(comparison, options.plot)
            text += f"\n\nThe figure is in {options.plot}."
        yield "comparison", comparison, text
    if budget_bytes is not None:
        budget = budget_from_run(model, *size, budget_bytes, optimizer=options.optimizer)
        yield "budget", budget, str(budget)
    if fit_bytes is not None:
        fit = fit_from_run(model, *size, fit_bytes, optimizer=options.optimizer)
        yield "fit", fit, str(fit)


def _show_progress(doing: str) -> None:
    """Show it on one line of the terminal, which the next call overwrites."""
    print(f"\r\033[K{doing}", end="", file=sys.stderr, flush=True)
