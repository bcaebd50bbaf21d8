"""Compares a small model of a type with the same model patched."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig, PreTrainedModel, set_seed

from hf_invact.inputs import UnknownInputsError, small_inputs
from hf_invact.memory import SavedActivations
from hf_invact.patching import PatchingError, PatchReport, patch_model
from hf_invact.planning.errors import PlanningError
from hf_invact.planning.model.source import find_source

from .errors import UncoveredError, brief
from .shrink import small_configs

SEED = 0
SEQUENCES, TOKENS = 2, 16
MOST_PARAMETERS = 200_000_000
NORM_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Coverage:
    """What patching a small model of a type does.

    Attributes:
        model_type: of Transformers.
        model_class: the class of the model; empty if none could be built.
        sites: how many activations and norms were found.
        patched: how many of them are patched.
        plans: how often each plan was installed.
        plain_bytes, patched_bytes: what is saved for backward; None if the model could not be run.
        activation_ulps: the largest difference between an activation's plain and inverted output for the same input, in
            units in the last place of its largest output. 0 if all outputs are bit-identical.
        norm_ulps: the same for norms, each in float32, bfloat16 and float16.
        output_ulps: the same for the model's outputs.
        gradient_error: the norm of the difference of all gradients, relative to that of the plain gradients.
        reason: why the model, or a part of it, is not patched, or could not be built.
        error: what the patched model raised; empty if nothing.
    """

    model_type: str
    model_class: str = ""
    sites: int = 0
    patched: int = 0
    plans: dict[str, int] = field(default_factory=dict)
    plain_bytes: int | None = None
    patched_bytes: int | None = None
    activation_ulps: float | None = None
    norm_ulps: float | None = None
    output_ulps: float | None = None
    gradient_error: float | None = None
    reason: str = ""
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return f"{self.model_type}: FAILED once patched: {self.error}"
        if not self.patched or not self.patched_bytes or not self.plain_bytes:
            return f"{self.model_type}: not patched: {self.reason}"
        change = self.patched_bytes / self.plain_bytes - 1
        return f"{self.model_type}: {self.patched} of {self.sites} patched, {change:+.1%}, {self.output_ulps:.3g} ulps"

    def as_json(self) -> dict[str, Any]:
        """As JSON-compatible data."""
        return asdict(self)


@dataclass(frozen=True)
class _Run:
    outputs: list[Tensor]
    gradients: list[Tensor]
    saved_bytes: int


def check(model_type: str) -> Coverage:
    """Build a small model of a type, run it plain and patched, forward and backward in float32, and compare."""
    transformers.logging.set_verbosity_error()
    try:
        config, model, inputs, plain = _runnable(model_type)
    except UncoveredError as error:
        return Coverage(model_type, reason=str(error))
    name = type(model).__name__
    twin = _build(type(model), config)  # some models change when they are run
    try:
        report = patch_model(twin)
    except PatchingError as error:
        return Coverage(model_type, name, plain_bytes=plain.saved_bytes, reason=brief(error))
    patched = _run(twin, inputs)
    plain_twin = _build(type(model), config)
    return Coverage(
        model_type,
        name,
        sites=len(report.sites),
        patched=report.patched,
        plans=_plans(report),
        plain_bytes=plain.saved_bytes,
        patched_bytes=patched.saved_bytes,
        activation_ulps=max(_activation_ulps(plain_twin, twin, report, inputs), default=0.0),
        norm_ulps=max(_norm_ulps(plain_twin, twin, report, inputs), default=0.0),
        output_ulps=max(map(_ulps, plain.outputs, patched.outputs), default=0.0),
        gradient_error=_relative(plain.gradients, patched.gradients),
        reason="; ".join(sorted({site.reason for site in report.sites if site.reason})),
    )


def _plans(report: PatchReport) -> dict[str, int]:
    plans = [site.plan for site in report.sites if site.plan]
    return {plan: plans.count(plan) for plan in sorted(set(plans))}


def _runnable(model_type: str) -> tuple[PretrainedConfig, PreTrainedModel, dict[str, Any], _Run]:
    """The first small model that runs, with its config and inputs."""
    failures: list[str] = []
    for config in small_configs(model_type):
        for model in _built(config, failures):
            for inputs in _inputs(model, failures):
                try:
                    return config, model, inputs, _run(model, inputs)
                except Exception as error:  # the model may raise anything
                    failures.append(f"{type(model).__name__} cannot be run: {brief(error)}")
    raise UncoveredError(failures[0] if failures else "no inputs for it are known")


def _inputs(model: PreTrainedModel, failures: list[str]) -> Iterator[dict[str, Any]]:
    try:
        yield from small_inputs(model, SEQUENCES, TOKENS)
    except UnknownInputsError as error:
        failures.append(brief(error))


def _built(config: PretrainedConfig, failures: list[str]) -> Iterator[PreTrainedModel]:
    try:
        classes = list(_classes(config))
    except (ImportError, ValueError) as error:  # a mapping names a class that does not exist
        failures.append(f"its class cannot be found: {brief(error)}")
        return
    for model_class in classes:
        try:
            yield _build(model_class, config)
        except Exception as error:  # the class may raise anything
            failures.append(f"{model_class.__name__} cannot be built: {brief(error)}")


def _classes(config: PretrainedConfig) -> Iterator[type[PreTrainedModel]]:
    with suppress(PlanningError):  # it is only a part of other models
        yield find_source(config).model_class
    mapping = transformers.AutoModel._model_mapping
    if type(config) in mapping:
        found = mapping[type(config)]
        yield from found if isinstance(found, tuple) else (found,)
        return
    beside = type(config).__module__.replace(".configuration_", ".modeling_")
    for model_class in vars(importlib.import_module(beside)).values():
        is_model = isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)
        if (
            is_model
            and model_class.config_class is type(config)
            and not model_class.__name__.endswith("PreTrainedModel")
        ):
            yield model_class


def _build(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    config = copy.deepcopy(config)  # models change their config
    with torch.device("meta"):
        size = sum(weight.numel() for weight in model_class._from_config(config).parameters())
    if size > MOST_PARAMETERS:
        raise UncoveredError(f"{size / 1e6:,.0f} million parameters remain")
    set_seed(SEED)
    model: PreTrainedModel = model_class._from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:  # so that inputs of activations lie on both sides of the turning point
                weight.normal_(0, weight[0].numel() ** -0.5)
    return model.train()


def _run(model: PreTrainedModel, inputs: dict[str, Any]) -> _Run:
    set_seed(SEED)
    model.zero_grad()
    with SavedActivations(model) as saved:
        outputs = model(**copy.deepcopy(inputs))  # some models change their inputs
    tensors = [leaf for leaf in tree_leaves(dict(outputs)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    differentiable = [tensor for tensor in tensors if tensor.requires_grad]
    if not differentiable:
        raise UncoveredError(f"{type(model).__name__} returns nothing that depends on its weights")
    generator = torch.Generator().manual_seed(SEED)
    # Random factors: the plain sum of a norm's output is constant.
    goals = [(tensor * torch.randn(tensor.shape, generator=generator)).sum() for tensor in differentiable]
    torch.stack(goals).sum().backward()
    gradients = [torch.zeros(()) if w.grad is None else w.grad.clone() for w in model.parameters()]
    return _Run([tensor.detach() for tensor in tensors], gradients, saved.total_bytes)


def _activation_ulps(
    plain: PreTrainedModel, patched: PreTrainedModel, report: PatchReport, inputs: dict[str, Any]
) -> Iterator[float]:
    """The difference in each call of an inverted activation, for its input in the plain model."""
    names = [site.name for site in report.sites if site.kind == "activation" and site.curve]
    for name, x, output in _calls(plain, names, inputs):
        # Times 1, since a gate's activation is inverted as part of a product.
        inverted = patched.get_submodule(name)(x.requires_grad_()) * torch.ones_like(x)
        yield _ulps(output, inverted.detach())


def _norm_ulps(
    plain: PreTrainedModel, patched: PreTrainedModel, report: PatchReport, inputs: dict[str, Any]
) -> Iterator[float]:
    """The difference in each call of a patched norm, in each dtype."""
    names = [site.name for site in report.sites if site.kind == "norm" and site.is_patched]
    for name, x, _ in _calls(plain, names, inputs):
        for dtype in NORM_DTYPES:
            outputs = [
                copy.deepcopy(model.get_submodule(name)).to(dtype)(x.to(dtype).requires_grad_()).detach().float()
                for model in (plain, patched)
            ]
            yield _ulps(*outputs)


def _calls(model: PreTrainedModel, names: list[str], inputs: dict[str, Any]) -> list[tuple[str, Tensor, Tensor]]:
    """The name, the input and the output of each call of these modules."""
    calls: list[tuple[str, Tensor, Tensor]] = []

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((name, _copy(args[0]), _copy(output)))  # a model may overwrite both

    modules = dict(model.named_modules())
    hooks = [modules[name].register_forward_hook(partial(note, name)) for name in names if name in modules]
    with torch.no_grad():
        model(**copy.deepcopy(inputs))
    for hook in hooks:
        hook.remove()  # models may share a module, which is not inverted while it has a hook
    return calls


def _copy(tensor: Tensor) -> Tensor:
    """A copy with the same strides: PyTorch's vectorized and scalar functions differ in the last place."""
    repeats = any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if repeats:
        return tensor.detach().clone()
    return torch.empty_strided(tensor.shape, tensor.stride()).copy_(tensor.detach())


def _ulps(plain: Tensor, patched: Tensor) -> float:
    if not plain.numel():
        return 0.0
    if not plain.isfinite().all():
        return 0.0 if torch.equal(plain.nan_to_num(), patched.nan_to_num()) else torch.inf
    largest = plain.abs().max()
    spacing = torch.nextafter(largest, torch.tensor(torch.inf)) - largest
    return ((plain - patched).abs().max() / spacing).item()


def _relative(plain: list[Tensor], patched: list[Tensor]) -> float:
    difference = sum((a - b).double().square().sum().item() for a, b in zip(plain, patched, strict=True))
    size = sum(a.double().square().sum().item() for a in plain)
    return float((difference / size) ** 0.5) if size else 0.0
