"""Every training run collects garbage; without the libraries' own objects that takes a tenth of the time."""

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
