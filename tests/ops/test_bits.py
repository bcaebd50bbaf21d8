"""Eight bools to a byte and back."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_invact.ops.bits import BITS, pack, packed_size, unpack

octets = st.lists(st.lists(st.booleans(), min_size=BITS, max_size=BITS), max_size=40)


def packed(flags: torch.Tensor) -> torch.Tensor:
    out = torch.empty(packed_size(flags.numel()), dtype=torch.uint8)
    pack(flags, out=out)
    return out


@settings(deadline=None)
@given(octets)
def test_round_trip(groups: list[list[bool]]) -> None:
    flags = torch.tensor([flag for group in groups for flag in group], dtype=torch.bool)
    assert torch.equal(unpack(packed(flags)), flags)


@pytest.mark.skipif(sys.byteorder != "little", reason="the order of the bits is that of the bytes of an integer")
@settings(deadline=None)
@given(octets)
def test_bit_i_is_bool_i(groups: list[list[bool]]) -> None:
    flags = torch.tensor([flag for group in groups for flag in group], dtype=torch.bool)
    assert packed(flags).tolist() == [sum(flag << i for i, flag in enumerate(group)) for group in groups]


def test_round_trip_of_all_bytes() -> None:
    every_byte = torch.arange(256, dtype=torch.uint8)
    flags = unpack(every_byte)
    assert flags.dtype == torch.bool
    assert flags.view(torch.uint8).max() == 1
    assert torch.equal(packed(flags), every_byte)


def test_packs_into_a_part_of_a_tensor() -> None:
    out = torch.full((4,), 7, dtype=torch.uint8)
    pack(torch.ones(2 * BITS, dtype=torch.bool), out=out[1:3])
    assert out.tolist() == [7, 255, 255, 7]


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 1), (7, 1), (8, 1), (9, 2), (16, 2), (17, 3)])
def test_packed_size(count: int, size: int) -> None:
    assert packed_size(count) == size
