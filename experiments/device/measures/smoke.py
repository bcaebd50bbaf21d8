"""Every backend runs every kind of operator, forward and backward, and agrees with float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_invact import functional
from hf_invact.ops import BACKENDS, adapter_input, check_device

from ...benchmark.settings import DTYPES
from ...benchmark.timing import significant
from ..case import Case, Conditions

ROWS, COLUMNS = 64, 4096
DROPOUT = 0.05
SECONDS = 60.0  # what compiles takes most of them


@dataclass(frozen=True)
class Check:
    """An operator of this package, and the same as PyTorch has it.

    Attributes:
        inverted: takes the inputs and ``backend``.
        plain: takes the same inputs in float64.
        inputs: how many, each of shape (ROWS, COLUMNS).
    """

    name: str
    inverted: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    inputs: int


def _adapter(x: Tensor, weight: Tensor, backend: str) -> Tensor:
    torch.manual_seed(0)
    return adapter_input(x, weight.float(), torch.float32, DROPOUT, backend)


def _plain_adapter(x: Tensor, weight: Tensor) -> Tensor:
    torch.manual_seed(0)  # masks of float64 are not those of float32
    return F.linear(x * F.dropout(torch.ones_like(x, dtype=torch.float32), DROPOUT), weight)


def _layer_norm(x: Tensor, weight: Tensor, backend: str) -> Tensor:
    return functional.layer_norm(x, (COLUMNS,), 1 + weight[0] / 8, weight[1] / 8, backend=backend)


def _plain_layer_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.layer_norm(x, (COLUMNS,), 1 + weight[0] / 8, weight[1] / 8)


# A kind of site that comes gets a line here.
CHECKS = (
    Check("gelu", functional.gelu, F.gelu, 1),
    Check("gate", partial(functional.gate, activation="silu"), lambda gate, up: F.silu(gate) * up, 2),
    Check("adapter input", _adapter, _plain_adapter, 2),
    Check("layer norm", _layer_norm, _plain_layer_norm, 2),
)
# The largest root mean square error of the output and of each gradient, relative to that of what they should be.
TOLERANCES = {"fp32": 1e-5, "bf16": 1e-2}


def cases(kind: str) -> list[Case]:
    """Each check, dtype and backend; the backends that compile come last."""
    return [
        Case(f"{check.name}, {backend}, {dtype}", partial(measure, check, backend, dtype), SECONDS)
        for backend in sorted(BACKENDS, key=("eager", "triton", "compile").index)
        for check in CHECKS
        for dtype in TOLERANCES
    ]


def measure(check: Check, backend: str, dtype: str, conditions: Conditions) -> dict[str, Any]:
    """The errors of the output and the gradients, and which of them is too large."""
    generator = torch.Generator(conditions.device).manual_seed(conditions.seed)
    options: dict[str, Any] = {"generator": generator, "device": conditions.device}
    dy, *inputs = (torch.randn(ROWS, COLUMNS, **options).to(DTYPES[dtype]) for _ in range(1 + check.inputs))
    try:
        check_device(backend, [dy])
    except RuntimeError as error:
        return {"unavailable": str(error)}
    found = _run(partial(check.inverted, backend=backend), dy, inputs)
    expected = _run(check.plain, dy.double(), [each.double() for each in inputs])
    names = ("output", *(f"gradient {number}" for number in range(1, 1 + check.inputs)))
    errors = {name: _error(*pair) for name, *pair in zip(names, found, expected, strict=True)}
    limit = TOLERANCES[dtype]
    wrong = [f"{name} by {error:.2g}" for name, error in errors.items() if not error <= limit]  # NaN, too
    return {"errors": errors, **({"failed": f"off {', '.join(wrong)}, more than {limit:g}"} if wrong else {})}


def _run(operator: Callable[..., Tensor], dy: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    leaves = [each.detach().requires_grad_() for each in inputs]
    output = operator(*leaves)
    return output.detach(), *torch.autograd.grad(output, leaves, dy[:, : output.size(1)])


def _error(found: Tensor, expected: Tensor) -> float:
    return significant(((found.double() - expected).norm() / expected.norm()).item())
