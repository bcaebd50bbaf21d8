"""Which channels are kept, what replaces a weight next to 0, and what the output tells of the others."""

from __future__ import annotations

import pytest
import torch

from hf_invact.norms import FORMS, LAYER_NORM, LLAMA
from hf_invact.ops import count_lost
from hf_invact.ops.channels import affine_of, count_kept, kept_channels, tells_output, without_zeros
from tests.helpers import TINY, normal

CHANNELS = 256
CPU = torch.device("cpu")


@pytest.mark.parametrize(("channels", "count"), [(1, 1), (64, 1), (127, 1), (128, 2), (192, 3), (256, 4), (4096, 4)])
def test_narrow_norms_keep_fewer(channels: int, count: int) -> None:
    assert count_kept(channels, torch.ones(channels), None) == count
    assert count_kept(channels, None, None) == 0


def test_without_a_bias_the_smallest_weights_are_kept() -> None:
    weight = normal(CHANNELS) + 3 * normal(CHANNELS).sign()
    weight[[5, 50, 100, 200]] = torch.tensor([0.0, -1e-30, 1e-3, -1.0])
    assert sorted(kept_channels(weight, None, CPU).tolist()) == [5, 50, 100, 200]


def test_with_a_bias_those_with_the_largest_bias_beside_the_weight() -> None:
    weight, bias = torch.ones(CHANNELS), torch.full((CHANNELS,), 0.5)
    weight[[5, 50]], bias[[50]] = 0.0, 0.0
    weight[100], bias[200] = 0.01, -30.0
    weight[7], bias[7] = 1e-20, 0.0
    assert sorted(kept_channels(weight, bias, CPU).tolist()) == [5, 50, 100, 200]
    assert 200 in kept_channels(None, bias, CPU)


def test_other_weights_next_to_zero_are_replaced() -> None:
    weight = torch.ones(CHANNELS)
    weight[:6] = torch.tensor([0.0, -0.0, 1e-20, -1e-20, 1e-3, -1e-3])
    kept = torch.tensor([1, 3])
    replaced = without_zeros(weight, kept)
    expected = weight.clone()
    expected[[0, 2]] = TINY
    assert torch.equal(replaced, expected)
    ordinary = torch.ones(CHANNELS)
    assert without_zeros(ordinary, kept) is ordinary


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_tells_the_normalised_input(dtype: torch.dtype) -> None:
    weight, bias, normalised = normal(CHANNELS), 0.1 * normal(CHANNELS, seed=1), normal(9, CHANNELS, seed=2)
    for each in (None, bias):
        y = normalised * weight if each is None else normalised * weight + each
        affine = affine_of(weight, each, dtype)
        found = y.to(dtype).float() * affine.inverse + (0.0 if affine.shift is None else affine.shift)
        ratio = 1.0 if each is None else 1 + (each / weight).abs()
        assert ((found - normalised).abs() <= 2 * torch.finfo(dtype).eps * ratio * (1 + normalised.abs())).all()


def test_what_a_bias_hides_counts_as_zero() -> None:
    weight, bias = torch.tensor([1e-30, 2.0**-60, 0.0]), torch.tensor([1.0, 1.0, -3.0])
    kept = torch.empty(0, dtype=torch.int64)
    for dtype in (torch.bfloat16, torch.float32):
        affine = affine_of(without_zeros(weight, kept), bias, dtype)
        assert affine.shift is not None
        assert affine.inverse is not None
        assert (affine.inverse.abs().max(), affine.shift.abs().max()) < (1e-3, 1e-3)


def test_lost_channels_are_those_beyond_the_kept_ones() -> None:
    weight, bias = torch.ones(CHANNELS), torch.full((CHANNELS,), 15.0)
    assert count_lost(LAYER_NORM, weight, bias) == 0
    bias[:7] = -17.0
    assert count_lost(LAYER_NORM, weight, bias) == 3
    assert count_lost(LAYER_NORM, None, bias) == 3
    assert count_lost(FORMS["layer_norm_1p"], torch.zeros(CHANNELS), bias) == 3
    assert count_lost(LLAMA, torch.zeros(CHANNELS), None) == 0


def test_float16_does_not_tell() -> None:
    float16, float32, bfloat16 = torch.float16, torch.float32, torch.bfloat16
    assert not tells_output(LLAMA, float16, float16, None)
    assert tells_output(LLAMA, float16, float32, None)  # whose output is in float32
    assert not tells_output(FORMS["gemma"], float16, float32, None)
    assert tells_output(FORMS["gemma"], bfloat16, bfloat16, None)
