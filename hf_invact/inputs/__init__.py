"""Makes small batches for models of Transformers, whatever they take."""

from .small import UnknownInputsError, small_inputs

__all__ = ["UnknownInputsError", "small_inputs"]
