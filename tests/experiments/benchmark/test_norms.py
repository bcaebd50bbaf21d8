"""Norms in the benchmark: all implementations compute the same, and what is kept and moved is what models keep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from experiments.benchmark.operators import norms
from experiments.benchmark.operators.implementations import Implementation, Unavailable
from experiments.benchmark.operators.norms import NORMS, Norm
from hf_invact.memory import SavedActivations

SHAPE = ROWS, CHANNELS = 8, 64
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
each_norm = pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.name)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def prepared(name: str, norm: Norm, dtype: torch.dtype) -> Implementation:
    options = {"backend_name": "eager"} if name == "inverted" else {}
    dy, inputs = norm.tensors(SHAPE, dtype, torch.Generator().manual_seed(0))
    result: Implementation = getattr(norms, name)(norm, dy=dy, inputs=inputs, **options)
    return result


@each_norm
@each_dtype
def test_the_inverted_one_computes_what_the_native_one_does(dtype: torch.dtype, norm: Norm) -> None:
    ours, theirs = (prepared(name, norm, dtype).calls for name in ("inverted", "native"))
    assert torch.equal(ours["forward"]()[0], theirs["forward"]())
    direct = ours["backward"]()[: 3 if norm.form.centred else 2]
    assert all(map(torch.equal, direct, ours["autograd"]()))
    assert all(map(torch.equal, theirs["backward"](), theirs["autograd"]()))
    for gradient, exact in zip(direct, theirs["backward"](), strict=True):
        assert gradient.dtype == exact.dtype == dtype
        assert (gradient.double() - exact.double()).norm() < 4 * torch.finfo(dtype).eps * exact.double().norm()


@each_norm
@each_dtype
def test_what_is_inverted_keeps_its_output_where_that_tells_enough(dtype: torch.dtype, norm: Norm) -> None:
    kept: list[Tensor] = []
    ours = prepared("inverted", norm, dtype)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        (gradient, *_) = ours.calls["autograd"]()
    assert gradient.shape == SHAPE
    output = ours.calls["forward"]()[0]
    whole = [tensor for tensor in kept if tensor.shape == SHAPE]
    assert len(whole) == 1
    assert torch.equal(whole[0], output) == (dtype != torch.float16)


# Bytes per element in half precision.
@pytest.mark.parametrize(
    ("kind", "forward", "backward"),
    [("inverted", 2 + 2, 4 + 2), ("native", 8 + 7 * 4, 16 + 17 * 4)],
)
def test_bytes(kind: str, forward: float, backward: float) -> None:
    traffic, elements = getattr(NORMS[-1], f"{kind}_traffic"), 1 << 10
    assert traffic.bytes("forward", elements, itemsize=2) == forward * elements
    assert traffic.bytes("backward", elements, itemsize=2) == backward * elements
    assert traffic.bytes("autograd", elements, itemsize=2) == (forward + backward) * elements


def test_llamas_norm_is_that_of_transformers() -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm = NORMS[-1]
    _, (x, weight) = norm.tensors(SHAPE, torch.bfloat16, torch.Generator().manual_seed(0))
    module = LlamaRMSNorm(CHANNELS, norms.EPS)
    module.weight = nn.Parameter(weight)
    with SavedActivations(module) as of_the_module:
        expected = module(x.requires_grad_())
    with SavedActivations(module) as ours:
        found = norm.native(x, module.weight)
    assert torch.equal(found, expected)
    assert ours.total_bytes == of_the_module.total_bytes


def test_liger_needs_a_gpu() -> None:
    with pytest.raises(Unavailable, match="need a GPU"):
        prepared("liger", NORMS[0], torch.float32)
