"""The command ``hf-invact``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from . import __version__, launch
from .environment import describe_installation, render_installation
from .patching import PatchingError
from .planning import (
    OPTIMIZERS,
    DryRun,
    Lora,
    PlanningError,
    Setup,
    as_json,
    check_plot,
    comparison_of,
    dry_run,
    fit_of,
    parse_size,
    plan_of,
    render,
    render_comparison,
    render_fit,
    save_plot,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 2 where something that the user gave is wrong."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["run"]:  # not parsed here: a script's arguments are its own
        return launch.main(arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except (PlanningError, PatchingError, ValueError) as error:
        print(f"hf-invact: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-invact", description="Inverted activations for Hugging Face models.")
    parser.add_argument("--version", action="version", version=f"hf_invact {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("run", help="start a training script with --use_inverted_activations understood")
    plan = commands.add_parser(
        "plan",
        help="predict the memory that training needs, with and without",
        description="Predict the memory that training a model needs, plain and with inverted activations. Needs the "
        "model's config alone: no weights, no GPU.",
    )
    plan.set_defaults(run=_plan)
    plan.add_argument("model", metavar="MODEL", help="name on the hub, local folder, or config.json")
    plan.add_argument("--batch-size", type=int, required=True, metavar="B")
    plan.add_argument("--seq-len", type=int, metavar="S", help="tokens in each sequence (images have none)")
    plan.add_argument("--dtype", default="bfloat16", help="of the weights: bfloat16 (default), float16, float32")
    plan.add_argument("--autocast", action="store_true", help="run the forward pass under autocast")
    plan.add_argument("--lora", type=_lora, metavar="r=16,dropout=0,targets=all", help="train adapters alone")
    plan.add_argument("--attn", default="sdpa", metavar="sdpa|eager|flash_attention_2", help="attention implementation")
    plan.add_argument(
        "--optimizer",
        default="adamw_fused",
        choices=sorted(OPTIMIZERS),
        help="adamw_fused (default) is the Trainer's; torch's own, adamw, needs temporaries of the weights' size",
    )
    plan.add_argument("--gradient-checkpointing", action="store_true")
    _add_further_questions(plan)
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    info = commands.add_parser(
        "info",
        help="tell versions, devices, backends and activations, as for a bug report",
        description="Tell the versions of what is installed, the devices, the backend that each gets and why, and the "
        "activations that can be inverted.",
    )
    info.set_defaults(run=_info)
    info.add_argument("--json", action="store_true", help="print it as JSON")
    return parser


def _info(options: argparse.Namespace) -> int:
    facts = describe_installation()
    print(json.dumps(facts, indent=2) if options.json else render_installation(facts))
    return 0


def _add_further_questions(plan: argparse.ArgumentParser) -> None:
    plan.add_argument(
        "--compare",
        action="store_true",
        help="compare with a fused activation, an exact gate, and activation checkpointing",
    )
    plan.add_argument(
        "--fit",
        type=_size,
        metavar="SIZE",
        help="find the largest batch and the longest sequence that fit, also with checkpointing: 80GiB, 80GB, 24g",
    )
    plan.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw what is kept, for all that is compared (needs matplotlib)"
    )


def _plan(options: argparse.Namespace) -> int:
    if options.plot is not None:
        check_plot(options.plot)
    setup = Setup(
        options.model, dtype=options.dtype, autocast=options.autocast, lora=options.lora, attention=options.attn
    )
    printed: dict[str, Any] = {}
    tell = _tell if sys.stderr.isatty() else _tell_nothing
    with dry_run(setup, tell) as run:
        for name, answer, text in _answers(run, options):
            tell("")
            if not options.json:
                print(f"\n{text}" if printed else text, flush=True)
            printed |= {name: as_json(answer)} if name else as_json(answer)
    if options.json:
        print(json.dumps(printed, indent=2))
    return 0


def _answers(run: DryRun, options: argparse.Namespace) -> Iterator[tuple[str, Any, str]]:
    """What is asked for, one after another: its name in JSON (none: its fields are named), a record, and its text."""
    size = options.batch_size, options.seq_len
    plan = plan_of(run, *size, gradient_checkpointing=options.gradient_checkpointing, optimizer=options.optimizer)
    yield "", plan, render(plan)
    if options.compare or options.plot is not None:
        comparison = comparison_of(run, *size, optimizer=options.optimizer if options.compare else None)
        text = render_comparison(comparison)
        if options.plot is not None:
            save_plot(comparison, options.plot)
            text += f"\n\nDrawn in {options.plot}."
        yield "comparison", comparison, text
    if options.fit is not None:
        fit = fit_of(run, *size, options.fit, optimizer=options.optimizer)
        yield "fit", fit, render_fit(fit)


def _tell(doing: str) -> None:
    """On a line of the terminal that is written over."""
    print(f"\r\033[K{doing}", end="", file=sys.stderr, flush=True)


def _tell_nothing(doing: str) -> None:
    pass


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _lora(text: str) -> Lora:
    """``r=16,dropout=0.05,targets=all``, each of which may be left out."""
    kinds: dict[str, Callable[[str], Any]] = {"r": int, "dropout": float, "targets": str}
    values: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, _, value = item.partition("=")
        if key not in kinds:
            raise argparse.ArgumentTypeError(f"{item!r} is none of r=INT, dropout=FLOAT, targets=all|attention|mlp")
        try:
            values[key] = kinds[key](value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{value!r} is no value for {key}") from None
    try:
        return Lora(**values)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    raise SystemExit(main())
