"""The methods that inverted activations are compared with, by name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_invact.curves import Curve
from hf_invact.ops import invert
from hf_invact.patching import InvActConfig, inverted_activations

from ..benchmark.steps.variants import checkpointing
from .derivative import StoredDerivative
from .elementwise import Maker, approximated, approximated_activations
from .few_bit import FewBit
from .method import Function, Method
from .published import Published
from .quantized import Noise, QuantizedInput
from .recompute import recomputed_activations

FEW_BIT = "Few-Bit Backward, arXiv 2202.00441"
INVERTED = "Inverted Activations, arXiv 2407.15545"


def _elementwise(name: str, title: str, source: str, maker: Callable[[], Maker]) -> Method:
    """A method that replaces only activations.

    Args:
        maker: called once for each model or function.
    """

    def install(model: PreTrainedModel) -> AbstractContextManager[None]:
        return approximated_activations(model, maker())

    def function(curve: Curve) -> Function:
        approximation = maker()(curve)
        return lambda x: approximated(x, curve.forward, approximation)

    return Method(name, title, source, False, install, function)


def _few_bit(bits: int) -> Method:
    title = f"derivative in {bits} bits"
    return _elementwise(f"few-bit-{bits}", title, FEW_BIT, lambda: partial(FewBit, bits=bits))


def _quantized(bits: int, range_dtype: torch.dtype) -> Maker:
    noise = Noise()
    return lambda curve: QuantizedInput(curve, bits, range_dtype, noise)


def _inverted(name: str, title: str, source: str, plan: str) -> Method:
    config = InvActConfig(plan=plan, sites=("activation",))

    def install(model: PreTrainedModel) -> AbstractContextManager[Any]:
        return inverted_activations(model, config)

    return Method(name, title, source, False, install, lambda curve: lambda x: invert(x, curve))


def _native(curve: Curve) -> Function:
    def function(x: Tensor) -> Tensor:
        return curve.forward(x)

    return function


_PLAIN = Method("plain", "plain", "", True, lambda model: nullcontext(), _native)
_BASELINES = (
    _PLAIN,
    _inverted("inverted", "inverted gate or activation (ours)", "", "auto"),
    _inverted("inverted-activation", "inverted activation alone (ours)", INVERTED, "output"),
    Method("checkpointing", "checkpointing of layers", "checkpointing, arXiv 1604.06174", True, checkpointing, _native),
)
_METHODS = (
    _elementwise("published", "inverted activation, published formulas", INVERTED, lambda: Published),
    *map(_few_bit, (4, 3, 2)),
    _elementwise("mesa-8", "input in 8 bits", "Mesa, arXiv 2111.11124", lambda: _quantized(8, torch.float32)),
    _elementwise("actnn-2", "input in 2 bits", "ActNN, arXiv 2104.14129", lambda: _quantized(2, torch.bfloat16)),
    _elementwise(
        *("nested-forward-ad", "derivative in the compute dtype", "nested forward AD, arXiv 2209.10778"),
        lambda: StoredDerivative,
    ),
    Method("recompute", "activation recomputed", "", True, recomputed_activations, _native),
)
METHODS = MappingProxyType({method.name: method for method in _METHODS})
"""The other approximations, and exact recomputation."""
COMPARED = MappingProxyType({method.name: method for method in (*_BASELINES, *_METHODS)})
"""These, and what they are compared with: the plain model (first), ours, and checkpointing."""
