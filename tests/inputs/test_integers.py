"""Which tensors stay real among fake ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from hf_invact.inputs.integers import REAL_TOKENS, RealIntegers, RealSettings, padding_mask

REAL: dict[str, Callable[[], Any]] = {
    "positions": lambda: torch.arange(4),
    "a mask": lambda: torch.ones(4, dtype=torch.bool),
    "what is computed from positions": lambda: torch.arange(4).max() > 2,
    "a random scalar": lambda: torch.rand([]) < 2,
}
FAKE: dict[str, Callable[[], Any]] = {
    "numbers": lambda: torch.ones(4),
    "random numbers": lambda: torch.rand(4),
    "what is computed from both": lambda: torch.arange(4) + torch.ones(4),
}


@pytest.mark.parametrize("make", REAL.values(), ids=list(REAL))
def test_settings_have_values(make: Callable[[], Any]) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), RealSettings():
        assert bool(make().any())


@pytest.mark.parametrize("make", FAKE.values(), ids=list(FAKE))
def test_numbers_have_no_values(make: Callable[[], Any]) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), RealSettings():
        assert isinstance(make(), FakeTensor)


def test_of_large_batches_positions_are_fake() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), RealIntegers():
        assert isinstance(torch.arange(4), FakeTensor)


@pytest.mark.parametrize("shape", [(2, 3), (1, REAL_TOKENS + 1)], ids=["few", "many"])
def test_a_padding_mask_hides_something_also_among_fake_tensors(shape: tuple[int, int]) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), RealIntegers():
        mask = padding_mask(*shape)
        assert mask.shape == shape
        assert not mask.all()
