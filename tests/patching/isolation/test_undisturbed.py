"""Everything that a forward pass changes is restored after a probe, each thing independently."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, MovingAveragePerChannelMinMaxObserver

from hf_invact import PatchingError, patch_model
from hf_invact.patching.isolation.undisturbed import undisturbed
from hf_invact.patching.isolation.writes import LARGE

CPU = torch.device("cpu")


class Block(nn.Module):
    """The base class of the tests' blocks. Calls `leave` in each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)
        self.prepare()
        self.norm = nn.BatchNorm1d(8)

    def prepare(self) -> None: ...

    def leave(self, x: Tensor) -> None: ...

    def forward(self, x: Tensor) -> Tensor:
        self.leave(x)
        y: Tensor = self.norm(self.down(self.act(self.up(x))).transpose(1, 2))
        return y


def assert_left_as_it_was(block: Block) -> None:
    """Patching has to probe the block, and to change neither its state nor its mode."""
    block.eval()
    before = {name: value.clone() for name, value in block.state_dict().items()}
    (site,) = patch_model(nn.Sequential(block, nn.Tanh())).sites
    assert site.before is not None, site.reason
    after = block.state_dict()
    assert {name: value.shape for name, value in after.items()} == {k: v.shape for k, v in before.items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(module.training for module in block.modules())


def test_a_buffer_that_grows_and_what_comes_after_it() -> None:
    class Grows(Block):
        def prepare(self) -> None:
            self.register_buffer("lowest", torch.tensor([]))

        def leave(self, x: Tensor) -> None:
            low = x.detach().amin((0, 1))
            self.lowest.resize_(low.shape).copy_(low)

    block = Grows()
    buffer, storage = block.lowest, block.lowest.untyped_storage()
    assert_left_as_it_was(block)
    assert block.lowest is buffer
    assert buffer.untyped_storage()._cdata == storage._cdata
    assert storage.nbytes() == 0


def test_observers_of_quantization_aware_training() -> None:
    class Quantized(Block):
        def prepare(self) -> None:
            self.quantize = FakeQuantize(
                MovingAveragePerChannelMinMaxObserver, -128, 127, qscheme=torch.per_channel_symmetric, dtype=torch.qint8
            )

        def leave(self, x: Tensor) -> None:
            self.quantize(self.up.weight)

    assert_left_as_it_was(Quantized())


def test_containers_tensors_and_submodules() -> None:
    class Collects(Block):
        def prepare(self) -> None:
            self.inputs: list[Tensor] = []
            self.counts = {"calls": [0], "shapes": {1}}
            self.recent: deque[int] = deque([1], maxlen=2)
            self.total = torch.zeros(())
            self.made: nn.Module | None = None

        def leave(self, x: Tensor) -> None:
            self.inputs.append(x)
            self.counts["calls"].append(len(self.inputs))
            self.counts["shapes"].add(x.shape)
            self.recent.extend([2, 3])
            self.total += 1
            self.lazily = nn.Linear(8, 8)
            self.register_buffer("new", x.detach())
            del self.made

    block = Collects()
    inputs, names = block.inputs, list(vars(block))
    assert_left_as_it_was(block)
    assert block.inputs is inputs == []
    assert (block.counts, list(block.recent), block.total.item()) == ({"calls": [0], "shapes": {1}}, [1], 0.0)
    assert list(vars(block)) == names
    assert list(block._modules) == ["up", "act", "down", "norm"]


def test_weights_that_a_forward_pass_freezes_writes_to_or_replaces() -> None:
    class Writes(Block):
        def prepare(self) -> None:
            self.extra = nn.Parameter(torch.ones(8))

        def leave(self, x: Tensor) -> None:
            self.up.weight.data.clamp_(-0.01, 0.01)
            with torch.no_grad():
                torch._foreach_add_([self.down.weight], 1.0)
            self.up.bias.requires_grad_(False)
            self.extra = nn.Parameter(torch.zeros(4))

    block = Writes()
    extra, version = block.extra, block.up.weight._version
    assert_left_as_it_was(block)
    assert block.extra is extra
    assert block.up.bias.requires_grad
    assert block.up.weight._version == version


def test_random_numbers_of_all_kinds() -> None:
    class Draws(Block):
        def prepare(self) -> None:
            self.generator = torch.Generator().manual_seed(1)

        def leave(self, x: Tensor) -> None:
            torch.rand(1)
            torch.randn(1, generator=self.generator)
            random.random()
            numpy.random.rand()

    block = Draws()
    before = torch.get_rng_state(), block.generator.get_state(), random.getstate(), numpy.random.get_state()[1].copy()
    assert_left_as_it_was(block)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(block.generator.get_state(), before[1])
    assert random.getstate() == before[2]
    assert (numpy.random.get_state()[1] == before[3]).all()


def test_a_graph_from_before_can_still_be_run_backward() -> None:
    block = Block().eval()
    x = torch.randn(2, 4, 8, requires_grad=True)
    y = block(x).sum()
    patch_model(nn.Sequential(block, nn.Tanh()))
    y.backward()
    assert x.grad is not None


class Stubborn(dict[str, Any]):
    """Cannot be emptied."""

    def clear(self) -> None:
        raise RuntimeError("not mine")


def test_what_cannot_be_restored_is_an_error_and_all_else_is_restored() -> None:
    class Keeps(Block):
        def prepare(self) -> None:
            self.stubborn = Stubborn()

    block = Keeps().eval()
    model = nn.Sequential(block, nn.Tanh())
    with pytest.raises(
        PatchingError, match=r"running Keeps .* contents of stubborn of Keeps \(RuntimeError: not mine\)"
    ):
        patch_model(model)
    assert type(block.act) is nn.GELU
    assert not block.norm.training
    assert block.norm.num_batches_tracked == 0


def test_what_is_restored_when_the_block_raises() -> None:
    class Raises(Block):
        def leave(self, x: Tensor) -> None:
            self.norm(x.transpose(1, 2))
            raise ValueError("in the middle")

    block = Raises().eval()
    with pytest.raises(ValueError, match="in the middle"), undisturbed(block, CPU):
        block(torch.randn(1, 4, 8))
    assert block.norm.num_batches_tracked == 0
    assert not block.norm.training


def test_a_model_that_is_patched_in_inference_mode() -> None:
    model = nn.Sequential(Block(), nn.Tanh())
    with torch.inference_mode():
        (site,) = patch_model(model).sites
    assert site.plan == "output"


def test_large_buffers_are_copied_only_if_they_are_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    class Quantized(Block):
        def prepare(self) -> None:
            self.register_buffer("packed", torch.ones(LARGE, dtype=torch.int32))
            self.register_buffer("written", torch.ones(LARGE, dtype=torch.int32))

        def leave(self, x: Tensor) -> None:
            self.written.add_(1)

    copied: list[int] = []
    clone = torch.UntypedStorage.clone
    monkeypatch.setattr(torch.UntypedStorage, "clone", lambda self: copied.append(self.nbytes()) or clone(self))
    block = Quantized()
    packed = block.packed
    assert_left_as_it_was(block)
    assert block.packed is packed
    assert (block.written == 1).all()
    assert set(copied) == {4 * LARGE}
    copied.clear()
    with undisturbed(block, torch.device("cpu")):
        block.packed.sum()
    assert copied == []
