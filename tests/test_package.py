"""The package as a whole: what it exports, what importing it does not do, and which part may import which."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hf_invact
from tests.imports import imported_names

ROOT = Path(hf_invact.__file__).parent

# Each part may import the levels above it. Parts on one level do not import each other. `display`, `inputs`, `memory`
# stand apart: they import no other part, and patching and everything below it may use them.
ORDER = (
    ("curves", "norms"),
    ("ops",),
    ("functional",),
    ("nn",),
    ("sites",),
    ("patching",),
    ("planning", "environment"),
    ("trainer",),
    ("launch",),
    ("cli",),
    ("__main__",),
)
USERS = ("patching", "trainer", "planning", "environment", "launch", "cli")
ALLOWED = {part: {part, *sum(ORDER[:level], ())} for level, parts in enumerate(ORDER) for part in parts}
APART = ("display", "inputs", "memory")
ALLOWED.update({part: {part} for part in APART})
for _part in USERS:
    ALLOWED[_part].update(APART)

FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> Iterator[str]:
    """Parts of the package that a file imports, anywhere in it. `hf_invact` itself counts as "hf_invact"."""
    for name in imported_names(path, ROOT.parent):
        first, _, rest = name.partition(".")
        if first == "hf_invact":
            yield rest.partition(".")[0] or first


def test_every_part_has_its_place_in_the_order() -> None:
    assert {part_of(path) for path in FILES} == set(ALLOWED)


def test_one_part_alone_imports_triton() -> None:
    folder = ROOT / "ops" / "triton"
    assert {path for path in FILES if re.search(r"^\s*(import|from) triton\b", path.read_text("utf-8"), re.M)} == {
        folder / name for name in ("adapter_kernels.py", "formulas.py", "kernels.py", "launch.py", "norm_kernels.py")
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    # The version is all that a part may take from the package itself.
    wrong = set(imported_parts(path)) - ALLOWED[part_of(path)] - {"__version__"}
    assert not wrong, f"{part_of(path)} must not import {', '.join(sorted(wrong))}"


def test_the_package_imports_nothing_else_of_the_repository() -> None:
    imported = {
        name.partition(".")[0]: path for path in ROOT.rglob("*.py") for name in imported_names(path, ROOT.parent)
    }
    assert "torch" in imported
    assert not {"experiments", "tests", "scripts"} & imported.keys()


@pytest.mark.parametrize(
    ("statement", "parts"),
    [
        ("import hf_invact", ["hf_invact"]),
        ("import hf_invact.ops.eager", ["ops"]),
        ("from hf_invact.ops import eager", ["ops"]),
        ("from hf_invact import functional, nn", ["functional", "nn"]),
        ("from . import report", ["patching"]),
        ("from .report import PatchReport", ["patching"]),
        ("from .. import nn", ["nn"]),
        ("from ..curves.record import Curve", ["curves"]),
        ("if True: from ..trainer import Callback", ["trainer"]),
        ("import torch; from os import path", []),
    ],
)
def test_the_reader_of_imports_sees_every_form(
    statement: str, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: statement)
    assert list(imported_parts(ROOT / "patching" / "made_up.py")) == parts


def test_exports_what_it_says() -> None:
    assert sorted(hf_invact.__all__) == hf_invact.__all__
    assert all(hasattr(hf_invact, name) for name in hf_invact.__all__)
    promised = {
        *("patch_model", "unpatch_model", "inverted_activations", "InvActConfig", "PatchReport", "PatchingError"),
        *("functional", "nn", "memory", "register_activation", "register_block", "plan_memory", "plan_budget"),
        *("InvertedActivationsCallback", "InvActTrainingArguments", "InvActArgumentsMixin", "InvActTrainerMixin"),
    }
    assert promised <= set(hf_invact.__all__)


def test_a_name_that_does_not_exist_is_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'patch_modle'"):
        _ = hf_invact.patch_modle


def test_parts_are_imported_at_their_first_use() -> None:
    code = """if True:
        import sys
        import hf_invact
        assert not {"torch", "transformers"} & set(sys.modules)
        assert set(hf_invact.__all__) <= set(dir(hf_invact))
        assert hf_invact.nn.GELU.__module__ == "hf_invact.nn"
        assert "hf_invact.planning" not in sys.modules
        from hf_invact import *
        assert plan_memory is hf_invact.planning.plan_memory
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert result.returncode == 0, result.stderr


OPTIONAL = ["triton", "datasets", "evaluate", "matplotlib", "jinja2", "rich", "tensorboard"]
EFFECTS = """
import json, os, sys
import torch
from transformers import TrainingArguments, activations
from tests.models import MODEL_NAMES, loss_and_gradients, tiny_model

models = [tiny_model(name) for name in MODEL_NAMES]
for model in models:
    loss_and_gradients(model)  # Transformers sets some attributes of its classes at their first use

WATCHED = ("transformers.models.", "transformers.activations", "transformers.modeling_utils",
           "torch.nn.functional", "torch.nn.modules.", "torch.autograd.")
modules = [module for name, module in sorted(sys.modules.items()) if name.startswith(WATCHED)]
classes = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
classes.remove(torch.utils.hooks.RemovableHandle)  # it numbers the hooks that there ever were

def state():
    return {"environment": dict(os.environ), "activations": dict(activations.ACT2CLS),
            "threads": torch.get_num_threads(), "dtype": torch.get_default_dtype(),
            **{repr(holder): dict(vars(holder)) for holder in [*modules, *classes]}}

def changes(before):
    return [key for key, now in state().items() if now != before[key]]

before, imported = state(), set(sys.modules)
sys.modules.update((name, None) for name in sys.argv[1:] if name not in imported)  # importing one of these fails
import hf_invact
from hf_invact import *  # its parts are imported at their first use
effects = {"watched": len(before), "import": changes(before), "imported": sorted(set(sys.modules) - imported)}
before = state()
for model in models:
    hf_invact.patch_model(model)
    loss_and_gradients(model)
effects["patch"] = changes(before)
print(json.dumps(effects))
"""


@pytest.fixture(scope="module")
def effects() -> dict[str, Any]:
    """What importing the package, and then patching, does to an interpreter that uses Transformers already.

    It has none of the optional packages, so the package does without them.
    """
    command = [sys.executable, "-c", EFFECTS, *OPTIONAL]
    # Not this process's environment, which importing the package might have changed already.
    needed = {key: os.environ[key] for key in ("PATH", "HOME", "PYTHONPATH", "LD_LIBRARY_PATH") if key in os.environ}
    environment = {**needed, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT.parent, env=environment)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("step", ["import", "patch"])
def test_changes_no_class_no_function_and_no_environment_variable(step: str, effects: dict[str, Any]) -> None:
    assert effects["watched"] > 300
    assert effects[step] == []


def test_importing_brings_neither_the_scripts_nor_the_trainer_of_transformers(effects: dict[str, Any]) -> None:
    assert "hf_invact.trainer" in effects["imported"]
    assert "transformers.trainer" not in effects["imported"]
    assert not any(name.startswith("experiments") for name in effects["imported"])
