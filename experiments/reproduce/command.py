"""The script `scripts/reproduce.py`: runs one part of the reproduction, or all parts."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import datasets
import transformers
from rich.console import Console

from ..common.errors import ConfigError, shown_as_one_line
from ..common.files import claim_folder, read_mapping, write_json
from ..common.locks import locked_folder
from ..common.parser import Parser

PARTS = {
    "memory": "what the published models keep for the backward pass, counted without a GPU",
    "methods": "other approximations of the derivative: what they keep, and their error",
    "steps": "time of a training step, plain, inverted and with each alternative",
    "finetune": "fine-tuning with several seeds, with and without",
    "lora": "the same with LoRA and its dropout",
    "lora_steps": "time of a training step with LoRA",
    "budget": "memory budgets, and what real steps then take",
    "pareto": "memory against step time, with more or fewer layers checkpointed",
}
ALL = "all"
FOLDER = Path("results/reproduction")
QUICK_FOLDER = Path("results/reproduction-quick")
MARKER = "reproduction.json"  # marks the folder as made by this script, and holds the seconds that each part has taken


def quiet_main(argv: Sequence[str]) -> int:
    """`main` without the progress bars and reports of other libraries, for a process that does nothing else."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    return main(argv)


@shown_as_one_line
def main(argv: Sequence[str]) -> int:
    """The script. Returns 2, after one line, for an error that the user can fix; 1 if a run failed."""
    console = Console()
    options = _parser().parse_args(argv)
    folder = options.output_dir or (QUICK_FOLDER if options.quick else FOLDER)
    claim_folder(folder, MARKER)
    with locked_folder(folder):
        for part in PARTS if options.part == ALL else [options.part]:
            _run(part, folder, options.quick, console)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="scripts/reproduce.py",
        description="Reproduce the published experiments beside the alternatives. What is finished is kept: the same "
        "command continues where it was interrupted.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["parts:", *(f"  {name:<10}{what}" for name, what in PARTS.items())]),
        allow_abbrev=False,
    )
    parser.add_argument("part", choices=[*PARTS, ALL], help="what to run")
    parser.add_argument("--quick", action="store_true", help="the same code on tiny settings, in minutes")
    parser.add_argument(
        "--output_dir", type=Path, help=f"where results are written (default: {FOLDER}, or {QUICK_FOLDER} with --quick)"
    )
    return parser


def _seconds_before(path: Path, console: Console) -> dict[str, float]:
    try:
        return {part: float(seconds) for part, seconds in (read_mapping(path, {}) or {}).items()}
    except (ConfigError, TypeError, ValueError):
        console.print(f"{path} was damaged: the times of earlier parts are lost, but not their results.")
        return {}


def _run(part: str, folder: Path, quick: bool, console: Console) -> None:
    console.rule(f"{part}: {PARTS[part]}")
    began = time.monotonic()
    before = _seconds_before(folder / MARKER, console)
    write_json(folder / MARKER, before)
    # The command of this part alone, so that each file names the command that writes it.
    own = [part, *(["--quick"] if quick else [])]
    command = shlex.join(["python", "scripts/reproduce.py", *own])
    try:
        written = import_module(f"{__package__}.{part}.run").run(folder, quick, console, command)
    finally:  # an interrupted part continues later
        seconds = round(time.monotonic() - began, 1)
        write_json(folder / MARKER, {**before, part: before.get(part, 0.0) + seconds})
    console.print(f"Wrote {written} ({seconds:.0f} s)", highlight=False)
