"""The command line of the measurements on a device."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from ..common.errors import ConfigError, shown_as_one_line
from ..common.limits import SEED_LIMIT
from ..common.masking import masked_command
from ..common.parser import Parser
from .document import faults, gaps
from .run import Options, Run
from .stages import STAGES, Stage


@shown_as_one_line
def main(argv: Sequence[str], stages: Sequence[Stage] = STAGES) -> int:
    """The script: exit code 2, and one line, for what the user can correct; 1 where something failed."""
    run = Run(stages, _parse(argv, stages))
    content = run.measure()
    for gap in gaps(content):
        print(f"not measured: {gap}")
    problems = faults(content)
    for problem in problems:
        print(f"failed: {problem}", file=sys.stderr)
    run.say(f"wrote {run.document.path}")
    return 1 if problems else 0


def _parse(argv: Sequence[str], stages: Sequence[Stage]) -> Options:
    names = [stage.name for stage in stages]
    parser = Parser(
        prog="scripts/device.py",
        description="Measure on one device what needs a GPU, the most important first, into one file. It is whole "
        "after each finding, and says what was not measured and why.",
        epilog="stages: " + "; ".join(f"{stage.name}: {stage.title}" for stage in stages),
        allow_abbrev=False,
    )
    parser.add_argument("--device", help="cpu (small sizes), cuda or cuda:N; default: CUDA if there is one")
    parser.add_argument("--minutes", type=float, default=8.0, help="in which everything has ended; default: 8")
    parser.add_argument("--only", nargs="+", choices=names, metavar="STAGE", default=[], help=", ".join(names))
    parser.add_argument("--output", type=Path, help="default: results/device-<device>.json")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if not 0 < options.minutes < math.inf:
        raise ConfigError(f"--minutes must be a number above 0, got {options.minutes}")
    if not 0 <= options.seed < SEED_LIMIT:
        raise ConfigError(f"--seed must be a whole number from 0 to {SEED_LIMIT - 1}, got {options.seed}")
    command = masked_command(["python", "scripts/device.py", *argv])
    return Options(options.device, options.minutes, options.seed, tuple(options.only), options.output, command)
