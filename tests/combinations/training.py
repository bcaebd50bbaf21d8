"""Trains a small model with the real Trainer, with the flag and without, and compares the two runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from hf_invact import InvActConfig, InvertedActivationsCallback, PatchReport, patch_model
from hf_invact.curves import GELU
from hf_invact.ops.channels import kept_channels
from hf_invact.patching import SiteReport
from tests.compatibility import Matrix, patched_sites
from tests.helpers import native_slack
from tests.models import MODEL_NAMES, batch
from tests.trainer.helpers import arguments, records

STEPS = 3


@dataclass(frozen=True)
class Combination:
    """A way of training, a row of the table.

    Attributes:
        group: heading of its table.
        name: of the row.
        build: makes the model of a name, with its adapters, the same at each call.
        options: training arguments.
        around_forward: entered around each forward pass.
        data: the data set for the model of a name.
        tokens: in a batch, virtual ones included.
        note: for the reader of the table.
        adapters_alone: the models of which a run with nothing but adapters patched is compared in every bit, if these
            have dropout. (Those without are compared in tests/sites/adapters.)
        peak_within: the models that, once patched, keep most before the end of the forward pass.
    """

    group: str
    name: str
    build: Callable[[str], nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)
    around_forward: Callable[[], AbstractContextManager[object]] = nullcontext
    data: Callable[[str], Sequence[dict[str, Tensor]]] = lambda name: records()
    tokens: int = 2 * 16
    note: str = ""
    adapters_alone: Sequence[str] = MODEL_NAMES
    peak_within: Sequence[str] = ()

    def __str__(self) -> str:
        return self.name


@dataclass
class Run:
    """The outcome of a training run.

    Attributes:
        model: the trained one, unpatched.
        losses: of each step.
        gradients: of the first step, by parameter.
        saved_bytes: kept for the backward pass of the first step.
        report: of the patching; None without the flag.
    """

    model: nn.Module
    losses: list[float]
    gradients: dict[str, Tensor]
    saved_bytes: int
    report: PatchReport | None


@dataclass(frozen=True)
class Tolerance:
    """How much two runs may differ, relative to the loss and to the norm of the whole gradient."""

    first_loss: float
    loss: float
    gradient: float


# First losses are bit-identical, except in GPT-2: its own activation is unfused, and rounds differently.
TOLERANCES = {
    torch.float32: Tolerance(first_loss=2e-7, loss=1e-6, gradient=1e-5),
    torch.bfloat16: Tolerance(first_loss=0.001, loss=0.02, gradient=0.03),
    torch.float16: Tolerance(first_loss=2e-4, loss=0.002, gradient=0.003),
}


class _Recorder(TrainerCallback):
    """Records the gradients of the first step, before the optimizer uses them."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.gradients:
            weights = kwargs["model"].named_parameters()
            self.gradients = {name: weight.grad.double() for name, weight in weights if weight.grad is not None}


class RecordingTrainer(Trainer):
    """Records the losses as they are, and enters a context around each forward pass."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.around_forward: Callable[[], AbstractContextManager[object]] = nullcontext
        self.recorded: list[float] = []

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        with self.around_forward():
            loss = super().compute_loss(*args, **kwargs)
        self.recorded.append(loss.item())
        return loss


def train(
    combination: Combination,
    name: str,
    folder: Path,
    *,
    flag: bool,
    has_patched_adapters: bool = False,
    is_exact: bool = False,
) -> Run:
    """Train for a few steps of SGD, the same data and seed each time.

    Args:
        has_patched_adapters: whether the Trainer gets a model whose adapters are patched, and nothing else.
        is_exact: compute in float32.
    """
    model = combination.build(name)
    settings = {"max_steps": STEPS, "optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, **combination.options}
    if is_exact:
        model = in_float32(model)
        settings["bf16"] = False
    if has_patched_adapters:
        dtype = torch.bfloat16 if settings.get("bf16") else None
        assert patch_model(model, InvActConfig(sites=("adapter",), autocast_dtype=dtype)).patched
    args = arguments(folder, use_inverted_activations=flag, **settings)
    callback, recorder = InvertedActivationsCallback(), _Recorder()
    trainer = RecordingTrainer(model, args, train_dataset=combination.data(name), callbacks=[callback, recorder])
    trainer.around_forward = combination.around_forward
    trainer.train()
    saved_bytes = callback.saved.total_bytes if callback.saved else 0
    return Run(model, trainer.recorded, recorder.gradients, saved_bytes, callback.report)


def dtype_of(combination: Combination, model: nn.Module) -> torch.dtype:
    """The dtype that a model is trained in: autocast's, or the least precise one of its weights."""
    if combination.options.get("bf16"):
        return torch.bfloat16
    dtypes = [weight.dtype for weight in model.parameters() if weight.dtype in TOLERANCES]
    return min(dtypes, key=lambda dtype: dtype.itemsize)


def in_float32(model: nn.Module) -> nn.Module:
    """The model, computing in float32 with the same weights (quantized ones stay quantized)."""
    for module in model.modules():
        if hasattr(module, "compute_dtype"):  # of bitsandbytes
            module.compute_dtype = torch.float32
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.float()
    return model


def difference(gradients: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """The norm of the difference of two whole gradients, relative to that of the second."""
    assert gradients.keys() == others.keys()
    apart = sum((gradients[name] - other).square().sum() for name, other in others.items())
    return float((apart / sum(other.square().sum() for other in others.values())) ** 0.5)


def compare(combination: Combination, name: str, folder: Path) -> tuple[Run, Run]:
    """Train with and without the flag, and check losses and gradients.

    Returns:
        The plain run, and the one with the flag.
    """
    plain, patched = (train(combination, name, folder, flag=flag) for flag in (False, True))
    dtype = dtype_of(combination, plain.model)
    check_losses_and_gradients(plain, patched, name, dtype)
    if dtype is not torch.float32:
        check_precision(plain, patched, train(combination, name, folder, flag=False, is_exact=True))
    if name in combination.adapters_alone and _drops(plain.model):
        check_adapters(plain, train(combination, name, folder, flag=False, has_patched_adapters=True))
    return plain, patched


def _drops(model: nn.Module) -> bool:
    """Whether its adapters have dropout."""
    return any(isinstance(module, nn.Dropout) for name, module in model.named_modules() if ".lora_dropout." in name)


def check_adapters(plain: Run, exact: Run) -> None:
    """Where nothing but adapters is patched, losses and gradients are the same in every bit."""
    assert exact.losses == plain.losses
    assert exact.gradients.keys() == plain.gradients.keys()
    assert all(torch.equal(gradient, plain.gradients[name]) for name, gradient in exact.gradients.items())
    assert exact.saved_bytes <= plain.saved_bytes


def check_losses_and_gradients(plain: Run, patched: Run, name: str, dtype: torch.dtype) -> None:
    """The same first loss, and the same losses and gradients within the dtype's tolerance."""
    allowed = TOLERANCES[dtype]
    assert len(plain.losses) == STEPS
    assert max(plain.losses) / min(plain.losses) > 1.01, "the weights hardly changed"
    first_loss = allowed.first_loss if name == "gpt2" else 0.0
    for step, (loss, expected) in enumerate(zip(patched.losses, plain.losses, strict=True)):
        assert abs(loss / expected - 1) <= (allowed.loss if step else first_loss), f"step {step}: {loss}, {expected}"
    slack = native_slack(GELU, dtype) if name == "bert" else 1.0
    assert difference(patched.gradients, plain.gradients) <= allowed.gradient * slack


def check_precision(plain: Run, patched: Run, exact: Run) -> None:
    """In half precision the patched gradients are at most twice as far from float32's as the plain ones."""
    assert difference(patched.gradients, exact.gradients) <= 2 * difference(plain.gradients, exact.gradients)


def check_saved_bytes(plain: Run, patched: Run, combination: Combination | None = None, name: str = "") -> None:
    """Fewer bytes are saved if anything is patched, by as many as the report says, and never more."""
    assert patched.report is not None
    saving = plain.saved_bytes - patched.saved_bytes
    assert saving >= 0
    assert (saving > 0) == (patched.report.patched > 0)
    if combination is not None:
        too_much, fixed = _beside_the_report(plain.model, patched.report, bool(combination.options.get("bf16")))
        expected = combination.tokens * (patched.report.saved_bytes_per_token - too_much) + fixed
        assert saving < expected if name in combination.peak_within else saving == expected


def _beside_the_report(model: Any, report: PatchReport, is_autocast: bool) -> tuple[int, int]:
    """What the report does not count.

    Returns:
        Bytes per token that are not saved where the input needs no gradient: in the first layer, behind frozen
        embeddings. The probe cannot know that it stays so. PyTorch on a CPU keeps no mask of an adapter's dropout then,
        and nothing of a frozen norm.
        Bytes saved that do not grow with the tokens: the copies that autocast makes of adapters' weights, less the
        indices of the channels that norms keep.
    """
    too_much: list[int] = []
    fixed: list[int] = []

    def note_dropout(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        (x,) = args
        if isinstance(module, nn.Dropout) and not x.requires_grad:
            too_much.append(x.shape[-1] * x.element_size())
        if is_autocast and isinstance(module, nn.Linear) and x.requires_grad and module.weight.dtype == torch.float32:
            fixed.append(2 * module.weight.numel())

    def note_norm(site: SiteReport, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if not args[0].requires_grad and not any(weight.requires_grad for weight in module.parameters()):
            too_much.append(site.saved or 0)
        elif site.plan == "norm-output":
            weight, bias = (getattr(module, name, None) for name in ("weight", "bias"))
            fixed.append(-8 * kept_channels(weight, bias, args[0].device).numel())

    patched = {site.name: model.get_submodule(site.name) for site in report.sites if site.is_patched}
    norms = [site for site in report.sites if site.kind == "norm" and site.is_patched]
    layers = [patched[site.name] for site in report.sites if site.kind == "adapter" and site.is_patched]
    modules = [each for layer in layers for each in (*layer.lora_dropout.values(), *layer.lora_A.values())]
    handles = [module.register_forward_pre_hook(note_dropout) for module in modules]
    handles += [patched[site.name].register_forward_pre_hook(partial(note_norm, site)) for site in norms]
    if handles:
        model(**batch(model))
    for handle in handles:
        handle.remove()
    return sum(too_much), sum(fixed)


def record(matrix: Matrix, combination: Combination, name: str, plain: Run, patched: Run) -> None:
    matrix.record(
        combination.group,
        combination.name,
        name,
        plain_bytes=plain.saved_bytes,
        patched_bytes=patched.saved_bytes,
        **patched_sites(patched.report),
        note=combination.note,
    )
