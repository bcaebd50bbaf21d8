"""The command: takes the flags, runs the script, and reports whether they took effect."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from .children import flags_applied_everywhere
from .events import TrainerEvents
from .flags import refuse, take_flags
from .target import run_module, run_script_or_command

USAGE = """\
usage: hf-invact run SCRIPT.py [ARGUMENTS ...]
       hf-invact run COMMAND [ARGUMENTS ...]
       hf-invact run -m MODULE [ARGUMENTS ...]

Start an unmodified training script that uses transformers.Trainer or a subclass. It understands three more flags,
anywhere among its own arguments:

  --use_inverted_activations [true|false]
                        train each model with inverted activations
  --inverted_activations_config JSON
                        options, e.g. '{"include": ["*.mlp"], "exclude": [], "plan": "auto", "backend": "eager"}'
  --require             refuse a model in which nothing would be inverted; exit code 1 if nothing was inverted

Without flags this is `python SCRIPT.py ARGUMENTS ...`. A COMMAND is an installed one (trl, accelerate, torchrun, bash).
The flags apply in every Python process that the script or the command starts. The exit code is that of the script, or
2 for an invalid flag or script name. This works too: torchrun ... -m hf_invact run SCRIPT.py ...
"""


def main(arguments: Sequence[str]) -> int:
    """Run a script. Its exceptions pass through, `SystemExit` included.

    Args:
        arguments: the script, its arguments, and the flags among them.

    Raises:
        SystemExit: an invalid flag, or no such script; code 2.
    """
    flags, rest = take_flags(arguments)
    if rest[:1] in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    is_module = rest[:1] == ["-m"]
    target, *own = rest[is_module:] or [""]
    if not target:
        refuse(f"which {'module' if is_module else 'script'}? See hf-invact run --help")
    if target.startswith("-"):
        refuse(f"unknown option {target} before the script; the script's own options come after its name")
    with nullcontext(TrainerEvents()) if flags.use is None else flags_applied_everywhere(flags) as events:
        try:
            (run_module if is_module else run_script_or_command)(target, own)
        except SystemExit as ended:
            if ended.code or not (code := events.report(flags)):
                raise
            return code
        return events.report(flags)
