"""The operators by PyTorch's own checks: schemas, fake results (shape, dtype, strides) and derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.library import opcheck

from hf_invact.curves import GELU, Curve, softplus
from hf_invact.ops.eager import activation as eager
from hf_invact.ops.operators import activation as operators
from tests.helpers import DTYPES, FOUR_DIMENSIONS, HALF_DTYPES, LAYOUTS, Case, dtype_name

ARGUMENTS = [
    *((torch.float32, shape, "contiguous") for shape in ((), (3, 0, 2), (9,))),
    *((torch.float32, FOUR_DIMENSIONS, layout) for layout in LAYOUTS if layout != "contiguous"),
    *((dtype, (9,), "contiguous") for dtype in DTYPES if dtype != torch.float32),
]
IDS = [f"{dtype_name(dtype)}-{'x'.join(map(str, shape)) or 'scalar'}-{layout}" for dtype, shape, layout in ARGUMENTS]

each_argument = pytest.mark.parametrize(("dtype", "shape", "layout"), ARGUMENTS, ids=IDS)
each_curve = pytest.mark.parametrize("curve", [GELU, softplus()], ids=["with-bits", "without-bits"])
each_kind = pytest.mark.parametrize("kind", ["activation", "gate", "exact_activation", "exact_gate"])


def arguments_of(kind: str, case: Case) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The arguments of an operator, and of its gradient operator."""
    inputs = [case.input(seed) for seed in range(2 if kind.endswith("gate") else 1)]
    names = (case.curve.key, "auto")
    kept: list[Tensor | None] = list(inputs)
    if not kind.startswith("exact"):
        y, side = operator_of(kind)(*inputs, *names)
        kept = [y, *inputs[1:], None if case.curve.x_min is None else side]
    dy = Case(case.curve, case.dtype, case.shape).input(seed=2)
    return (*inputs, *names), (dy, *kept, *names)


def operator_of(name: str) -> OpOverload:
    operator: OpOverload = getattr(operators, name.upper())
    return operator


def with_gradients(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.detach().requires_grad_() if isinstance(value, Tensor) else value for value in arguments)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("activation", "forward"),
        ("activation_backward", "backward"),
        ("gate", "gate_forward"),
        ("gate_backward", "gate_backward"),
        ("exact_activation_backward", "exact_backward"),
        ("exact_gate_backward", "exact_gate_backward"),
    ],
)
def test_an_operator_calls_the_backend_that_is_named(name: str, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, backward = arguments_of(name.removesuffix("_backward"), Case(GELU, torch.float32, (9,)))
    *arguments, _ = backward if name.endswith("_backward") else forward
    spies = {backend: Mock(wraps=eager) for backend in ("eager", "compile")}
    monkeypatch.setattr(operators, "implementation", spies.__getitem__)
    operator_of(name)(*arguments, "compile")
    assert [call[0] for call in spies["compile"].mock_calls] == [function]
    assert spies["eager"].mock_calls == []


@pytest.mark.parametrize("kind", ["exact_activation", "exact_gate"])
def test_exact_operators_refuse_an_unknown_backend_as_well(kind: str) -> None:
    (*arguments, _), _ = arguments_of(kind, Case(GELU, torch.float32, (9,)))
    with pytest.raises(ValueError, match="unknown backend 'cuda'; known: auto, eager"):
        operator_of(kind)(*arguments, "cuda")


@each_argument
@each_kind
@each_curve
def test_schema_and_fake_results(
    curve: Curve, kind: str, dtype: torch.dtype, shape: tuple[int, ...], layout: str
) -> None:
    forward, backward = arguments_of(kind, Case(curve, dtype, shape, layout))
    for name, arguments in ((kind, forward), (f"{kind}_backward", backward)):
        if name != "gate_backward" or dtype != torch.float16:  # whose gate keeps its inputs
            opcheck(operator_of(name), arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("of_up", HALF_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("of_gate", [torch.float32, *HALF_DTYPES], ids=dtype_name)
@pytest.mark.parametrize("kind", ["gate", "exact_gate"])
def test_gates_of_two_dtypes(kind: str, of_gate: torch.dtype, of_up: torch.dtype) -> None:
    gate, up = (
        Case(GELU, dtype, FOUR_DIMENSIONS, layout).input(seed).requires_grad_()
        for seed, (dtype, layout) in enumerate([(of_gate, "contiguous"), (of_up, "transposed")])
    )
    opcheck(operator_of(kind), (gate, up, "gelu", "auto"), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layout", ["transposed", "expanded"])
@each_kind
@each_curve
def test_derivatives_and_compilation(curve: Curve, kind: str, layout: str) -> None:
    forward, backward = arguments_of(kind, Case(curve, torch.float64, FOUR_DIMENSIONS, layout))
    opcheck(operator_of(kind), with_gradients(forward))
    opcheck(operator_of(f"{kind}_backward"), backward)


@each_kind
@each_curve
def test_a_compiler_takes_an_operator_for_one_step(curve: Curve, kind: str) -> None:
    forward, _ = arguments_of(kind, Case(curve, torch.float32, (9,)))
    count = sum(isinstance(value, Tensor) for value in forward)
    traced = torch.fx.experimental.proxy_tensor.make_fx(lambda *tensors: operator_of(kind)(*tensors, *forward[count:]))
    graph = traced(*forward[:count]).graph
    calls = [node.target for node in graph.nodes if node.op == "call_function"]
    assert [call for call in calls if isinstance(call, OpOverload)] == [operator_of(kind)]


@pytest.mark.parametrize(("dtype", "nbytes"), [(torch.float32, 2), (torch.bfloat16, 2)], ids=["float32", "bfloat16"])
def test_side_bits_of_symbolic_sizes(dtype: torch.dtype, nbytes: int) -> None:
    def side_of(x: Tensor) -> Tensor:
        side: Tensor = operators.ACTIVATION(x, "gelu", "auto")[1]
        return side

    torch._dynamo.reset()
    compiled: Callable[[Tensor], Tensor] = torch.compile(side_of, backend="aot_eager", fullgraph=True, dynamic=True)
    assert compiled(torch.ones(9, dtype=dtype)).shape == (nbytes,)
    assert compiled(torch.ones(17, dtype=dtype)).shape == (nbytes + 1,)


@pytest.mark.parametrize("kind", ["activation", "gate"])
@pytest.mark.parametrize("size", [0, 1, 3], ids=lambda size: f"{size}-bytes")
def test_side_bits_of_another_output_are_refused(size: int, kind: str) -> None:
    _, (*others, side, curve, backend) = arguments_of(kind, Case(GELU, torch.float32, (9,)))
    changed = torch.zeros(size, dtype=side.dtype)
    with pytest.raises(ValueError, match=rf"output of 9 elements has 2 bytes of side bits, and {size} came"):
        operator_of(f"{kind}_backward")(*others, changed, curve, backend)
