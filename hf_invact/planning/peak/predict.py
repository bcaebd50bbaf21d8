"""The peak memory of a training step, predicted on tensors that may be fake.

Two steps are run under a dispatch mode that does nothing but follow storages: for all 32 layers of a 7B model on fake
tensors that takes 3 to 5 s on two cores, where MemTracker of torch takes 46. So no layer is left out and extrapolated,
and models whose layers differ need no care.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn, optim
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from ...display.sizes import size
from ...display.tables import table
from .optimizers import OptimizerFactory, make_optimizer
from .storages import LiveStorages

MOMENTS = ("forward", "backward", "optimizer step")
CATEGORIES = ("parameters", "gradients", "optimizer", "activations", "temporaries", "inputs")


@dataclass(frozen=True)
class Peak:
    """The most memory that a training step holds, in bytes.

    Attributes:
        by_moment: for each of `MOMENTS`, what was held at its own peak: bytes by each of `CATEGORIES`.
            ``parameters`` includes buffers, ``activations`` is what the forward pass leaves behind, and
            ``temporaries`` everything else: also what checkpointing computes again, and a gradient that is not (yet) a
            parameter's.
    """

    by_moment: Mapping[str, Mapping[str, int]]

    def __str__(self) -> str:
        rows = [(name, *(size(self.by_moment[moment][name]) for moment in MOMENTS)) for name in CATEGORIES]
        total = ("all", *(size(self.bytes_in(moment)) for moment in MOMENTS))
        return f"{table([('peak of a step, in the', *MOMENTS), *rows, total])}\n\nThe peak falls in the {self.moment}."

    @property
    def moment(self) -> str:
        """The moment in which the step's peak falls; the first, where several hold as much."""
        return max(MOMENTS, key=self.bytes_in)

    @property
    def total_bytes(self) -> int:
        """Bytes at the step's peak."""
        return self.bytes_in(self.moment)

    @property
    def by_category(self) -> Mapping[str, int]:
        """Bytes at the step's peak, by each of `CATEGORIES`."""
        return self.by_moment[self.moment]

    def bytes_in(self, moment: str) -> int:
        """Bytes at the peak of one of `MOMENTS`."""
        return sum(self.by_moment[moment].values())


def predict_peak(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    optimizer: str | OptimizerFactory | optim.Optimizer = "adamw",
    forward_context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    gradient_checkpointing: bool = False,
    gradient_accumulation_steps: int = 1,
) -> Peak:
    """Predict the peak memory of a training step, as CUDA's allocator would count it (``max_memory_allocated``).

    Runs two steps, of which the second is reported: in it the optimizer has its state. (One step suffices with an
    optimizer that has its state from an earlier call.) The model is left as it was, without gradients. Parameters that
    are frozen have neither gradients nor state.

    Not counted is what kernels allocate for themselves (workspaces of cuBLAS, sums of an unfused backward kernel) and
    what the allocator loses to blocks that it does not split.

    Args:
        model: on the CPU, its parameters real, or fake tensors of one ``FakeTensorMode``. Called in its present mode,
            training or evaluation.
        batch: its arguments by name, with labels: what it returns must start with the loss, or have it as ``loss``.
        optimizer: a name in `OPTIMIZERS`, a function from the trainable parameters to an optimizer, or one made of
            them.
        forward_context: makes the context of each forward pass, such as autocast.
        gradient_checkpointing: switch the model's checkpointing on for the prediction (Transformers models).
        gradient_accumulation_steps: how many batches a step takes. From the second on gradients are held throughout.

    Raises:
        ValueError: no parameter is trainable, the optimizer is not known, a step has no batch, or the model returns no
            loss.
        TypeError: the model has no gradient checkpointing to switch on.

    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from torch._subclasses.fake_tensor import FakeTensorMode
    >>> with FakeTensorMode():
    ...     model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, vocab_size=1000))
    ...     ids = torch.zeros(1, 128, dtype=torch.long)
    >>> peak = predict_peak(model, {"input_ids": ids, "labels": ids})
    >>> peak.moment
    'optimizer step'
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights:
        raise ValueError(f"{type(model).__name__} has no trainable parameter, so there is no training step to predict")
    if gradient_accumulation_steps < 1:
        raise ValueError(f"gradient_accumulation_steps is {gradient_accumulation_steps}, but a step takes a batch")
    model.zero_grad(set_to_none=True)
    storages = LiveStorages()
    with ExitStack() as stack:
        if gradient_checkpointing:
            stack.enter_context(_checkpointing(model))
        stack.enter_context(_fake_mode_of(weights[0]))
        stack.enter_context(storages)
        storages.mark([*model.parameters(), *model.buffers()], "parameters")
        storages.mark(_tensors(batch), "inputs")
        chosen = make_optimizer(optimizer, weights)
        steps = 1 if chosen.state else 2
        _mark_state(storages, chosen)
        for _ in range(steps):
            for _ in range(min(gradient_accumulation_steps, 2)):  # from the second on they are alike
                _run_passes(storages, model, batch, forward_context)
            _run_optimizer(storages, chosen)
    return Peak({moment: _categories(storages.peak(moment)) for moment in MOMENTS})


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
    """As the Trainer reads it. What else the model returns is released."""
    outputs = model(**batch)
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs[0]
    if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.requires_grad:
        raise ValueError(
            f"{type(model).__name__} returned no loss that depends on its trainable parameters; "
            f"does the batch hold labels? It holds {', '.join(batch)}"
        )
    return loss


def _on_the_host(optimizer: optim.Optimizer) -> Iterator[Tensor]:
    """Step counters of torch's optimizers, which stay on the CPU unless they are fused."""
    if not optimizer.defaults.get("fused"):
        for state in optimizer.state.values():
            yield from _tensors(state.get("step"))


@contextmanager
def _checkpointing(model: nn.Module) -> Iterator[None]:
    # Transformers renamed it within version 5.
    word = next((word for word in ("activation", "gradient") if hasattr(model, f"{word}_checkpointing_enable")), None)
    if word is None:
        raise TypeError(
            f"{type(model).__name__} has no gradient checkpointing to switch on: it is no Transformers model; "
            "checkpoint inside its forward and leave gradient_checkpointing=False"
        )
    if getattr(model, f"is_{word}_checkpointing"):
        yield
        return
    getattr(model, f"{word}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(model, f"{word}_checkpointing_disable")()


def _fake_mode_of(tensor: Tensor) -> AbstractContextManager[Any]:
    return tensor.fake_mode if isinstance(tensor, FakeTensor) else nullcontext()


def _tensors(tree: Any) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _categories(totals: Mapping[str | None, int]) -> dict[str, int]:
    return {category: totals.get(category, 0) for category in CATEGORIES} | {"temporaries": totals.get(None, 0)}
