"""``python -m hf_invact`` is the command ``hf-invact``."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command with the arguments of this process."""
    if sys.argv[1:2] == ["run"]:  # it must not import what other commands need: see launch/__init__.py
        from .launch import main as run

        return run(sys.argv[2:])
    from .cli import main as command

    return command()


if __name__ == "__main__":
    raise SystemExit(main())
