"""Cases and references for the tests of norms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from experiments.norm_errors import effective_weights, exact
from hf_invact.norms import FORMS, LAYER_NORM, LLAMA, RMS_NORM, NormForm
from hf_invact.ops import NORM_SAVINGS, NormSaving, normalize
from tests.helpers import LAYOUTS, normal, output_and_gradients

EPS = 1e-6
SHAPE = (2, 8, 3, 80)
CHANNELS = SHAPE[-1]
WEIGHTLESS = ("olmo", "deepseek_v4")
WITH_BIAS = ("layer_norm", "layer_norm_1p", "deberta")

each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
each_of_three = pytest.mark.parametrize("form", [LLAMA, RMS_NORM, LAYER_NORM], ids=lambda form: form.name)
each_norm_saving = pytest.mark.parametrize("saving", NORM_SAVINGS)


@dataclass(frozen=True)
class Norm:
    """A form with parameters: a function of the input, and of those parameters that it has."""

    form: NormForm
    weight: Tensor | None
    bias: Tensor | None
    dims: int = 1
    eps: float = EPS

    @property
    def parameters(self) -> list[Tensor]:
        return [each for each in (self.weight, self.bias) if each is not None]

    def native(self, x: Tensor, *parameters: Tensor) -> Tensor:
        return self.form.forward(x, *self._both(parameters), self.eps, self.dims)

    def ours(self, saving: NormSaving = "output", backend: str | None = None) -> Callable[..., Tensor]:
        return lambda x, *parameters: normalize(
            x, *self._both(parameters), self.form, self.eps, self.dims, saving, backend
        )

    def exact(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """In the dtype of the tensors, which is float64."""
        return exact(self.form, x, *self._both(parameters), self.eps, self.dims)

    def exact_gradients(self, x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
        wide = [each.double() for each in (x, *self.parameters)]
        return output_and_gradients(self.exact, *wide, dy=dy.double())[1:]

    def _both(self, parameters: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor | None]:
        rest = iter(parameters)
        return None if self.weight is None else next(rest), None if self.bias is None else next(rest)


def norm_of(
    form: NormForm, shape: tuple[int, ...], dtype: torch.dtype, weight_dtype: torch.dtype | None = None
) -> Norm:
    """With random parameters, as this form has them, and no effective weight that is 0."""
    weight_dtype = weight_dtype or dtype
    weight = None if form.name in WEIGHTLESS else normal(*shape, dtype=weight_dtype, seed=7)
    weight = weight if weight is None or not form.offset else weight.abs_()
    bias = normal(*shape, dtype=weight_dtype, seed=8).mul_(0.1) if form.name in WITH_BIAS else None
    return Norm(form, weight, bias, len(shape))


def input_of(layout: str = "contiguous", dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return LAYOUTS[layout](shape, dtype, 0)


def run(norm: Norm, function: Callable[..., Tensor], x: Tensor) -> tuple[Tensor, ...]:
    """Output and gradients for a random gradient of the output."""
    dy = normal(*x.shape, dtype=norm.native(x, *norm.parameters).dtype, seed=9)
    return output_and_gradients(function, x, *norm.parameters, dy=dy)


@cache
def weight_vectors(channels: int, offset: float) -> dict[str, Tensor]:
    """Weights of every kind, float32."""
    return {name: weight - offset for name, weight in effective_weights(channels).items()}
