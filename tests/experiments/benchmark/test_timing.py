"""Timing in turns."""

from __future__ import annotations

import time

import pytest
import torch

from experiments.benchmark.timing import Effort, alternate, warm_up

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("seconds_of_one", "repetitions"), [(0.1, 10), (0.0, 20), (9.0, 3)], ids=["fits", "at most", "at least"]
)
def test_repetitions(seconds_of_one: float, repetitions: int) -> None:
    assert Effort(seconds=1.0, least=3, most=20).repetitions(seconds_of_one) == repetitions


def test_calls_take_turns_and_each_has_its_own_times() -> None:
    order: list[str] = []
    calls = {"short": lambda: order.append("short"), "long": lambda: (order.append("long"), time.sleep(0.01))}
    times = alternate(calls, CPU, Effort(seconds=0.0, least=9, most=9))
    turns = list(zip(order[::2], order[1::2], strict=True))
    assert len(turns) == 1 + 9
    assert set(turns) == {("short", "long"), ("long", "short")}
    assert {name: len(of_call) for name, of_call in times.items()} == {"short": 9, "long": 9}
    assert min(times["long"]) >= 0.01 > max(times["short"])


def test_failures_of_a_warm_up_are_those_that_raise() -> None:
    failures = warm_up({"sound": lambda: None, "broken": lambda: 1 // 0}, CPU)
    assert list(failures) == ["broken"]
    assert failures["broken"].record() == {"failed": "ZeroDivisionError: integer division or modulo by zero"}


@pytest.mark.gpu
def test_device_times_wait_for_the_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    large, small = (torch.zeros(size, device="cuda") for size in (1 << 28, 1 << 10))
    calls = {"large": lambda: large.add_(1), "small": lambda: small.add_(1)}
    times = alternate(calls, torch.device("cuda"), Effort(seconds=0.0, least=5, most=5))
    assert min(times["large"]) > max(times["small"]) > 0
