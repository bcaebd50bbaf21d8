"""Integration with the Trainer of Transformers: arguments, callbacks, and a mixin."""

from .arguments import InvActArgumentsMixin, InvActTrainingArguments
from .callback import InvertedActivationsCallback
from .memory import MemoryCallback
from .mixin import InvActTrainerMixin

__all__ = [
    "InvActArgumentsMixin",
    "InvActTrainerMixin",
    "InvActTrainingArguments",
    "InvertedActivationsCallback",
    "MemoryCallback",
]
