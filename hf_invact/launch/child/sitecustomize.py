"""Imported first by each Python process that a script under ``hf-invact run`` starts.

It applies the flags there, then imports the sitecustomize that Python would have imported otherwise.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec


def _apply_flags() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
    root = os.path.dirname(os.path.dirname(os.path.dirname(here)))
    sys.path.insert(0, root)  # a child may lack it, and has to import this copy of the package
    try:
        from hf_invact.launch.children import apply_inherited_flags
    finally:
        sys.path.remove(root)
    apply_inherited_flags()


def _import_shadowed_sitecustomize() -> None:
    spec = PathFinder.find_spec("sitecustomize")
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if __name__ == "sitecustomize":
    try:
        _apply_flags()
    finally:
        _import_shadowed_sitecustomize()
