"""Counting live storages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from hf_invact.planning.peak.storages import BLOCK_BYTES, LiveStorages

WIDTH = 128
MATRIX = 4 * WIDTH * WIDTH


kinds = pytest.mark.parametrize("kind", [nullcontext, FakeTensorMode], ids=["real", "fake"])


@kinds
@pytest.mark.parametrize(
    ("make", "blocks"),
    [
        (lambda: torch.zeros(()), 1),
        (lambda: torch.zeros(128), 1),
        (lambda: torch.zeros(129), 2),
        (lambda: torch.zeros(129, dtype=torch.bfloat16), 1),
        (lambda: torch.zeros(0), 0),
        (lambda: torch.zeros(128).expand(100, 128), 1),
        (lambda: torch.zeros(256)[:2], 2),
        (lambda: torch.zeros(256).view(2, 128).t().add_(1), 2),
        (lambda: torch.zeros(128) + 1, 2),
        (lambda: torch.zeros(256).split(128), 2),
        (lambda: torch._foreach_add([torch.zeros(128), torch.zeros(128)], 1), 4),
    ],
    ids=["scalar", "full", "beyond", "half", "empty", "expanded", "slice", "views", "sum", "split", "foreach"],
)
def test_counts_storages_in_blocks(kind: Callable, make: Callable[[], object], blocks: int) -> None:
    with kind(), LiveStorages() as storages:
        make()
        assert storages.peak("") == ({None: blocks * BLOCK_BYTES} if blocks else {})


@kinds
def test_what_is_released_makes_room(kind: Callable) -> None:
    with kind(), LiveStorages() as storages:
        for _ in range(3):
            torch.zeros(256)
        assert storages.peak("") == {None: 2 * BLOCK_BYTES}
        kept = torch.zeros(128)
        view = kept[:1]
        del kept
        torch.zeros(256)
        assert storages.peak("") == {None: 3 * BLOCK_BYTES}
        del view


@kinds
def test_moments_have_peaks_of_their_own_and_begin_with_what_is_alive(kind: Callable) -> None:
    with kind(), LiveStorages() as storages:
        storages.begin("first")
        kept = torch.zeros(256)
        torch.zeros(512)
        storages.begin("second")
        torch.zeros(128)
        storages.begin("third")
        del kept
        torch.zeros(128)
        storages.begin("first")
    blocks = {moment: sum(storages.peak(moment).values()) / BLOCK_BYTES for moment in ("first", "second", "third")}
    assert blocks == {"first": 0, "second": 3, "third": 2}


@kinds
def test_a_mark_holds_for_the_whole_life_and_the_first_one_wins(kind: Callable) -> None:
    with kind():
        known = torch.zeros(128)
        with LiveStorages() as storages:
            storages.mark([known], "known")
            weight, other = torch.zeros(256), torch.zeros(384)
            torch.zeros(128)
            storages.mark([weight[:3], known], "weight")
            storages.mark_rest("rest")
            later = torch.zeros(0)
            storages.mark([later], "later")
    assert storages.peak("") == {"known": 512, "weight": 1024, "rest": 1536, None: 512}
    del other


@kinds
def test_what_is_forgotten_counts_until_then(kind: Callable) -> None:
    with kind(), LiveStorages() as storages:
        counter = torch.zeros(())
        storages.forget([counter])
        counter.add_(1)
        kept = torch.zeros(128)
        assert sum(storages.peak("").values()) == BLOCK_BYTES
        del counter
        assert len(torch.zeros(128)) == len(kept)
    assert sum(storages.peak("").values()) == 2 * BLOCK_BYTES


ROW = torch.ones(1, WIDTH)  # small, so the peak falls where two gradients of the weight are added


def joined(weight: Tensor) -> Tensor:
    """Two gradients are added, and nothing else references the first."""
    return ROW.mm(weight).mm(weight).sigmoid().sum()


def residual(weight: Tensor) -> Tensor:
    """The gradient of the sum takes two paths: the other path still references the first one to arrive."""
    inner = weight.relu()
    return (inner + inner.exp()).relu().sigmoid().sum()


def tied(weight: Tensor) -> Tensor:
    """The first gradient to arrive is a view with a live base, so autograd does not add in place."""
    return torch.nn.functional.linear(torch.nn.functional.linear(ROW, weight), weight).sigmoid().sum()


def accumulated(weight: Tensor) -> Tensor:
    """The second gradient is added to the parameter's own."""
    weight.relu().sum().backward()
    return weight.exp().sigmoid().sum()


def own(weight: Tensor) -> Tensor:
    return _AddsInBackward.apply(weight.relu()).sigmoid().sum()


class _AddsInBackward(torch.autograd.Function):
    """Its sum of temporaries is not a sum of gradients, so it has memory of its own."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.neg()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return gradient.exp() + gradient.abs()


@pytest.mark.parametrize("function", [joined, residual, tied, accumulated, own])
def test_the_backward_peak_is_what_the_allocator_sees(function: Callable[[Tensor], Tensor]) -> None:
    """Autograd adds gradients in place, but not under a dispatch mode: the count must be the same."""
    weight = torch.zeros(WIDTH, WIDTH, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function(weight).backward()
    changes = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = torch.zeros(WIDTH, WIDTH, requires_grad=True)
    with mode, LiveStorages() as storages:
        storages.mark([fake], "weight")
        function(fake).backward()
        storages.begin("after")
    assert storages.peak("")[None] // MATRIX == most // MATRIX
    assert storages.peak("after") == {"weight": MATRIX, None: MATRIX}  # its gradient
