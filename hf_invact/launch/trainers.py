"""Adds the callback to every Trainer that a script makes."""

from __future__ import annotations

import argparse
import functools
import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .events import TrainerEvents
from .flags import CONFIG, USE, Flags, refuse
from .importing import after_import, replace_attribute

if TYPE_CHECKING:
    from ..patching import InvActConfig


@contextmanager
def flags_applied(flags: Flags, events: TrainerEvents | None = None) -> Iterator[TrainerEvents]:
    """Inside the block every `transformers.Trainer`, subclasses included, follows the flags.

    - Training arguments with the two fields get the values, which the script's own callback then reads.
    - Any other Trainer gets an `InvertedActivationsCallback`, if the flag is on.
    - Memory figures reach every reporter.
    - If a parser of the script declares a flag, it finds the flag on the command line.

    Afterwards the classes are as before. Transformers is not imported unless the script imports it.
    """
    events = events or TrainerEvents()
    with ExitStack() as changes:

        def change(module: ModuleType) -> None:
            _change_trainer(module.Trainer, flags, events, changes)

        replace_attribute(changes, argparse.ArgumentParser, "parse_known_args", _parse_with(flags))
        changes.enter_context(after_import("transformers.trainer", change))
        yield events


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
            # At the end: a flag without a value would take the next argument for its value.
            found[end:end] = [argument for name, values in known.items() for argument in (name, *values)]
            args = found
        return original(self, args, namespace)

    return parse_known_args


def _change_trainer(trainer_class: type, flags: Flags, events: TrainerEvents, changes: ExitStack) -> None:
    from ..patching import InvActConfig
    from ..trainer.memory import add_memory_figures

    try:
        config = None if flags.config is None else InvActConfig.from_dict(flags.config)
    except ValueError as error:
        refuse(f"{CONFIG}: {error}")
    original_init: Any = trainer_class.__init__  # type: ignore[misc]  # called with the arguments that came
    original_log: Any = trainer_class.log  # type: ignore[attr-defined]  # every Trainer has it
    signature = inspect.signature(original_init)

    @functools.wraps(original_init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        call = signature.bind(self, *args, **kwargs)
        _set_fields(flags, call.arguments.get("args"))
        if flags.use:
            call.arguments["callbacks"] = _with_callback(call.arguments.get("callbacks"), config, flags, events)
        original_init(*call.args, **call.kwargs)

    @functools.wraps(original_log)
    def log(self: Any, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        add_memory_figures(logs, self.callback_handler.callbacks)
        original_log(self, logs, *args, **kwargs)

    replace_attribute(changes, trainer_class, "__init__", __init__)
    replace_attribute(changes, trainer_class, "log", log)


def _set_fields(flags: Flags, arguments: Any) -> None:
    """The command line overrides the fields of training arguments, which a file or code may have set."""
    if hasattr(arguments, USE.removeprefix("--")):
        arguments.use_inverted_activations = flags.use
        if flags.config is not None:
            arguments.inverted_activations_config = flags.config


def _with_callback(
    callbacks: Sequence[Any] | None, config: InvActConfig | None, flags: Flags, events: TrainerEvents
) -> list[Any]:
    from ..trainer import InvertedActivationsCallback
    from .recorder import EventRecorder

    made = [callback() if isinstance(callback, type) else callback for callback in callbacks or ()]
    own = [callback for callback in made if isinstance(callback, InvertedActivationsCallback)]
    if not own:
        own = [InvertedActivationsCallback(config)]
        made = [*own, *made]  # first, so the model is unpatched when the script's callbacks see the end of training
    elif config is not None and own[0].config not in (None, config):
        print(f"hf-invact run: the script's own callback has a config, so {CONFIG} is not used", file=sys.stderr)
    own[0].require |= flags.require
    return [*made, EventRecorder(own[0], events)]
