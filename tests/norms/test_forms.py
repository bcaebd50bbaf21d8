"""Every form against the classes of PyTorch and Transformers that compute it, bit by bit."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_invact.norms import FORMS, UnsuitableNorm, form_by_name, recognize
from tests.helpers import dtype_name, normal

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
WIDTH, EPS = 96, 1e-6


@dataclass(frozen=True)
class Example:
    """A class and the form that it has; built with the arguments."""

    path: str
    form: str
    arguments: tuple[Any, ...] = (WIDTH,)
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        module, _, name = self.path.rpartition(".")
        norm: nn.Module = getattr(importlib.import_module(module), name)(*self.arguments, **self.options)
        for parameter in norm.parameters():
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.dim()))
        return norm

    def __str__(self) -> str:
        settings = "-".join(f"{key}={value}" for key, value in self.options.items())
        return self.path.rpartition(".")[2] + (f"-{settings}" if settings else "")


def of_transformers(model: str, name: str, form: str, *arguments: Any, **options: Any) -> Example:
    path = f"transformers.models.{model}.modeling_{model}.{name}"
    return Example(path, form, arguments or (WIDTH,), options)


EXAMPLES = [
    Example("torch.nn.LayerNorm", "layer_norm"),
    Example("torch.nn.LayerNorm", "layer_norm", ((4, 24),)),
    Example("torch.nn.LayerNorm", "layer_norm", options={"bias": False}),
    Example("torch.nn.LayerNorm", "layer_norm", options={"elementwise_affine": False}),
    Example("torch.nn.RMSNorm", "rms_norm"),
    Example("torch.nn.RMSNorm", "rms_norm", ((4, 24),), {"eps": 1e-5}),
    Example("torch.nn.RMSNorm", "rms_norm", options={"elementwise_affine": False}),
    *(of_transformers(name.lower(), f"{name}RMSNorm", "llama") for name in ("Llama", "Mistral", "Qwen3", "Mamba2")),
    of_transformers("llama4", "Llama4TextRMSNorm", "llama"),
    of_transformers("llama4", "Llama4TextL2Norm", "llama", EPS),
    of_transformers("nanochat", "NanoChatRMSNorm", "llama", EPS),
    of_transformers("gemma", "GemmaRMSNorm", "gemma"),
    of_transformers("gemma3", "Gemma3RMSNorm", "gemma"),
    of_transformers("qwen3_next", "Qwen3NextRMSNorm", "gemma"),
    of_transformers("gemma4", "Gemma4RMSNorm", "olmo2"),
    of_transformers("gemma3n", "Gemma3nRMSNorm", "llama", WIDTH, with_scale=False),
    of_transformers("olmo2", "Olmo2RMSNorm", "olmo2"),
    of_transformers("gpt_oss", "GptOssRMSNorm", "olmo2"),
    of_transformers("moshi", "MoshiRMSNorm", "olmo2"),
    of_transformers("helium", "HeliumRMSNorm", "olmo2"),
    of_transformers("nemotron_h", "NemotronHRMSNorm", "olmo2"),
    of_transformers("t5", "T5LayerNorm", "t5"),
    of_transformers("idefics", "IdeficsRMSNorm", "t5"),
    of_transformers("cohere", "CohereLayerNorm", "cohere"),
    of_transformers("olmo", "OlmoLayerNorm", "olmo"),
    of_transformers("nemotron", "NemotronLayerNorm1P", "layer_norm_1p"),
    of_transformers("videoprism", "VideoPrismLayerNorm", "layer_norm_1p"),
    of_transformers("deberta", "DebertaLayerNorm", "deberta"),
    of_transformers("deepseek_v4", "DeepseekV4RMSNorm", "olmo2"),
    of_transformers("deepseek_v4", "DeepseekV4UnweightedRMSNorm", "deepseek_v4", EPS),
    of_transformers("esmc", "EsmcLayerNorm", "layer_norm"),
]
each_example = pytest.mark.parametrize("example", EXAMPLES, ids=str)
each_pair = pytest.mark.parametrize(
    ("of_x", "of_weight"), [(FP32, FP32), (BF16, BF16), (FP16, FP16), (BF16, FP32), (FP16, FP32)], ids=dtype_name
)


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Rows of several sizes and means, one of zeros among them."""
    sizes = torch.tensor([1.0, 0.0, 1e-3, 40.0]).repeat(16).view(64, *[1] * len(shape))
    return ((normal(7, 64, *shape) + 0.3) * sizes).to(dtype)


@each_pair
@each_example
def test_every_bit_is_that_of_the_class(example: Example, of_x: torch.dtype, of_weight: torch.dtype) -> None:
    norm = example.build().to(of_weight)
    found, form = recognize(norm), form_by_name(example.form)
    weight, bias = (None if name is None else getattr(norm, name) for name in (found.weight, found.bias))
    shape = example.arguments[0] if isinstance(example.arguments[0], tuple) else (WIDTH,)
    x = inputs(shape, of_x)
    expected = norm(x)
    y = form.forward(x, weight, bias, found.eps, len(shape))
    evaluated = form.evaluate(x, form.effective(weight), bias, found.eps, len(shape))
    for result in (y, evaluated.y):
        assert (result.dtype, result.stride()) == (expected.dtype, expected.stride())
        assert torch.equal(result, expected)


@each_example
def test_the_form_is_recognized(example: Example) -> None:
    norm = example.build()
    found = recognize(norm)
    assert found.form.name == example.form
    assert found.dims == (len(example.arguments[0]) if isinstance(example.arguments[0], tuple) else 1)
    assert {name for name in (found.weight, found.bias) if name} == dict(norm.named_parameters()).keys()


@pytest.mark.parametrize("has_weight", [True, False])
@pytest.mark.parametrize("of_x", [FP32, BF16, FP16], ids=dtype_name)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_statistics(form: Any, of_x: torch.dtype, has_weight: bool) -> None:
    """In float32, whatever the dtype of the input: half precision would make gradients worse than they need to be."""
    x = inputs((WIDTH,), of_x)
    weight = normal(WIDTH, dtype=of_x, seed=1) if has_weight and not form.input_is_widened else None
    _, mean, reciprocal = form.evaluate(x, form.effective(weight), None, EPS)
    exact = x.double() - x.double().mean(-1, keepdim=True) if form.centred else x.double()
    expected = (exact.square().mean(-1, keepdim=True) + EPS).rsqrt()
    assert reciprocal.dtype == FP32
    torch.testing.assert_close(reciprocal.double(), expected, rtol=1e-6, atol=0)
    assert (mean is None) == (not form.centred)
    if mean is not None:
        assert mean.dtype == FP32
        torch.testing.assert_close(mean.double(), x.double().mean(-1, keepdim=True), rtol=1e-5, atol=1e-6)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown form of a norm 'lama'; known: layer_norm"):
        form_by_name("lama")


def test_recognizing_leaves_the_module_as_it_was() -> None:
    norm, calls = nn.LayerNorm(WIDTH, device="meta"), []
    norm.register_forward_hook(lambda *arguments: calls.append(arguments))
    before, state = dict(vars(norm)), torch.random.get_rng_state()
    recognize(norm)
    assert vars(norm) == before
    assert norm.weight.is_meta
    assert calls == []
    assert torch.equal(torch.random.get_rng_state(), state)


class TwoWeights(nn.RMSNorm):
    def __init__(self) -> None:
        super().__init__(WIDTH)
        self.scale = nn.Parameter(torch.ones(WIDTH))


class Nearly(nn.Module):
    """Off by one rounding from nn.RMSNorm's result."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(WIDTH)), EPS

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight)


def replaced() -> nn.Module:
    norm = nn.RMSNorm(WIDTH)
    norm.forward = lambda x: x
    return norm


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (nn.Linear(WIDTH, WIDTH, bias=False), "Linear computes something else than the known forms"),
        (nn.Linear(WIDTH, WIDTH), "parameters of Linear differ in shape"),
        (nn.Sequential(nn.RMSNorm(WIDTH)), "Sequential has more than a weight and a bias"),
        (nn.BatchNorm1d(WIDTH), "BatchNorm1d has more"),
        (nn.GroupNorm(4, WIDTH), "GroupNorm"),
        (TwoWeights(), "not a weight and a bias: weight, scale"),
        (Nearly(), "Nearly computes something else"),
        (replaced(), "forward of this RMSNorm has been replaced"),
        (nn.Bilinear(2, 2, 2, bias=False), "takes more than one tensor"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_other_modules_are_refused_with_the_reason(norm: nn.Module, reason: str) -> None:
    with pytest.raises(UnsuitableNorm, match=reason):
        recognize(norm)
