"""The peak memory of a real training step on a CPU, by the events of PyTorch's allocator."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, optim
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

CPU = 0  # PyTorch's number of the device


def step_peak(model: PreTrainedModel, batch: Mapping[str, Tensor], optimizer: optim.Optimizer) -> int:
    """Bytes at the peak of a step, with what is there before it: weights, optimizer state, the batch.

    Args:
        model: without a cache, which would be kept too.
        optimizer: takes a step first, after which it has its state.
    """

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    there = _bytes([*model.parameters(), *model.buffers(), *batch.values(), *tree_leaves([*optimizer.state.values()])])
    return there + allocated_at_the_peak(step)


def allocated_at_the_peak(act: Callable[[], None]) -> int:
    """The most bytes that are allocated on a CPU at once, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        act()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    now = most = 0
    for event in sorted((each for each in events if each.get("name") == "[memory]"), key=lambda each: each["ts"]):
        if event["args"]["Device Type"] == CPU:
            now += event["args"]["Bytes"]
            most = max(most, now)
    return most


def _bytes(leaves: Iterable[Any]) -> int:
    storages = {}
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            storages[leaf.untyped_storage()._cdata] = leaf.untyped_storage().nbytes()
    return sum(storages.values())
