"""The command ``hf-invact run``: starts an unmodified training script with the flag understood.

Alone in this package it changes classes of other libraries and environment variables, in this process and in those
that the script starts, until it ends. It imports neither torch nor Transformers before the script does: they read
environment variables that a script may set first.
"""

from .script import main

__all__ = ["main"]
