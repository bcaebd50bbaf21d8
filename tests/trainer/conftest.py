"""Every training run collects garbage, which is ten times as fast without the objects of libraries."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def frozen_libraries() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
