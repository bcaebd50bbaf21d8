"""A Trainer that takes the flag by itself and shows the memory figures to every reporter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .callback import InvertedActivationsCallback
from .memory import add_memory_figures

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object  # so that importing this package does not import the Trainer and all that it brings


class InvActTrainerMixin(_Trainer):
    """Mix into any Trainer: ``class MyTrainer(InvActTrainerMixin, Trainer): ...``.

    Adds `InvertedActivationsCallback` where no such callback was passed, and puts the memory figures into the training
    logs before any reporter sees them. (A callback alone comes after the reporters.)
    """

    def __init__(self, *args: Any, callbacks: list[Any] | None = None, **kwargs: Any) -> None:
        callbacks = list(callbacks or [])
        if not any(isinstance(callback, InvertedActivationsCallback) for callback in callbacks):
            callbacks.append(InvertedActivationsCallback())
        super().__init__(*args, callbacks=callbacks, **kwargs)

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        add_memory_figures(logs, self.callback_handler.callbacks)
        super().log(logs, *args, **kwargs)
