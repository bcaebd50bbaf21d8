"""The caller's default dtype and device change neither results nor anything that is cached."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import pytest
import torch
from torch import Tensor

from hf_invact.curves import SILU, Curve
from hf_invact.ops import gate, invert, invert_prelu, invert_xielu
from hf_invact.ops.eager import formula, lookup, tables
from hf_invact.ops.eager.derivative import TABLE_FROM
from hf_invact.ops.inductor import compiler
from tests.helpers import each_curve, normal, output_and_gradients

SIZES = (1000, TABLE_FROM + 9)  # evaluated, and looked up


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


Default = Callable[[], AbstractContextManager[object]]
DEFAULTS: dict[str, Default] = {
    **{str(dtype): partial(default_dtype, dtype) for dtype in (torch.bfloat16, torch.float64)},
    "meta": partial(torch.device, "meta"),
}
each_default = pytest.mark.parametrize("default", DEFAULTS.values(), ids=DEFAULTS)


@pytest.fixture(autouse=True)
def _nothing_is_cached_yet() -> Iterator[None]:
    forget()
    yield
    forget()


def forget() -> None:
    kept = (tables.number_table, tables.midpoint_table, tables.line_table, tables._cells_needed)
    for cached in (*kept, formula._cached_constants, compiler._compiled, compiler.lanes_of):
        cached.cache_clear()
    lookup._last_used.tables.clear()


def assert_same_under(default: Default, compute: Callable[[], list[Tensor]]) -> None:
    with default():
        results = compute()
    forget()
    for result, expected in zip(results, compute(), strict=True):
        assert result.dtype == expected.dtype
        assert torch.equal(result, expected)


@pytest.mark.parametrize("size", SIZES, ids=["small", "large"])
@each_default
@each_curve
def test_activations_and_gates(curve: Curve, default: Default, size: int) -> None:
    tensors = [[normal(size, dtype=dtype, seed=seed) for seed in range(3)] for dtype in (torch.float32, torch.bfloat16)]

    def compute() -> list[Tensor]:
        results: list[Tensor] = []
        for x, up, dy in tensors:
            results += output_and_gradients(lambda x: invert(x, curve), x, dy=dy)
            results += output_and_gradients(lambda x, up: gate(x, up, curve), x, up, dy=dy)
        return results

    assert_same_under(default, compute)


@each_default
def test_learned_activations(default: Default) -> None:
    def xielu(x: Tensor, alpha_p: Tensor, alpha_n: Tensor) -> Tensor:
        return invert_xielu(x, alpha_p, alpha_n, beta, lambda x: torch.where(x > 0, x * x, torch.expm1(x) - x) + x)

    x, dy = normal(1000), normal(1000, seed=1)
    number, beta = torch.ones(1), torch.tensor(0.5)

    def compute() -> list[Tensor]:
        of_prelu = output_and_gradients(invert_prelu, x, number / 4, dy=dy)
        return [*of_prelu, *output_and_gradients(xielu, x, number, number, dy=dy)]

    assert_same_under(default, compute)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
@pytest.mark.parametrize("default", [partial(default_dtype, torch.float16), DEFAULTS["meta"]], ids=["float16", "meta"])
def test_compiled_gates(default: Default) -> None:
    x, up, dy = (normal(1000, dtype=torch.bfloat16, seed=seed) for seed in range(3))
    up[:9] = 0

    def compute() -> list[Tensor]:
        return list(output_and_gradients(lambda x, up: gate(x, up, SILU, backend="compile"), x, up, dy=dy))

    assert_same_under(default, compute)
