"""Gives the callback to every Trainer that a script makes."""

from __future__ import annotations

import argparse
import functools
import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .flags import CONFIG, USE, Flags, refuse
from .importing import after_import, replace_attribute
from .seen import Seen

if TYPE_CHECKING:
    from ..patching import InvActConfig


@contextmanager
def flags_understood(flags: Flags, seen: Seen | None = None) -> Iterator[Seen]:
    """Inside the block every `transformers.Trainer`, subclasses included, follows the flags.

    - Training arguments that have the two fields get the values, and the script's own callback is left to follow them.
    - Any other Trainer gets an `InvertedActivationsCallback`, if the flag is on.
    - Memory figures reach every reporter.
    - A parser of the script that declares a flag finds it on the command line.

    Afterwards the classes are as they were. Transformers is not imported unless the script does it.
    """
    seen = seen or Seen()
    with ExitStack() as changes:

        def change(module: ModuleType) -> None:
            _change_trainer(module.Trainer, flags, seen, changes)

        replace_attribute(changes, argparse.ArgumentParser, "parse_known_args", _parse_with(flags))
        changes.enter_context(after_import("transformers.trainer", change))
        yield seen


def _parse_with(flags: Flags) -> Any:
    original = argparse.ArgumentParser.parse_known_args

    @functools.wraps(original)
    def parse_known_args(
        self: argparse.ArgumentParser, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        known = {name: values for name, values in flags.written.items() if name in self._option_string_actions}
        if known:
            found = list(sys.argv[1:] if args is None else args)
            end = found.index("--") if "--" in found else len(found)
            # Last, where a flag without a value cannot take the argument after it for one.
            found[end:end] = [argument for name, values in known.items() for argument in (name, *values)]
            args = found
        return original(self, args, namespace)

    return parse_known_args


def _change_trainer(trainer_class: type, flags: Flags, seen: Seen, changes: ExitStack) -> None:
    from ..patching import InvActConfig
    from ..trainer.memory import add_memory_figures

    try:
        config = None if flags.config is None else InvActConfig.from_dict(flags.config)
    except ValueError as error:
        refuse(f"{CONFIG}: {error}")
    original_init: Any = trainer_class.__init__  # type: ignore[misc]
    original_log: Any = trainer_class.log  # type: ignore[attr-defined]
    signature = inspect.signature(original_init)

    @functools.wraps(original_init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs)
        _hand_over(flags, given.arguments.get("args"))
        if flags.use:
            given.arguments["callbacks"] = _with_callback(given.arguments.get("callbacks"), config, flags, seen)
        original_init(*given.args, **given.kwargs)

    @functools.wraps(original_log)
    def log(self: Any, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        add_memory_figures(logs, self.callback_handler.callbacks)
        original_log(self, logs, *args, **kwargs)

    replace_attribute(changes, trainer_class, "__init__", __init__)
    replace_attribute(changes, trainer_class, "log", log)


def _hand_over(flags: Flags, arguments: Any) -> None:
    """Training arguments that have the fields may come from a file or from code: the command line goes first."""
    if hasattr(arguments, USE.removeprefix("--")):
        arguments.use_inverted_activations = flags.use
        if flags.config is not None:
            arguments.inverted_activations_config = flags.config


def _with_callback(callbacks: Sequence[Any] | None, config: InvActConfig | None, flags: Flags, seen: Seen) -> list[Any]:
    from ..trainer import InvertedActivationsCallback
    from .witness import Witness

    made = [callback() if isinstance(callback, type) else callback for callback in callbacks or ()]
    own = [callback for callback in made if isinstance(callback, InvertedActivationsCallback)]
    if not own:
        own = [InvertedActivationsCallback(config)]
        made = [*own, *made]  # first, so that the script's callbacks see the end of the training unpatched
    elif config is not None and own[0].config not in (None, config):
        print(f"hf-invact run: the script's own callback has a config, so {CONFIG} is not used", file=sys.stderr)
    own[0].require |= flags.require
    return [*made, Witness(own[0], seen)]
