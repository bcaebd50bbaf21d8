"""The command ``hf-invact plan``, once its arguments are read."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ..display.sizes import parse_size
from .compare import comparison_of
from .dry_run import DryRun, dry_run
from .fit import fit_of
from .model.lora import parse_lora
from .model.setup import Setup
from .plan import plan_of
from .plot import check_plot, save_plot
from .text import as_json


def run(options: argparse.Namespace) -> int:
    """Print what is asked for.

    Args:
        options: what the parser of `hf_invact.cli` returns, texts not interpreted yet.

    Raises:
        ValueError: something that the user gave is wrong.
        OSError: a picture cannot be written.
    """
    if options.plot is not None:
        check_plot(options.plot)
    lora = None if options.lora is None else _read("--lora", parse_lora, options.lora)
    memory_bytes = None if options.fit is None else _read("--fit", parse_size, options.fit)
    setup = Setup(options.model, dtype=options.dtype, autocast=options.autocast, lora=lora, attention=options.attn)
    printed: dict[str, Any] = {}
    tell = _tell if sys.stderr.isatty() else _tell_nothing
    with dry_run(setup, tell) as model:
        for name, answer, text in _answers(model, options, memory_bytes):
            tell("")
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


def _answers(model: DryRun, options: argparse.Namespace, memory_bytes: int | None) -> Iterator[tuple[str, Any, str]]:
    """What is asked for, one after another: its name in JSON (none: its fields are named), a record, and its text."""
    size = options.batch_size, options.seq_len
    plan = plan_of(model, *size, gradient_checkpointing=options.gradient_checkpointing, optimizer=options.optimizer)
    yield "", plan, str(plan)
    if options.compare or options.plot is not None:
        comparison = comparison_of(model, *size, optimizer=options.optimizer if options.compare else None)
        text = str(comparison)
        if options.plot is not None:
            save_plot(comparison, options.plot)
            text += f"\n\nDrawn in {options.plot}."
        yield "comparison", comparison, text
    if memory_bytes is not None:
        fit = fit_of(model, *size, memory_bytes, optimizer=options.optimizer)
        yield "fit", fit, str(fit)


def _tell(doing: str) -> None:
    """On a line of the terminal that is written over."""
    print(f"\r\033[K{doing}", end="", file=sys.stderr, flush=True)


def _tell_nothing(doing: str) -> None:
    pass
