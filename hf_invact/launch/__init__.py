"""The command ``hf-invact run``: starts an unmodified training script that then understands the flags.

This is the only part of the package that changes classes of other libraries and environment variables: in this process
and in those that the script starts, until the command ends. It does not import torch or Transformers before the script
does, because they read environment variables that the script may set first.
"""

from .script import main

__all__ = ["main"]
