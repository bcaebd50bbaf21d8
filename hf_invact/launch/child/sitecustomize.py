"""Imported by each Python process that a script under ``hf-invact run`` starts, before anything else.

Has the flags understood there, and imports the sitecustomize that would have been imported without this one.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec


def _join() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
    root = os.path.dirname(os.path.dirname(os.path.dirname(here)))
    sys.path.insert(0, root)  # which a child need not have, but must take this copy of the package
    try:
        from hf_invact.launch.children import join
    finally:
        sys.path.remove(root)
    join()


def _import_the_other_one() -> None:
    spec = PathFinder.find_spec("sitecustomize")
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if __name__ == "sitecustomize":
    try:
        _join()
    finally:
        _import_the_other_one()
