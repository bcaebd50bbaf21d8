"""The row of torch.compile; tests/test_compile.py says more about it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.combinations.loops import compiled_loop
from tests.combinations.training import TOLERANCES, Combination, check_saved_bytes, difference, record
from tests.compatibility import Matrix
from tests.models import each_model
from tests.test_compile import model_of

WHOLE_MODEL = Combination(
    "torch.compile",
    "whole model, one graph",
    model_of,
    note="One layer, without dropout. The compiled plain model already recomputes cheap functions.",
)


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@each_model
def test_a_compiled_model_trains_as_without_the_flag_and_is_compiled_once(name: str, matrix: Matrix) -> None:
    (plain, _), (patched, graphs) = (compiled_loop(WHOLE_MODEL.build(name), flag) for flag in (False, True))
    assert graphs == 1
    allowed = TOLERANCES[torch.float32]
    assert patched.losses == pytest.approx(plain.losses, rel=allowed.loss)
    assert difference(patched.gradients, plain.gradients) <= allowed.gradient
    check_saved_bytes(plain, patched)
    record(matrix, WHOLE_MODEL, name, plain, patched)
