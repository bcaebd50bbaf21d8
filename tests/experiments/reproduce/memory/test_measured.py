"""The logic of measuring on a GPU, with a meter of our own on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from experiments.reproduce.memory import measured as memory_measured
from experiments.reproduce.memory.cases import CASES, OURS, PLAIN, MemoryCase, MemoryVariant
from experiments.reproduce.memory.measured import EMULATED, OUT_OF_MEMORY, measure_kept
from hf_invact.nn import InvertedActivation

QUICK = {case.key: case for case in CASES["quick"]}
CPU = torch.device("cpu")
each_case = pytest.mark.parametrize("key", [key for key, case in QUICK.items() if not case.quantized])


def small(key: str) -> MemoryCase:
    return replace(QUICK[key], batch_size=1, seq_len=16)


def meter(*readings: int) -> Callable[[], int]:
    left: Iterator[int] = iter(readings)
    return lambda: next(left)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # from PEFT
@each_case
def test_tells_what_a_forward_pass_leaves_behind(key: str) -> None:
    found = measure_kept(small(key), OURS, CPU, meter(1000, 1234))
    assert found == {"measured_bytes": 234, "measured_note": None}


@pytest.mark.parametrize(("variant", "count"), [(PLAIN, 0), (OURS, 4)], ids=["plain", "ours"])
def test_the_variant_is_what_runs(variant: MemoryVariant, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, seen = memory_measured._forward, []

    def watched(case: MemoryCase, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append(sum(isinstance(module, InvertedActivation) for module in model.modules()))
        return forward(case, model, batch)

    monkeypatch.setattr(memory_measured, "_forward", watched)
    measure_kept(small("bert-base"), variant, CPU, meter(0, 1))
    assert seen == [count, count]


def test_what_does_not_fit_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(memory_measured, "_real_model", full)
    found = measure_kept(small("llama-7b"), PLAIN, CPU, meter())
    assert found == {"measured_bytes": None, "measured_note": OUT_OF_MEMORY}


def test_what_is_emulated_is_not_measured() -> None:
    found = measure_kept(QUICK["mistral-published"], PLAIN, CPU, meter())
    assert found == {"measured_bytes": None, "measured_note": EMULATED}
