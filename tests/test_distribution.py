"""What is in the wheel and in the source distribution, and that the wheel works on its own in a new environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

import hf_invact

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
# By setuptools itself: pip would look for an isolated environment's packages on the network.
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
TO_TRAIN = """
import sys

import hf_invact
from torch import ones
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

assert "site-packages" in hf_invact.__file__, hf_invact.__file__


class Ones(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {"input_ids": ones(4).long(), "labels": 1}


sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
model = BertForSequenceClassification(BertConfig(vocab_size=8, **sizes))
options = {"max_steps": 1, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
Trainer(model, TrainingArguments(sys.argv[1], **options), train_dataset=Ones()).train()
"""


class Built(NamedTuple):
    wheel: Path
    sdist: Path


def run(command: list[str], cwd: Path, **environment: str) -> str:
    """The output of a command that finds nothing of the repository by environment variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    ended = subprocess.run(
        command, cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def tracked() -> list[str]:
    """The repository's files: those that git tracks or would add."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return [name for name in run(command, ROOT).splitlines() if (ROOT / name).is_file()]


def build(kind: str, source: Path, target: Path) -> Path:
    """Build a "wheel" or an "sdist" of a folder, without a network."""
    target.mkdir(parents=True)
    output = run([sys.executable, "-c", BUILD, f"build_{kind}", str(target)], source)
    return target / output.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The source distribution of a copy of the repository, and the wheel that is built from it alone."""
    folder = tmp_path_factory.mktemp("distribution")
    copy = folder / "repository"
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    (copy / "results" / "demo").mkdir()
    (copy / "results" / "demo" / "report.html").write_text("What a script wrote.")
    sdist = build("sdist", copy, folder / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return Built(build("wheel", unpacked, folder / "wheel"), sdist)


def test_the_wheel_holds_the_package_alone(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = set(archive.namelist())
    package = {name for name in tracked() if name.startswith("hf_invact/")}
    assert {name for name in names if ".dist-info/" not in name} == package
    assert all(name.endswith(".py") or name == "hf_invact/py.typed" for name in package)
    assert {name.partition(".dist-info/")[2] for name in names - package} == {
        *("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"),
    }


def test_the_wheel_requires_only_what_the_package_imports(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        metadata = archive.read(name).decode()
    required = [Requirement(line) for line in re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE)]
    always = {each.name for each in required if each.marker is None}
    assert always == {"torch", "transformers", "accelerate"}
    assert re.findall(r"^Provides-Extra: (.*)$", metadata, re.MULTILINE) == ["quantization"]


def test_the_source_distribution_holds_what_git_tracks(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        members = [member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()]
    written = {"PKG-INFO", "setup.cfg", *(name for name in members if name.startswith("hf_invact.egg-info/"))}
    assert set(members) - written == set(tracked())


@pytest.fixture(scope="module")
def environment(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment with the wheel. The rest comes from the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    python = programs / "python"
    (packages,) = run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).split()
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (Path(packages) / "shared.pth").write_text("\n".join(shared))
    # --ignore-installed: the environment that runs the tests may have the package too.
    install = ["install", "--quiet", "--no-index", "--no-deps", "--ignore-installed", str(built.wheel)]
    run([sys.executable, "-m", "pip", "--python", str(python), *install], folder)
    return programs


def test_the_wheel_describes_the_machine(environment: Path, tmp_path: Path) -> None:
    assert re.match(rf"hf_invact +{hf_invact.__version__}\n", run([str(environment / "hf-invact"), "info"], tmp_path))


def test_the_wheel_plans_a_local_config(environment: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = ["config.json", "--batch-size", "2", "--seq-len", "16", "--json"]
    plan = json.loads(run([str(environment / "hf-invact"), "plan", *options], tmp_path))
    assert [site["plan"] for site in plan["sites"]] == ["gate-output", *["norm-output"] * 3]


def test_the_wheel_patches_the_model_of_a_script(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TO_TRAIN)
    command = [str(environment / "hf-invact"), "run", "train.py", "out", "--use_inverted_activations"]
    run(command, tmp_path, HF_HUB_OFFLINE="1")
    outcome = json.loads((tmp_path / "out" / "inverted_activations.json").read_text())
    assert [site["plan"] for site in outcome["sites"]] == ["output", None, "norm-output", "norm-output"], outcome


def test_nothing_of_the_repository_can_be_imported_there(environment: Path, tmp_path: Path) -> None:
    code = "from importlib.util import find_spec; print(*map(find_spec, ('experiments', 'tests', 'scripts')))"
    assert run([str(environment / "python"), "-c", code], tmp_path).split() == ["None"] * 3
