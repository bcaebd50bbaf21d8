"""Training loops without a Trainer, for rows that the Trainer does not support on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from hf_invact import patch_model
from hf_invact.memory import SavedActivations
from tests.combinations.training import STEPS, Run
from tests.models import batch
from tests.test_compile import PARTITIONING, kept_by


def loop(
    model: Any,
    flag: bool,
    *,
    around_forward: Callable[[], AbstractContextManager[object]] = nullcontext,
    steps: int = STEPS,
    scaler: torch.amp.GradScaler | None = None,
) -> Run:
    """Train for a few steps of AdamW on different batches."""
    torch.manual_seed(0)
    with around_forward():
        report = patch_model(model) if flag else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    losses: list[float] = []
    gradients: dict[str, Tensor] = {}
    saved = SavedActivations(model)
    for step in range(steps):
        with nullcontext() if losses else saved, around_forward():
            loss = model(**batch(model, seed=step)).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        gradients = gradients or gradients_of(model)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    return Run(model, losses, gradients, saved.total_bytes, report)


def compiled_loop(model: Any, flag: bool) -> tuple[Run, int]:
    """The same for a model that is compiled as one graph; also returns how often it was compiled."""
    torch._dynamo.reset()
    report = patch_model(model) if flag else None
    counter = CompileCounterWithBackend(PARTITIONING)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    saved_bytes = kept_by(compiled, model, **batch(model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses: list[float] = []
    gradients: dict[str, Tensor] = {}
    for step in range(STEPS):
        loss = compiled(**batch(model, seed=step)).loss
        loss.backward()
        gradients = gradients or gradients_of(model)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return Run(model, losses, gradients, saved_bytes, report), counter.frame_count


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the gradients, by parameter."""
    return {name: weight.grad.double() for name, weight in model.named_parameters() if weight.grad is not None}
