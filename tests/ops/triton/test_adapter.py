"""Triton's kernels for adapters' inputs: as the eager backend, and on a GPU as PyTorch, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from types import ModuleType

import pytest
import torch
from torch import Tensor

from hf_invact.ops import BACKENDS, adapter_input
from hf_invact.ops.dropout import scales_of
from hf_invact.ops.eager import adapter as eager
from hf_invact.ops.operators.adapter import implementation
from tests.helpers import FOUR_DIMENSIONS, LAYOUTS, dtype_name, normal
from tests.ops.adapters import RANK, Run, assert_same_bits, pefts

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# NumPy's warnings come from the interpreter.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),
    *([pytest.mark.gpu] if DEVICE == "cuda" else []),
]
needs_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
P = 0.3
# A program handles 1,024 elements: sizes on both sides of that.
ARRANGEMENTS = [
    *(((size,), "contiguous") for size in (1, 7, 8, 9, 1023, 1024, 1025, 2049)),
    *((FOUR_DIMENSIONS, layout) for layout in LAYOUTS),
]
TRITON = implementation("triton")

each_arrangement = pytest.mark.parametrize(
    ("shape", "layout"), ARRANGEMENTS, ids=[f"{'x'.join(map(str, shape))}-{layout}" for shape, layout in ARRANGEMENTS]
)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
each_input = pytest.mark.parametrize("of_x", DTYPES, ids=dtype_name)


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """New tensors are filled with NaN (bytes: 255), which shows elements that a kernel does not write."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def kernels() -> ModuleType:
    from hf_invact.ops.triton import adapter_kernels

    return adapter_kernels


@each_arrangement
@each_input
@each_dtype
def test_as_the_eager_backend(dtype: torch.dtype, of_x: torch.dtype, shape: tuple[int, ...], layout: str) -> None:
    x, dx = (LAYOUTS[layout](shape, each, seed).to(DEVICE) for seed, each in enumerate((of_x, dtype)))
    dx = torch.empty_like(x, dtype=dtype).copy_(dx)
    _, kept = eager.drop(x, dtype, P, torch.Generator(DEVICE).manual_seed(2))
    scale, dx_scale = scales_of(P, dtype, x.device)
    found = TRITON.masked(x, kept, dtype, scale), *TRITON.both_masked(x, dx.clone(), kept, scale, dx_scale)
    expected = eager.masked(x, kept, dtype, scale), *eager.both_masked(x, dx.clone(), kept, scale, dx_scale)
    names = ("masked alone", "masked", "gradient")
    assert_same_bits(dict(zip(names, found, strict=True)), dict(zip(names, expected, strict=True)))
    assert {tensor.stride() for tensor in found} == {dx.stride()}


@each_dtype
def test_numbers_that_a_mask_does_not_make_zero(dtype: torch.dtype) -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 1.0, -1.0], dtype=dtype, device=DEVICE).repeat(20)
    _, kept = eager.drop(x, dtype, P, torch.Generator(DEVICE).manual_seed(2))
    found, expected = (backend.masked(x, kept, dtype, 1.5) for backend in (TRITON, eager))
    assert_same_bits({"masked": found}, {"masked": expected})


@each_dtype
def test_two_scales(dtype: torch.dtype) -> None:
    x, dx = (normal(20, dtype=dtype, seed=seed).to(DEVICE) for seed in range(2))
    _, kept = eager.drop(x, dtype, P, torch.Generator(DEVICE).manual_seed(2))
    found, expected = (backend.both_masked(x, dx.clone(), kept, 1.5, 2.0) for backend in (TRITON, eager))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("size", [1, 7, 8, 9, 1024, 1027])
def test_packs_a_mask_and_writes_nothing_beyond(size: int, kernels: ModuleType) -> None:
    from hf_invact.ops.triton.launch import launch_elementwise

    mask = normal(size).to(DEVICE) > 0
    kept = torch.full((1000,), 7, dtype=torch.uint8, device=DEVICE)
    launch_elementwise(kernels.pack, mask.view(torch.uint8), kept)
    expected = eager._packed(mask)
    assert torch.equal(kept[: expected.numel()], expected)
    assert (kept[expected.numel() :] == 7).all()


@each_dtype
def test_masked_results_end_where_they_should(dtype: torch.dtype, kernels: ModuleType) -> None:
    from hf_invact.ops.triton.launch import launch_elementwise

    size, room = 1027, 4096
    x, kept = normal(size, dtype=dtype).to(DEVICE), torch.full((129,), 255, dtype=torch.uint8, device=DEVICE)
    dx, result = (torch.full((room,), 7.0, dtype=dtype, device=DEVICE) for _ in range(2))
    launch_elementwise(kernels.both_masked, x, dx, kept, result, scale=2.0, dx_scale=3.0)
    assert torch.equal(result[:size], 2 * x)
    assert (dx[:size] == 21).all()
    assert (torch.stack([dx, result])[:, size:] == 7).all()
    launch_elementwise(kernels.masked, x, kept, result, scale=1.0)
    assert torch.equal(result[:size], x)
    assert (result[size:] == 7).all()


def test_float64_is_left_to_the_eager_backend() -> None:
    """Also where the input is not float64: the kernels compute in float32."""
    x, run = normal(6, 24).to(DEVICE), Run(torch.float64, P, device=DEVICE)
    assert_same_bits(run.of(adapter_input, x), run.of(pefts, x))
    with pytest.raises(RuntimeError, match="its kernels compute in float32"):
        run.of(partial(adapter_input, backend="triton"), x)


def test_a_patched_run_uses_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_invact.ops.triton import adapter

    launched: list[str] = []
    run = adapter.launch_elementwise
    monkeypatch.setattr(
        adapter,
        "launch_elementwise",
        lambda kernel, *tensors, **options: (launched.append(kernel.__name__), run(kernel, *tensors, **options)),
    )
    x, weight = normal(6, 24).to(DEVICE).requires_grad_(), normal(RANK, 24, seed=1).to(DEVICE).requires_grad_()
    adapter_input(x, weight, torch.float32, P, "triton").sum().backward()
    assert launched == (["pack"] if DEVICE == "cuda" else []) + ["both_masked"]


# On a GPU: the same masks, results and gradients as by PyTorch's own kernels.


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("backend", BACKENDS)
@each_input
@each_dtype
def test_every_bit_is_that_of_pytorch_on_a_gpu(dtype: torch.dtype, of_x: torch.dtype, backend: str) -> None:
    probabilities = (0.15,) if backend == "compile" else (0.0, 0.05, 0.15, 0.5)  # each is compiled for itself
    for shape in ((6, 24), (2, 127, 576), (4, 512, 1024)):
        x = normal(*shape, dtype=of_x).to(DEVICE)
        for p, autocast in itertools.product(probabilities, (None, torch.bfloat16, torch.float16)):
            run = Run(dtype, p, autocast, device=DEVICE)
            assert_same_bits(run.of(partial(adapter_input, backend=backend), x), run.of(pefts, x), run)


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_every_layout_on_a_gpu(backend: str, layout: str) -> None:
    x, run = LAYOUTS[layout](FOUR_DIMENSIONS, torch.bfloat16, 0).to(DEVICE), Run(torch.float32, P, device=DEVICE)
    assert_same_bits(run.of(partial(adapter_input, backend=backend), x), run.of(pefts, x))


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_losses_of_steps_on_a_gpu(backend: str) -> None:
    """Twenty steps of AdamW with dropout: each loss and the weights at the end."""

    def trained(function: object) -> tuple[list[Tensor], Tensor]:
        x = normal(64, 256, dtype=torch.bfloat16).to(DEVICE)
        weight = normal(16, 256, seed=1).to(DEVICE).requires_grad_()
        optimizer = torch.optim.AdamW([weight], lr=1e-2)
        torch.manual_seed(5)
        losses = []
        for _ in range(20):
            loss = function(x, weight, torch.float32, 0.1).square().mean()  # type: ignore[operator]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        return losses, weight.detach()

    (losses, weight), (expected, native_weight) = trained(partial(adapter_input, backend=backend)), trained(pefts)
    assert all(map(torch.equal, losses, expected))
    assert torch.equal(weight, native_weight)


@pytest.mark.gpu
@needs_a_gpu
def test_tensors_on_two_devices_are_refused_by_pytorch() -> None:
    x, weight = normal(6, 24).to(DEVICE).requires_grad_(), normal(RANK, 24).requires_grad_()
    with pytest.raises(RuntimeError, match="same device"):
        adapter_input(x, weight, torch.float32, P)
