"""Whole gradients, and distances between two of them."""

from __future__ import annotations

import math

import pytest
import torch

from experiments.finetuning.gradients import cosine_distance, gradient, relative_error
from tests.models import batch as make_batch
from tests.models import tiny_model


@pytest.fixture(params=["bert", "llama"])
def model(request):
    return tiny_model(request.param).train()


def tensors(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(value).reshape(1) for value in values]


def test_a_gradient_is_what_backward_leaves(model):
    batch = make_batch(model)
    found = gradient(model, batch, seed=3)
    assert all(weight.grad is None for weight in model.parameters())
    torch.manual_seed(3)
    model(**batch).loss.backward()
    for part, weight in zip(found, model.parameters(), strict=True):
        expected = torch.zeros_like(weight) if weight.grad is None else weight.grad
        assert torch.equal(part, expected)


def test_dropout_draws_the_same_numbers_and_nobody_else_notices(model):
    batch = make_batch(model)
    before = torch.get_rng_state()
    one, other = gradient(model, batch, seed=5), gradient(model, batch, seed=5)
    assert all(map(torch.equal, one, other))
    assert torch.equal(torch.get_rng_state(), before)


def test_frozen_weights_have_no_part_in_it(model):
    frozen = next(model.parameters()).requires_grad_(False)
    found = gradient(model, make_batch(model))
    assert len(found) == sum(1 for _ in model.parameters()) - 1
    assert frozen.grad is None


def test_a_model_that_holds_gradients_is_refused(model):
    model(**make_batch(model)).loss.backward()
    with pytest.raises(ValueError, match="already has gradients"):
        gradient(model, make_batch(model))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((3.0, 4.0), (6.0, 8.0), 0.0),
        ((1.0, 0.0), (0.0, 2.0), 1.0),
        ((1.0, 0.0), (-3.0, 0.0), 2.0),
        ((1.0, 1.0), (1.0, 0.0), 1 - math.sqrt(0.5)),
    ],
    ids=["parallel", "orthogonal", "opposite", "45-degrees"],
)
def test_cosine_distance(one, other, expected):
    assert cosine_distance(tensors(*one), tensors(*other)) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("angle", [1e-3, 1e-6, 1e-9])
def test_small_distances_keep_their_digits(angle):
    """1 - cos(a) is a²/2, far below what is left of 1 minus a rounded cosine."""
    one = [torch.tensor([1.0, 0.0], dtype=torch.float64)]
    other = [torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)]
    assert cosine_distance(one, other) == pytest.approx(angle**2 / 2, rel=1e-3)


@pytest.mark.parametrize("broken", [math.nan, math.inf, 0.0], ids=["nan", "inf", "zero"])
def test_no_distance_from_what_has_no_direction(broken):
    assert math.isnan(cosine_distance(tensors(broken), tensors(1.0)))


def test_relative_error():
    assert relative_error(tensors(3.0, 4.5), tensors(3.0, 4.0)) == pytest.approx(0.1)


@pytest.mark.parametrize("distance", [cosine_distance, relative_error])
def test_gradients_of_different_models(distance):
    with pytest.raises(ValueError, match="different weights"):
        distance(tensors(1.0), tensors(1.0, 2.0))
