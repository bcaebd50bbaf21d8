"""A probe draws random numbers of its own, and does not affect any other generator."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_invact import patch_model
from hf_invact.patching.isolation.randomness import own_random_numbers
from tests.models import tiny_model

CPU = torch.device("cpu")


def test_the_random_numbers_of_another_training_thread_are_unaffected() -> None:
    def states(draws: int) -> list[bytes]:
        torch.manual_seed(0)
        found = []
        for _ in range(draws):
            nn.functional.dropout(torch.ones(64, 64), 0.5)
            found.append(torch.get_rng_state().numpy().tobytes())
        return found

    expected = states(300)
    model, done = tiny_model("bert"), threading.Event()

    def patch() -> None:
        while not done.is_set():
            patch_model(model)

    thread = threading.Thread(target=patch)
    thread.start()
    try:
        assert states(300) == expected
    finally:
        done.set()
        thread.join()


DRAWS = {
    "dropout": lambda x: nn.functional.dropout(x, 0.5),
    "rand": lambda x: x * torch.rand([]),
    "rand_like": lambda x: x * torch.rand_like(x),
    "randint": lambda x: x * torch.randint(1, 9, x.shape),
    "low randint": lambda x: x * torch.randint(9, x.shape),
    "randperm": lambda x: x[torch.randperm(len(x))],
    "normal": lambda x: x * torch.empty_like(x).normal_(),
    "multinomial": lambda x: x * torch.multinomial(x.detach().abs(), 2).sum(),
    "attention": lambda x: nn.functional.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.5),
    "rrelu": lambda x: nn.functional.rrelu(-x, training=True),
    "native dropout": lambda x: torch.native_dropout(x, 0.5, True)[0],
}


@pytest.mark.parametrize("name", DRAWS)
def test_numbers_are_the_same_every_time_and_not_from_the_global_generator(name: str) -> None:
    def draw() -> tuple[Tensor, Tensor]:
        with own_random_numbers(CPU):
            return DRAWS[name](x), DRAWS[name](x)

    x = torch.arange(1.0, 65.0).view(8, 8).requires_grad_()
    state = torch.get_rng_state()
    first, second = draw()
    assert not torch.equal(first, second)
    again = draw()
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_the_mask_of_native_dropout_is_kept_as_by_the_kernel() -> None:
    x = torch.ones(1000, requires_grad=True)
    with own_random_numbers(CPU):
        y, mask = torch.native_dropout(x, 0.25, True)
        same, _ = torch.native_dropout(x, 0.25, False)
        none, _ = torch.native_dropout(x, 1.0, True)
    assert torch.equal(y, mask / 0.75)
    assert mask.dtype == torch.bool
    assert 0.7 < mask.float().mean() < 0.8
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(dx, y)
    assert torch.equal(same, x)
    assert not none.any()


def test_a_seed_that_is_set_inside_is_restored() -> None:
    state = torch.get_rng_state()
    with own_random_numbers(CPU):
        torch.manual_seed(12345)
    if threading.active_count() == 1:
        assert torch.equal(torch.get_rng_state(), state)


def test_a_block_without_weights_that_draws() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.act, self.down = nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.down(self.act(self.up(x))) * torch.rand(1), 0.5)

    (real,) = patch_model(nn.ModuleList([Block()])).sites
    with FakeTensorMode():
        (fake,) = patch_model(nn.ModuleList([Block()])).sites
    assert fake == real
    assert fake.plan == "output"
