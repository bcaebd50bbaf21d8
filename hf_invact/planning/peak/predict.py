"""Predicts the peak memory of a training step, on real or fake tensors.

Steps run under a dispatch mode that only follows storages: for all 32 layers of a 7B model on fake tensors this takes 3
to 5 s on two cores, and 46 s with torch's MemTracker. So all layers are run, none is extrapolated, and layers may
differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn, optim
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from ...display.sizes import size
from ...display.tables import table
from .storages import LiveStorages
from .workspace import workspace

MOMENTS = ("forward", "backward", "optimizer step")
CATEGORIES = ("parameters", "gradients", "optimizer", "activations", "temporaries", "inputs")


@dataclass(frozen=True)
class Peak:
    """The peak memory of a training step, in bytes.

    Attributes:
        by_moment: for each of `MOMENTS`, the bytes held at its own peak, by each of `CATEGORIES`. ``parameters``
            includes buffers, ``activations`` is what the forward pass leaves behind, and ``temporaries`` is everything
            else, such as recomputed activations of checkpointed layers and gradients that are not a parameter's.
    """

    by_moment: Mapping[str, Mapping[str, int]]

    def __str__(self) -> str:
        rows = [(name, *(size(self.by_moment[moment][name]) for moment in MOMENTS)) for name in CATEGORIES]
        total = ("all", *(size(self.bytes_in(moment)) for moment in MOMENTS))
        return f"{table([('peak of a step, in the', *MOMENTS), *rows, total])}\n\nThe peak falls in the {self.moment}."

    @property
    def moment(self) -> str:
        """The moment in which the peak of the step falls; the first one of equals."""
        return max(MOMENTS, key=self.bytes_in)

    @property
    def total_bytes(self) -> int:
        """Bytes at the peak of the step."""
        return self.bytes_in(self.moment)

    @property
    def by_category(self) -> Mapping[str, int]:
        """Bytes at the peak of the step, by each of `CATEGORIES`."""
        return self.by_moment[self.moment]

    def bytes_in(self, moment: str) -> int:
        """Bytes at the peak of one of `MOMENTS`."""
        return sum(self.by_moment[moment].values())


def predict_peak(
    model: nn.Module,
    batch: Mapping[str, Any],
    optimizer: optim.Optimizer,
    forward_context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    *,
    accumulates: bool = False,
    device: str = "cuda",
) -> Peak:
    """Predict the peak memory of a training step, as CUDA's allocator would count it (``max_memory_allocated``).

    If the optimizer has no state yet, it takes two steps, so that what is reported is a later one than the first. The
    model is left as before, without gradients. Frozen parameters have neither gradients nor optimizer state.

    Not counted is memory that kernels allocate for themselves (workspaces of cuBLAS, sums of an unfused backward
    kernel), and what the allocator loses to fragmentation.

    Args:
        model: on the CPU; its parameters are real, or fake tensors of one ``FakeTensorMode``. Called in its current
            mode, training or evaluation.
        batch: its arguments by name, with labels. The model has to return the loss first, or as ``loss``.
        optimizer: of the trainable parameters; see `make_optimizer`.
        forward_context: makes the context of each forward pass, such as autocast.
        accumulates: whether a step adds up the gradients of several batches. Then the peak is that of a later one, in
            whose forward pass there are gradients already.
        device: whose kernels are planned. On a "cpu", the memory that this package's own take while they run is
            counted; the tables that they look up stay, and are not.

    Raises:
        ValueError: no parameter is trainable, or the model returns no loss.

    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from torch._subclasses.fake_tensor import FakeTensorMode
    >>> from hf_invact.planning import make_optimizer
    >>> with FakeTensorMode():
    ...     model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, vocab_size=1000))
    ...     ids = torch.zeros(1, 128, dtype=torch.long)
    >>> peak = predict_peak(model, {"input_ids": ids, "labels": ids}, make_optimizer("adamw", model.parameters()))
    >>> peak.moment
    'optimizer step'
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights:
        raise ValueError(f"{type(model).__name__} has no trainable parameter, so there is no training step to predict")
    model.zero_grad(set_to_none=True)
    storages = LiveStorages(workspace if device == "cpu" else None)
    with _fake_mode_of(weights[0]), storages:
        storages.mark([*model.parameters(), *model.buffers()], "parameters")
        storages.mark(_tensors(batch), "inputs")
        has_state = bool(optimizer.state)
        _mark_state(storages, optimizer)
        for _ in range(2 if accumulates else 1):
            _run_passes(storages, model, batch, forward_context)
        if not has_state:
            storages.begin("first step")
            optimizer.step()
            _mark_state(storages, optimizer)
        _run_optimizer(storages, optimizer)
    moments = {moment: _categories(storages.peak(moment)) for moment in MOMENTS}
    if not has_state:  # but from the second step on
        for moment in MOMENTS[:-1]:
            moments[moment]["optimizer"] += storages.held("optimizer")
    return Peak(moments)


def _run_passes(
    storages: LiveStorages,
    model: nn.Module,
    batch: Mapping[str, Any],
    forward_context: Callable[[], AbstractContextManager[Any]],
) -> None:
    storages.begin("forward")
    with forward_context():
        loss = _loss(model, batch)
    storages.mark_rest("activations")
    storages.begin("backward")
    loss.backward()
    storages.mark((weight.grad for weight in model.parameters() if weight.grad is not None), "gradients")


def _run_optimizer(storages: LiveStorages, optimizer: optim.Optimizer) -> None:
    storages.begin("optimizer step")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    _mark_state(storages, optimizer)


def _mark_state(storages: LiveStorages, optimizer: optim.Optimizer) -> None:
    storages.forget(_on_the_host(optimizer))
    storages.mark(_tensors(list(optimizer.state.values())), "optimizer")


def _loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The loss, found as the Trainer finds it. All other outputs are released."""
    outputs = model(**batch)
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs[0]
    if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.requires_grad:
        raise ValueError(
            f"{type(model).__name__} returned no loss that depends on its trainable parameters; "
            f"does the batch hold labels? It holds {', '.join(batch)}"
        )
    return loss


def _on_the_host(optimizer: optim.Optimizer) -> Iterator[Tensor]:
    """The step counters of torch's optimizers, which are on the CPU unless the optimizer is fused."""
    if not optimizer.defaults.get("fused"):
        for state in optimizer.state.values():
            yield from _tensors(state.get("step"))


def _fake_mode_of(tensor: Tensor) -> AbstractContextManager[Any]:
    return tensor.fake_mode if isinstance(tensor, FakeTensor) else nullcontext()


def _tensors(tree: Any) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _categories(totals: Mapping[str | None, int]) -> dict[str, int]:
    return {category: totals.get(category, 0) for category in CATEGORIES} | {"temporaries": totals.get(None, 0)}
