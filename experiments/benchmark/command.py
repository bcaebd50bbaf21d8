"""The command line of the benchmark.

Only `figures` needs more than torch, transformers and accelerate.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from ..common.errors import ConfigError, shown_as_one_line
from ..common.limits import SEED_LIMIT
from ..common.locks import locked
from ..common.masking import masked_command
from ..common.parser import Parser
from .machine import choose_device
from .results import read_results
from .run import Run, results_path
from .settings import settings_for

PACKAGES_TO_DRAW = ("matplotlib", "PIL")


def draw(path: Path) -> list[Path]:
    """Draw the figures of a results file beside it. If matplotlib is missing, print that and draw none.

    Raises:
        ConfigError: the file does not exist, or holds something else.
    """
    content = read_results(path)
    try:
        from .figures import write_figures
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if missing not in PACKAGES_TO_DRAW:
            raise
        command = shlex.join(["python", "scripts/benchmark.py", "--plot-only", str(path)])
        print(f"no figures: {missing} is not installed here. To draw them where it is: {command}")
        return []
    return write_figures(content, path)


@shown_as_one_line
def main(argv: Sequence[str]) -> int:
    """The script. Returns 2, after one line, for an error that the user can fix; 1 if something failed."""
    transformers.utils.logging.set_verbosity_error()
    options = _parse(argv)
    if options.plot_only is not None:
        print(*draw(options.plot_only), sep="\n")
        return 0
    device = choose_device(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    settings = settings_for(device.type, options.backends, options.seed, options.quick)
    command = masked_command(["python", "scripts/benchmark.py", *argv])
    path = options.output or results_path(settings, device)
    with locked(path.with_name(f".{path.name}.lock"), str(path), "--output"):
        run = Run(settings, device, path, options.minutes, command)
        problems = run.measure()
        draw(path)
    for problem in problems:
        print(problem, file=sys.stderr)
    run.say(f"wrote {run.results.path}")
    return 1 if problems else 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="scripts/benchmark.py",
        description="Measure operators and whole training steps on one device. An interrupted run continues where "
        "it stopped when it is started again.",
        allow_abbrev=False,
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N; default: CUDA if there is one")
    parser.add_argument("--backends", nargs="+", help="backends of hf_invact; default: all on CUDA, eager on a CPU")
    parser.add_argument("--output", type=Path, help="default: results/benchmark-<device>.json")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="start no measurement after this many minutes; default: 9"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--plot-only", type=Path, metavar="FILE", help="draw the figures of a file, measure nothing")
    options = parser.parse_args(argv)
    if not 0 < options.minutes < math.inf:
        raise ConfigError(f"--minutes must be a number above 0, got {options.minutes}")
    if not 0 <= options.seed < SEED_LIMIT:
        raise ConfigError(f"--seed must be a whole number from 0 to {SEED_LIMIT - 1}, got {options.seed}")
    return options
