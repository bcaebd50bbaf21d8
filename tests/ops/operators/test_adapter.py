"""The operators for the input of an adapter by PyTorch's own checks, and which backend they call."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.library import opcheck

from hf_invact.ops.eager import adapter as eager
from hf_invact.ops.operators import adapter as operators
from tests.helpers import DTYPES, FOUR_DIMENSIONS, LAYOUTS, dtype_name, normal

RANK = 4
GRADIENTS_OF = ("both", "input", "weight")
ARGUMENTS = [
    *((torch.float32, torch.float32, FOUR_DIMENSIONS, layout) for layout in LAYOUTS),
    *((torch.float32, torch.float32, shape, "contiguous") for shape in ((9,), (2, 9))),
    (torch.float32, torch.float32, (7, 9), "transposed"),
    *((torch.bfloat16, dtype, (2, 3, 9), "contiguous") for dtype in DTYPES),
]
IDS = [
    f"{dtype_name(of_x)}-{dtype_name(dtype)}-{'x'.join(map(str, shape))}-{layout}"
    for of_x, dtype, shape, layout in ARGUMENTS
]
each_argument = pytest.mark.parametrize(("of_x", "dtype", "shape", "layout"), ARGUMENTS, ids=IDS)
each_p = pytest.mark.parametrize("p", [0.0, 0.3])


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def arguments_of(x: Tensor, dtype: torch.dtype, p: float, of: str = "both") -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The arguments of the operator, and of the one that computes gradients."""
    weight = normal(RANK, x.size(-1), seed=1).to(dtype)
    y, kept = operators.ADAPTER_INPUT(x, weight, dtype, p, "auto", None, seeded())
    dense = torch.empty_like(x)
    saved = None if of == "input" else x, None if of == "weight" else weight, kept if p else None
    layout = list(dense.shape), list(dense.stride())
    gradients = normal(*y.shape, seed=2).to(dtype), *saved, *layout, x.dtype, dtype, dtype, p, "auto"
    return (x, weight, dtype, p, "auto"), gradients


@each_argument
@each_p
@pytest.mark.parametrize("of", GRADIENTS_OF)
def test_schemas_and_fake_results(
    of: str, p: float, of_x: torch.dtype, dtype: torch.dtype, shape: tuple[int, ...], layout: str
) -> None:
    forward, gradients = arguments_of(LAYOUTS[layout](shape, of_x, 0), dtype, p, of)
    for operator, arguments in ((operators.ADAPTER_INPUT, forward), (operators.GRADIENTS, gradients)):
        opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "expanded"])
@each_p
@pytest.mark.parametrize("frozen", [None, 0, 1], ids=["trained", "frozen-input", "frozen-weight"])
def test_derivatives_and_compilation(frozen: int | None, p: float, layout: str) -> None:
    x = LAYOUTS[layout](FOUR_DIMENSIONS, torch.float64, 0)
    (*tensors, dtype, p, backend), gradients = arguments_of(x, torch.float64, p)
    leaves = [tensor.detach().requires_grad_(index != frozen) for index, tensor in enumerate(tensors)]
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    # With random numbers, what is computed twice differs.
    opcheck(operators.ADAPTER_INPUT, (*leaves, dtype, p, backend), test_utils=checks if p else [*checks, DYNAMIC])
    opcheck(operators.GRADIENTS, gradients)


DYNAMIC = "test_aot_dispatch_dynamic"


@pytest.mark.parametrize("of", GRADIENTS_OF)
@pytest.mark.parametrize("backend", ["triton", "compile"])
def test_the_backend_that_is_named_is_called(of: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But on a CPU PyTorch's own kernels in place of compiled ones."""
    forward, gradients = arguments_of(normal(2, 9), torch.float32, 0.5, of)
    spies = {name: Mock(wraps=eager) for name in ("eager", "triton", "compile")}
    monkeypatch.setattr(operators, "implementation", spies.__getitem__)
    monkeypatch.setattr(operators, "choose_backend", lambda name, like: name)
    for operator, arguments in ((operators.ADAPTER_INPUT, forward), (operators.GRADIENTS, gradients)):
        operator(*arguments[:-1], backend)
    called = {"both": "both_masked"}.get(of, "masked")
    expected = {"compile": "eager"}.get(backend, backend)
    assert {name: [call[0] for call in spy.mock_calls] for name, spy in spies.items()} == {
        name: ["drop", called] if name == expected else [] for name in spies
    }


def test_nothing_is_dropped_without_dropout() -> None:
    (x, weight, *_), _ = arguments_of(normal(2, 9), torch.float32, 0.0)
    y, kept = operators.ADAPTER_INPUT(x, weight, torch.float32, 0.0, "auto")
    assert torch.equal(y, torch.nn.functional.linear(x, weight))
    assert kept.numel() == 0


def test_a_generator_draws_the_mask() -> None:
    (x, weight, *_), _ = arguments_of(normal(20, 30), torch.float32, 0.5)
    first, second, other = (
        operators.ADAPTER_INPUT(x, weight, torch.float32, 0.5, "auto", None, generator)[1]
        for generator in (seeded(), seeded(), seeded().manual_seed(1))
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@each_p
def test_a_compiler_takes_an_operator_for_one_step(p: float) -> None:
    (x, weight, *others), _ = arguments_of(normal(2, 9), torch.float32, p)
    traced = torch.fx.experimental.proxy_tensor.make_fx(lambda *tensors: operators.ADAPTER_INPUT(*tensors, *others))
    calls = [node.target for node in traced(x, weight).graph.nodes if node.op == "call_function"]
    assert [call for call in calls if isinstance(call, OpOverload)] == [operators.ADAPTER_INPUT]
