"""Set before any library is imported: no hub, no processes that fight for the cores, and kernels without a GPU."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton's kernels run in Python then

from collections.abc import Iterator

import pytest

from tests.compatibility import Matrix


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-results", action="store_true", help="write what is measured to results/compatibility.json"
    )


@pytest.fixture(scope="session")
def matrix(request: pytest.FixtureRequest) -> Iterator[Matrix]:
    """Where tests of combinations record what they measure; see `Matrix.record`."""
    matrix = Matrix(is_written=request.config.getoption("--write-results"))
    yield matrix
    matrix.write()
