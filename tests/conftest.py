"""Set before any library is imported: no hub, threads that use no core while they wait, and kernels without a GPU.

NumPy's threads cannot wait otherwise, so it has one: fits of curves would take ten times as long on busy cores.
"""

import gc
import importlib
import os
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton's kernels run in Python then; before anything imports it

from tests.compatibility import Matrix


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-results", action="store_true", help="write what is measured to results/compatibility.json"
    )


def pytest_collection_finish() -> None:
    """What was imported lives until the end, so no garbage collection during the tests has to look at it again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At the end of Python it is freed as usual; some extensions report what is not."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def matrix(request: pytest.FixtureRequest) -> Iterator[Matrix]:
    """Where tests of combinations record what they measure; see `Matrix.record`."""
    matrix = Matrix(is_written=request.config.getoption("--write-results"))
    yield matrix
    matrix.write()


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that apply Liger. It replaces classes of Transformers even for one model, which is undone here."""
    pytest.importorskip("liger_kernel")
    for model in ("Llama", "Mistral"):
        module = importlib.import_module(f"transformers.models.{model.lower()}.modeling_{model.lower()}")
        for name in (f"{model}MLP", f"{model}RMSNorm", "apply_rotary_pos_emb"):
            monkeypatch.setattr(module, name, getattr(module, name))


@pytest.fixture
def process_group() -> Iterator[None]:
    """This process as the only one of a group."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
