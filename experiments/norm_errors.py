"""Measures how far the gradients of norms are from exact ones, beside PyTorch's own, for results/norm-errors.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_invact.norms import FORMS, NormForm
from hf_invact.ops import NORM_SAVINGS, NormSaving, count_lost, normalize

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CHANNELS, ROWS, DRAWS, SEED, EPS = 576, 192, 3, 0, 1e-6
SIGNIFICANT_DIGITS = 3
FORMS_OF_TRANSFORMERS = ("llama", "gemma", "cohere", "layer_norm")
NAMES = ("x", "weight", "bias")
PLAIN = "plain"


@dataclass(frozen=True)
class Weights:
    """The parameters of norms of one form.

    Attributes:
        title: where they are from, or what they are like.
        norms: weight and bias of each norm, float32, shape (channels,).
    """

    form: NormForm
    title: str
    norms: list[tuple[Tensor, Tensor | None]]


def exact(form: NormForm, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dims: int = 1) -> Tensor:
    """A norm by its formula, in the dtype of the tensors, which is float64."""
    last = tuple(range(-dims, 0))
    x = x - x.mean(last, keepdim=True) if form.centred else x
    y = x * (x.square().mean(last, keepdim=True) + eps).rsqrt()
    y = y if weight is None else y * (weight + form.offset)
    return y if bias is None else y + bias


def effective_weights(channels: int) -> dict[str, Tensor]:
    """By what normalised inputs may be multiplied: float32, shape (channels,)."""

    def normal(seed: int) -> Tensor:
        return torch.randn(channels, generator=torch.Generator().manual_seed(seed))

    def with_zeros(count: int) -> Tensor:
        weight = normal(5)
        weight[:: math.ceil(channels / count)] = 0.0
        return weight

    scales = 10.0 ** (-5 * torch.rand(channels, generator=torch.Generator().manual_seed(4)))
    return {
        "ones": torch.ones(channels),
        "normal": normal(1),
        "near zero": normal(3) * scales,
        "a zero": with_zeros(1),
        "three zeros": with_zeros(3),
        "seven zeros": with_zeros(7),
        "all zeros": torch.zeros(channels),
        "negative": -normal(2).abs(),
        "passing zero": torch.linspace(-0.01, 0.01, channels),
        "huge": 300 * normal(6),
    }


def synthetic(names: tuple[str, ...] = FORMS_OF_TRANSFORMERS, channels: int = CHANNELS) -> Iterator[Weights]:
    """Weights of every kind, for each of these forms. A LayerNorm also has a small bias."""
    bias = 0.05 * torch.randn(channels, generator=torch.Generator().manual_seed(11))
    for name in names:
        form = FORMS[name]
        for title, weight in effective_weights(channels).items():
            yield Weights(form, title, [(weight - form.offset, bias if name == "layer_norm" else None)])


def measure(weights: Weights, rows: int = ROWS) -> dict[str, dict[str, dict[str, float]]]:
    """Distances of gradients from exact ones, relative to their size, over all norms and draws.

    Returns:
        By dtype, by gradient ("x", "weight", "bias"), and by what is saved: "plain" is PyTorch's own norm.
    """
    return {name: _measure(weights, dtype, rows) for name, dtype in DTYPES.items()}


def lost(weights: Weights) -> int:
    """How many channels, at most, a norm has whose input its output does not tell."""
    return max(count_lost(weights.form, weight, bias) for weight, bias in weights.norms)


def _measure(weights: Weights, dtype: torch.dtype, rows: int) -> dict[str, dict[str, float]]:
    sums: dict[str, dict[str, float]] = {}
    sizes: dict[str, float] = {}
    for weight, bias in weights.norms:
        parameters = [each.to(dtype) for each in (weight, bias) if each is not None]
        functions = _functions(weights.form)
        for seed in range(SEED, SEED + 2 * DRAWS, 2):
            x, dy = _random(rows, weight.numel(), dtype, seed)
            wide = [each.double() for each in (x, *parameters)]
            truth = _gradients(lambda x, *p: exact(weights.form, x, *_both(p), EPS), wide, dy.double())
            for name, size in zip(NAMES, truth, strict=False):
                sizes[name] = sizes.get(name, 0.0) + size.square().sum().item()
            for variant, function in functions.items():
                found = _gradients(function, [x, *parameters], dy)
                for name, gradient, right in zip(NAMES, found, truth, strict=False):
                    of_gradient = sums.setdefault(name, dict.fromkeys(functions, 0.0))
                    of_gradient[variant] += (gradient.double() - right).square().sum().item()
    return {
        name: {variant: _rounded(math.sqrt(error / (sizes[name] or 1.0))) for variant, error in errors.items()}
        for name, errors in sums.items()
    }


def _functions(form: NormForm) -> dict[str, Callable[..., Tensor]]:
    def plain(x: Tensor, *parameters: Tensor) -> Tensor:
        return form.forward(x, *_both(parameters), EPS)

    def saving(what: NormSaving) -> Callable[..., Tensor]:
        return lambda x, *parameters: normalize(x, *_both(parameters), form, EPS, 1, what)

    return {PLAIN: plain, **{what: saving(what) for what in NORM_SAVINGS}}


def _both(parameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
    return parameters[0], parameters[1] if len(parameters) > 1 else None


def _random(rows: int, channels: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, dy = (torch.randn(rows, channels, generator=generator) for _ in range(2))
    return (2 * x + 0.5).to(dtype), dy.to(dtype)


def _gradients(function: Callable[..., Tensor], tensors: list[Tensor], dy: Tensor) -> tuple[Tensor, ...]:
    inputs = [tensor.detach().requires_grad_() for tensor in tensors]
    y = function(*inputs)
    return torch.autograd.grad(y, inputs, dy.to(y.dtype))


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def table(results: Mapping[str, Any]) -> str:
    """Distances from exact gradients, plain's and those of norms that keep their output, in Markdown."""
    rows = [
        "| weights | form | bf16: x | weight | bias | fp32: x | weight | bias |",
        "| :-- | :-- | --: | --: | --: | --: | --: | --: |",
        *map(_row, results["norms"]),
    ]
    where = results["environment"]
    source = (
        f"Root mean square over {results['rows']} rows and {results['draws']} draws, relative to the gradient's size, "
        f"measured on {where['processor']}, torch {where['torch']}, seed {results['seed']}, by `{results['command']}`."
    )
    return "\n".join([*rows, "", source, ""])


def _row(norm: Mapping[str, Any]) -> str:
    cells = [_cell(norm, dtype, name) for dtype in ("bf16", "fp32") for name in NAMES]
    return "| " + " | ".join([norm["weights"], f"`{norm['form']}`", *cells]) + " |"


def _cell(norm: Mapping[str, Any], dtype: str, name: str) -> str:
    if norm["lost"]:
        return "left alone" if name == NAMES[0] else ""
    errors = norm["errors"][dtype].get(name)
    return "-" if errors is None else f"{errors[PLAIN]:.2g} → {errors['output']:.2g}"
