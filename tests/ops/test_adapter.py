"""The input of an adapter: every bit is PyTorch's own, and what is kept is the input itself and a bit per element."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_invact.ops import adapter_input
from hf_invact.ops.bits import packed_size
from tests.helpers import (
    DTYPES,
    HALF_DTYPES,
    LAYOUTS,
    dtype_name,
    normal,
    record_saved,
)
from tests.ops.adapters import RANK, Run, assert_same_bits, each_arrangement, pefts


def assert_within_roundings_of_sums(ours: Tensor | None, theirs: Tensor | None, computed: torch.dtype) -> None:
    assert ours is not None
    assert theirs is not None
    assert ours.dtype == theirs.dtype
    assert ((ours - theirs).abs() <= RANK * torch.finfo(computed).eps * theirs.abs().max()).all()


PAIRS = [
    *((dtype, dtype) for dtype in DTYPES),
    *((half, torch.float32) for half in HALF_DTYPES),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float64),
    (torch.float64, torch.float32),
]
each_pair = pytest.mark.parametrize(("of_x", "dtype"), PAIRS, ids=dtype_name)


@each_arrangement
@each_pair
def test_every_bit_is_pytorchs(of_x: torch.dtype, dtype: torch.dtype, shape: tuple[int, ...], layout: str) -> None:
    x = LAYOUTS[layout](shape, of_x, 0)
    for p, autocast, frozen in itertools.product((0.0, 0.1, 0.5), (None, *HALF_DTYPES), ("", "x", "weight")):
        run = Run(dtype, p, autocast, frozen)
        ours, theirs = run.of(adapter_input, x), run.of(pefts, x)
        if frozen == "weight" and x.dim() > 2 and not x.is_contiguous():
            # Of a frozen weight PyTorch multiplies batch by batch, whose sums of four products have another order.
            assert_within_roundings_of_sums(ours.pop("dx"), theirs.pop("dx"), autocast or dtype)
        assert_same_bits(ours, theirs, run)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Of one to four dimensions, which lie in memory in any order, with gaps between them or without."""
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    order = draw(st.permutations(range(len(shape))))
    steps = draw(st.lists(st.sampled_from([1, 1, 2]), min_size=len(shape), max_size=len(shape)))
    stored = normal(*(shape[dim] * steps[dim] for dim in order), dtype=draw(st.sampled_from(DTYPES)))
    back = sorted(range(len(shape)), key=lambda dim: order[dim])
    return stored.permute(back)[tuple(slice(None, None, step) for step in steps)]


# PyTorch's products of these are those of matrices that lie in memory column by column, with sums of another order.
COLUMN_MAJOR = (normal(1, dtype=torch.float64), normal(2, 2, 2, dtype=torch.float64).permute(1, 2, 0))


@settings(deadline=None, max_examples=200)
@example(COLUMN_MAJOR[0], torch.float32, 0.0, None)
@example(COLUMN_MAJOR[1], torch.float32, 0.0, None)
@given(tensors(), st.sampled_from(DTYPES), st.floats(0, 1), st.sampled_from([None, *HALF_DTYPES]))
def test_any_tensor_and_probability(x: Tensor, dtype: torch.dtype, p: float, autocast: torch.dtype | None) -> None:
    run = Run(dtype, p, autocast)
    assert_same_bits(run.of(adapter_input, x), run.of(pefts, x), run)


@pytest.mark.parametrize("x", COLUMN_MAJOR, ids=["one number", "three dimensions"])
def test_gradients_that_can_be_differentiated_have_the_same_bits(x: Tensor) -> None:
    found = []
    for function in (adapter_input, pefts):
        leaves = x.clone().requires_grad_(), normal(RANK, x.size(-1), seed=1).requires_grad_()
        y = function(*leaves, torch.float32, 0.0)
        gradients = torch.autograd.grad(y, leaves, normal(*y.shape, seed=3), create_graph=True)
        found.append({"dx": gradients[0].detach(), "dweight": gradients[1].detach()})
    assert_same_bits(*found)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, -0.0])
def test_numbers_that_a_mask_does_not_make_zero(value: float, dtype: torch.dtype) -> None:
    x = normal(6, 24, dtype=dtype)
    x[::2, ::3] = value
    run = Run(dtype, 0.5)
    assert_same_bits(run.of(adapter_input, x), run.of(pefts, x))


@pytest.mark.parametrize("frozen", ["", "x", "weight"])
def test_everything_is_dropped(frozen: str) -> None:
    run = Run(torch.float32, 1.0, frozen=frozen)
    assert_same_bits(run.of(adapter_input, normal(6, 24)), run.of(pefts, normal(6, 24)))


# What is kept.

COUNT = 6 * 24
BITS = packed_size(COUNT)


@dataclass(frozen=True)
class Kept:
    """Adapters of one input, of COUNT elements, and the bytes that they keep together besides their weights."""

    of_x: torch.dtype
    dtype: torch.dtype
    p: float
    expected: int
    adapters: int = 1
    autocast: torch.dtype | None = None
    frozen: str = ""


BF16, FP32 = torch.bfloat16, torch.float32
KEPT = {
    "dropout": Kept(FP32, FP32, 0.1, 4 * COUNT + BITS),
    "dropout-three": Kept(FP32, FP32, 0.1, 4 * COUNT + 3 * BITS, adapters=3),
    "dropout-half-input": Kept(BF16, FP32, 0.1, 2 * COUNT + 3 * BITS, adapters=3),
    "dropout-autocast": Kept(BF16, FP32, 0.1, 2 * COUNT + 3 * BITS, adapters=3, autocast=BF16),
    "no-dropout": Kept(FP32, FP32, 0.0, 4 * COUNT, adapters=3),
    "no-dropout-half-input": Kept(BF16, FP32, 0.0, 2 * COUNT, adapters=3),
    "no-dropout-autocast": Kept(FP32, FP32, 0.0, 4 * COUNT, adapters=3, autocast=BF16),
    "frozen-weight": Kept(FP32, FP32, 0.1, 3 * BITS, adapters=3, frozen="weight"),
    "frozen-weight-no-dropout": Kept(BF16, FP32, 0.0, 0, adapters=3, frozen="weight"),
    "frozen-input": Kept(BF16, FP32, 0.1, 2 * COUNT + 3 * BITS, adapters=3, frozen="x"),
}


def bytes_kept(saved: list[Tensor], weights: list[Tensor]) -> int:
    """Of distinct storages, without those of the weights, which are there anyway."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in saved}
    rank_sized = {tensor.untyped_storage().data_ptr() for tensor in saved if tensor.numel() == weights[0].numel()}
    return sum(nbytes for pointer, nbytes in storages.items() if pointer not in rank_sized)


@pytest.mark.parametrize("case", KEPT.values(), ids=KEPT)
def test_the_input_is_kept_once_and_a_bit_per_element_and_adapter(case: Kept) -> None:
    x = normal(6, 24, dtype=case.of_x).requires_grad_(case.frozen != "x")
    weights = [
        normal(RANK, 24, dtype=case.dtype, seed=seed).requires_grad_(case.frozen != "weight")
        for seed in range(case.adapters)
    ]
    with record_saved() as saved, torch.autocast("cpu", case.autocast, enabled=case.autocast is not None):
        outputs = [adapter_input(x, weight, case.dtype, case.p) for weight in weights]
    assert len(outputs) == case.adapters
    assert bytes_kept(saved, weights) == case.expected
    is_kept = any(tensor.data_ptr() == x.data_ptr() for tensor in saved)
    assert is_kept == (case.frozen != "weight")


def test_of_a_part_of_a_larger_tensor_the_part_is_kept() -> None:
    x, weight = normal(6, 48)[:, :24].requires_grad_(), normal(RANK, 24).requires_grad_()
    with record_saved() as saved:
        y = adapter_input(x, weight, torch.float32, 0.1)
    assert y.requires_grad
    assert bytes_kept(saved, [weight]) == 4 * COUNT + BITS


def test_nothing_is_kept_where_nothing_is_differentiated() -> None:
    x, weight = normal(6, 24), normal(RANK, 24)
    with record_saved() as saved:
        adapter_input(x, weight, torch.float32, 0.1)
        with torch.no_grad():
            adapter_input(x.requires_grad_(), weight.requires_grad_(), torch.float32, 0.1)
    assert saved == []


# Bad input.


@dataclass(frozen=True)
class Wrong:
    """Arguments that PyTorch refuses."""

    x: Tensor
    weight: Tensor
    dtype: torch.dtype = torch.float32
    p: float = 0.1
    autocast: bool = False


def _trained(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype, requires_grad=True)


WRONG = {
    "negative": Wrong(_trained(6, 24), _trained(4, 24), p=-0.1),
    "above-one": Wrong(_trained(6, 24), _trained(4, 24), p=1.5),
    "nan": Wrong(_trained(6, 24), _trained(4, 24), p=torch.nan),
    "features": Wrong(_trained(6, 24), _trained(4, 23)),
    "no-features": Wrong(_trained(), _trained(4, 24)),
    "weight-of-three-dimensions": Wrong(_trained(6, 24), _trained(2, 4, 24)),
    "dtype": Wrong(_trained(6, 24), _trained(4, 24, dtype=torch.bfloat16)),
    "dtype-autocast": Wrong(_trained(6, 24), _trained(4, 24, dtype=torch.float64), autocast=True),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_errors_are_pytorchs(case: Wrong) -> None:
    with torch.autocast("cpu", enabled=case.autocast):
        with pytest.raises((RuntimeError, ValueError)) as expected:
            pefts(case.x, case.weight, case.dtype, case.p)
        with pytest.raises(expected.type, match=f"^{re.escape(str(expected.value))}$"):
            adapter_input(case.x, case.weight, case.dtype, case.p)


@pytest.mark.parametrize("p", [0.0, 0.1])
def test_an_unknown_backend_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="unknown backend 'cuda'; known: auto, eager"):
        adapter_input(_trained(6, 24), _trained(4, 24), torch.float32, p, "cuda")
