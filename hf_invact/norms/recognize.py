"""Recognizes which form a module computes: by its numbers, since many classes compute the same."""

from __future__ import annotations

import inspect
import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from .forms import FORMS
from .record import NormForm

# The dtypes of the input and of the parameters with which a module is run, and whether under autocast.
_RUNS = (
    (torch.float32, torch.float32, False),
    (torch.bfloat16, torch.bfloat16, False),
    (torch.float16, torch.float16, False),
    (torch.bfloat16, torch.float32, False),
    (torch.float32, torch.float32, True),
    (torch.bfloat16, torch.float32, True),
)
_LARGEST_EPS = 0.1
_COMMON_EPS = (1e-5, 1e-6, 1e-12)  # of classes that have it in their code
_ROWS, _WIDTH = 4, 48
_MANY_ELEMENTS = 1 << 18

Names = tuple[str | None, str | None]  # of weight and bias


class Run(NamedTuple):
    """What a module was called with, and its output."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    is_autocast: bool
    y: Tensor


class UnsuitableNorm(ValueError):
    """A module is not a norm of a known form. The message says why."""


@dataclass(frozen=True)
class Recognized:
    """What a module computes.

    Attributes:
        eps: is added to the variance. (None in `torch.nn.RMSNorm` is float32's, or for float64 inputs float64's.)
        weight, bias: the names of the module's parameters; None if it has none.
        dims: how many dimensions are normalised.
    """

    form: NormForm
    eps: float
    weight: str | None
    bias: str | None
    dims: int


def recognize(module: nn.Module) -> Recognized:
    """The form with which a module's results agree in every bit, in float32 and half precision, also under autocast.

    The module's code is run with other parameters, on the CPU; the module is not changed. Its class need not be known.

    Raises:
        UnsuitableNorm: the module is no norm, or one of an unknown form.

    >>> recognize(nn.LayerNorm(8)).form.name
    'layer_norm'
    """
    names = _parameters_of(module)
    # Whatever tensors the module has, and wherever new ones would be made.
    with torch.inference_mode(False), unset_fake_temporarily(), torch.device("cpu"):
        found = _agreeing(module, names, list(itertools.product(_candidates(module), _eps_of(module))), _ROWS)
        if len(found) > 1 and not _is_function_of_pytorch(module):
            # Forms that differ in the order of a sum differ in half precision in one of some ten thousand elements.
            found = _agreeing(module, names, found, _MANY_ELEMENTS // math.prod(_shape_of(module, names)))
    if not found:
        known = ", ".join(FORMS)
        raise UnsuitableNorm(f"{type(module).__name__} computes something else than the known forms ({known})")
    form, eps = found[0]
    return Recognized(form, eps, *names, len(_shape_of(module, names)))


def _candidates(module: nn.Module) -> list[NormForm]:
    """PyTorch's own function comes first for PyTorch's own module, and last for others."""
    return sorted(FORMS.values(), key=lambda form: form.function != _is_function_of_pytorch(module))


def _is_function_of_pytorch(module: nn.Module) -> bool:
    return type(module).forward in (nn.LayerNorm.forward, nn.RMSNorm.forward)


def _agreeing(
    module: nn.Module, names: Names, candidates: list[tuple[NormForm, float]], rows: int
) -> list[tuple[NormForm, float]]:
    """The forms, each with what it adds to the variance, whose results are the module's."""
    dims = len(_shape_of(module, names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns that rms_norm of two dtypes is not one kernel
        for run in _runs(module, names, rows):
            candidates = [candidate for candidate in candidates if _agrees(*candidate, dims, run)]
    return candidates


def _parameters_of(module: nn.Module) -> Names:
    """The names of weight and bias."""
    kind = type(module).__name__
    parameters = dict(module.named_parameters(recurse=False))
    if "forward" in vars(module):
        raise UnsuitableNorm(f"the forward of this {kind} has been replaced")
    if next(module.children(), None) is not None or next(module.buffers(), None) is not None or len(parameters) > 2:
        raise UnsuitableNorm(f"{kind} has more than a weight and a bias")
    if len(inspect.signature(type(module).forward).parameters) != 2:
        raise UnsuitableNorm(f"the forward of {kind} takes more than one tensor")
    if len({each.shape for each in parameters.values()}) > 1:
        raise UnsuitableNorm(f"the parameters of {kind} differ in shape")
    biases = [name for name in parameters if "bias" in name or "beta" in name]
    weights = [name for name in parameters if name not in biases]
    if len(weights) > 1 or len(biases) > 1 or any(each.dim() == 0 for each in parameters.values()):
        raise UnsuitableNorm(f"the parameters of {kind} are not a weight and a bias: {', '.join(parameters)}")
    return next(iter(weights), None), next(iter(biases), None)


def _eps_of(module: nn.Module) -> list[float]:
    """Numbers that the module holds and that may be what it adds to the variance."""
    own = [value for value in vars(module).values() if isinstance(value, float) and 0 < value < _LARGEST_EPS]
    if "eps" in vars(module) and vars(module)["eps"] is None:
        own.append(torch.finfo(torch.float32).eps)
    return list(dict.fromkeys(own)) or list(_COMMON_EPS)


def _shape_of(module: nn.Module, names: Names) -> tuple[int, ...]:
    name = names[0] or names[1]
    if name is not None:
        return tuple(getattr(module, name).shape)
    shape = getattr(module, "normalized_shape", None)
    return tuple(shape) if isinstance(shape, tuple | list) else (_WIDTH,)


def _runs(module: nn.Module, names: Names, rows: int) -> Iterator[Run]:
    """Runs of the module, but not of the dtypes that it refuses.

    Raises:
        UnsuitableNorm: it refuses float32.
    """
    shape, generator = _shape_of(module, names), torch.Generator().manual_seed(0)
    for x_dtype, dtype, is_autocast in _RUNS:
        weight, bias = (None if name is None else torch.randn(shape, generator=generator).to(dtype) for name in names)
        # Rows of several sizes, also such that the variance is about as large as what is added to it.
        sizes = torch.tensor([1.0, 30.0, 1e-2, 1e-3]).repeat(rows)[:rows].view(1, rows, *[1] * len(shape))
        x = ((torch.randn(2, rows, *shape, generator=generator) + 0.3) * sizes).to(x_dtype)
        try:
            y = _run(_with_parameters(module, dict(zip(names, (weight, bias), strict=True))), x, is_autocast)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            if x_dtype == dtype == torch.float32:
                raise UnsuitableNorm(
                    f"{type(module).__name__} could not be run on {tuple(x.shape)}: {error}"
                ) from error
            continue
        if not isinstance(y, Tensor) or y.shape != x.shape:
            raise UnsuitableNorm(f"{type(module).__name__} does not return a tensor of its input's shape")
        yield Run(x, weight, bias, is_autocast, y)


def _with_parameters(module: nn.Module, parameters: dict[str | None, Tensor | None]) -> nn.Module:
    """Another module with the same attributes, and with these parameters in place of its own."""
    other: nn.Module = object.__new__(type(module))  # `copy.copy` fails for the units of FSDP2
    vars(other).update(vars(module), _parameters=dict(module._parameters))
    for name, tensor in parameters.items():
        if name is not None and tensor is not None:
            other._parameters[name] = nn.Parameter(tensor)
    return other


@torch.no_grad()
def _run(module: nn.Module, x: Tensor, is_autocast: bool) -> object:
    """Without the module's hooks."""
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        return type(module).forward(module, x.clone())


@torch.no_grad()
def _agrees(form: NormForm, eps: float, dims: int, run: Run) -> bool:
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=run.is_autocast):
            y = form.forward(run.x, run.weight, run.bias, eps, dims)
    except RuntimeError:  # PyTorch's own functions refuse some pairs of dtypes
        return False
    return y.dtype == run.y.dtype and torch.equal(y, run.y)
