"""A mixin that makes a Trainer follow the flag and send the memory figures to every reporter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .callback import InvertedActivationsCallback
from .memory import add_memory_figures

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object  # importing the Trainer is slow, and this package has to import fast


class InvActTrainerMixin(_Trainer):
    """Mix into any Trainer: ``class MyTrainer(InvActTrainerMixin, Trainer): ...``.

    Adds an `InvertedActivationsCallback` unless one is passed, and adds the memory figures to training logs before any
    reporter sees them. (A callback alone runs after the reporters.)
    """

    def __init__(self, *args: Any, callbacks: list[Any] | None = None, **kwargs: Any) -> None:
        callbacks = list(callbacks or [])
        if not any(isinstance(callback, InvertedActivationsCallback) for callback in callbacks):
            callbacks.append(InvertedActivationsCallback())
        super().__init__(*args, callbacks=callbacks, **kwargs)

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        add_memory_figures(logs, self.callback_handler.callbacks)
        super().log(logs, *args, **kwargs)
