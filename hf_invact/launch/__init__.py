"""The command ``hf-invact run``: starts an unmodified training script with the flag understood.

Alone in this package it changes classes of other libraries, in this process and until the script ends. It imports
neither torch nor Transformers before the script does: they read environment variables that a script may set first.
"""

from .script import main

__all__ = ["main"]
