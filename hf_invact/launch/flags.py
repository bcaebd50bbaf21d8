"""Takes the flags out of a command line before the script parses the rest."""

from __future__ import annotations

import difflib
import json
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

USE = "--use_inverted_activations"
CONFIG = "--inverted_activations_config"
REQUIRE = "--require"

# As HfArgumentParser spells them.
BOOLEANS = {
    **dict.fromkeys(("yes", "true", "t", "y", "1"), True),
    **dict.fromkeys(("no", "false", "f", "n", "0"), False),
}


@dataclass(frozen=True)
class Flags:
    """The flags on the command line.

    Attributes:
        use: whether to invert; None without the flag.
        config: the options, a mapping whose keys and values are not checked yet; None without the flag.
        written: the arguments of each flag on the command line, for a script whose own parser declares it.
        require: whether to refuse a model in which nothing would be inverted.
    """

    use: bool | None = None
    config: dict[str, Any] | None = None
    written: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    require: bool = False


def refuse(message: str) -> NoReturn:
    """End the process with one line on stderr and exit code 2."""
    print(f"hf-invact run: {message}", file=sys.stderr)
    raise SystemExit(2)


def take_flags(arguments: Sequence[str]) -> tuple[Flags, list[str]]:
    """Split a command line into the flags and the rest, which keeps its order. Nothing after ``--`` is a flag.

    ``--require`` counts as a flag before the script's name. After it, only without a value and together with
    ``--use_inverted_activations``: the script may have an option of the same name.

    >>> flags, rest = take_flags(["train.py", "--use_inverted_activations", "--seed", "7"])
    >>> flags.use, rest
    (True, ['train.py', '--seed', '7'])

    Raises:
        SystemExit: a repeated or misspelt flag, or an invalid value; code 2.
    """
    written: dict[str, tuple[str, ...]] = {}
    rest: list[str] = []
    items = deque(arguments)
    uses = any(item.partition("=")[0].replace("-", "_") == USE.replace("-", "_") for item in arguments)
    while items:
        item = items.popleft()
        if item == "--":
            rest += [item, *items]
            break
        option, equals, value = item.partition("=")
        is_required = item == REQUIRE and (not rest or (uses and (not items or items[0].startswith("-"))))
        name = REQUIRE if is_required else _name(option)
        if name is None:
            rest.append(item)
            continue
        if name in written:
            refuse(f"{name} is given twice")
        if equals:
            written[name] = (value,)
        elif items and name != REQUIRE and (name == CONFIG or items[0].lower() in BOOLEANS):
            written[name] = (items.popleft(),)
        else:
            written[name] = ()
    return _read(written), rest


def _name(option: str) -> str | None:
    """The flag that an option spells, with underscores or dashes; None for an option of the script."""
    if not option.startswith("--"):
        return None
    name = "--" + option[2:].replace("-", "_")
    if name not in (USE, CONFIG) and (near := difflib.get_close_matches(name, (USE, CONFIG), n=1, cutoff=0.85)):
        refuse(f"unknown option {option}; did you mean {near[0]}?")
    return name if name in (USE, CONFIG) else None


def _read(written: Mapping[str, tuple[str, ...]]) -> Flags:
    if CONFIG in written and USE not in written:
        refuse(f"{CONFIG} needs {USE} as well")
    use = config = None
    if USE in written:
        value = written[USE][0] if written[USE] else "true"
        if value.lower() not in BOOLEANS:
            refuse(f"{USE} must be one of {', '.join(BOOLEANS)}, got {value!r}")
        use = BOOLEANS[value.lower()]
    if CONFIG in written:
        config = _mapping(*written[CONFIG])
    if REQUIRE in written and not use:
        refuse(f"{REQUIRE} needs {USE} as well")
    return Flags(use, config, written, REQUIRE in written)


def _mapping(text: str = "") -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        refuse(f"{CONFIG} is not valid JSON ({error}); got {text!r}")
    if not isinstance(value, dict):
        refuse(f"""{CONFIG} must be a mapping such as '{{"include": ["*.mlp"]}}', got {text!r}""")
    return value
