"""The command: takes the flags, runs the script, tells what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from .children import flags_understood_everywhere
from .flags import refuse, take_flags
from .seen import Seen
from .target import run_module, run_script_or_command

USAGE = """\
usage: hf-invact run SCRIPT.py [ARGUMENTS ...]
       hf-invact run COMMAND [ARGUMENTS ...]
       hf-invact run -m MODULE [ARGUMENTS ...]

Start an unmodified training script that uses transformers.Trainer, or a subclass of it, with three more flags, anywhere
among its own arguments:

  --use_inverted_activations [true|false]
                        train each model with inverted activations
  --inverted_activations_config JSON
                        options, e.g. '{"include": ["*.mlp"], "exclude": [], "plan": "auto", "backend": "eager"}'
  --require             refuse a model in which nothing would be inverted, and end with exit code 1 where nothing was

Without the flag it is `python SCRIPT.py ARGUMENTS ...`. A COMMAND is one that is installed (trl, accelerate, torchrun,
bash). The flags hold in every Python process that the script or the command starts. The exit code is the script's own;
2 where the flags or the script's name are wrong. This works too: torchrun ... -m hf_invact run SCRIPT.py ...
"""


def main(arguments: Sequence[str]) -> int:
    """Run a script. What it raises is passed on, `SystemExit` included.

    Args:
        arguments: the script, its arguments, and the flags among them.

    Raises:
        SystemExit: the flags or the script's name are wrong; code 2.
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
    with nullcontext(Seen()) if flags.use is None else flags_understood_everywhere(flags) as seen:
        try:
            (run_module if is_module else run_script_or_command)(target, own)
        except SystemExit as ended:
            if ended.code or not (code := seen.tell(flags)):
                raise
            return code
        return seen.tell(flags)
