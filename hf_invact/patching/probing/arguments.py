"""Finds out with which arguments a model calls its modules, by running it on very little and stopping early."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import PreTrainedModel

from ...inputs import UnknownInputsError, small_inputs
from ...inputs.integers import RealSettings
from ...sites.errors import PatchingError
from ..isolation.undisturbed import undisturbed
from ..weights.sharding import require_whole
from .recording import Call, Recorder, Stop

TOKENS = (4, 64)
"""In a sequence. The second is for models of which the first finds too little: they have windows, or merge tokens."""
MOST_RUNS = 64
LONGEST = 160  # of an error that is quoted


@dataclass(frozen=True)
class Calls:
    """How a model called its modules.

    Attributes:
        found: the call of each kind that was seen.
        failure: in a line, why a kind is missing, or was seen only in a run that failed later; None where all is well.
    """

    found: Mapping[Hashable, Call]
    failure: str | None = None


def calls(
    model: nn.Module,
    kinds: Mapping[nn.Module, Hashable],
    samples: int,
    autocast_dtype: torch.dtype | None = None,
) -> Calls:
    """Run a model in training mode on a few tokens (images, spectra) until it has called a module of each kind.

    What is run is the model of Transformers within, whatever wraps it. Where it does not call all kinds, its methods
    for one kind of input are run (``get_image_features``), and the models in it. A run stops where the last missing
    kind is called. A layer is run once for each kind: what it returned stands for the others that are called alike. So
    all of this costs one layer of each kind at most. It leaves nothing behind, see `undisturbed`.

    Args:
        model: on any device, also one of fake tensors, while their mode is active.
        kinds: the modules to watch. Those of a kind are alike and share a call: the first that needed a gradient, else
            the first.
        samples: how many sequences, images or recordings. Nothing else depends on it.
        autocast_dtype: what to run under; None leaves the autocast that is active, if any.

    Raises:
        NoProbeError: weights are sharded or missing. It is a `ShardedError` where a copy without memory can be run.
        PatchingError: what a run has changed could not be put back.

    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2, intermediate_size=16))
    >>> found = calls(model, {layer.intermediate: "intermediate" for layer in model.encoder.layer}, samples=1).found
    >>> found["intermediate"].args[0].shape
    torch.Size([1, 4, 8])
    """
    models = list(_outermost(model))
    if not models:
        return Calls({}, f"{type(model).__name__} is no model of Transformers, and holds none")
    search = _Search(kinds, samples, autocast_dtype)
    for each in models:
        require_whole(model, each)
        search.run(each)
    return search.result()


def _outermost(module: nn.Module) -> Iterator[PreTrainedModel]:
    if isinstance(module, PreTrainedModel):
        yield module
    else:
        for child in module.children():
            yield from _outermost(child)


@dataclass
class _Search:
    """Runs models in different ways until all kinds are found.

    Attributes:
        found: calls in runs that did not fail.
        doubtful: calls in runs that did, maybe since their inputs were wrong. They count where there are no others.
        failures: of runs, in order.
        refusals: of methods whose inputs are not known.
        tried: what has been run.
    """

    kinds: Mapping[nn.Module, Hashable]
    samples: int
    autocast_dtype: torch.dtype | None
    found: dict[Hashable, Call] = field(default_factory=dict)
    doubtful: dict[Hashable, Call] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    tried: set[object] = field(default_factory=set)

    def run(self, model: PreTrainedModel) -> None:
        """Find the kinds in a model, as far as they are missing."""
        for tokens in TOKENS:
            ran = [self._until_one_runs(part, method, tokens) for part, method in _ways(model)]
            for batch in self._batches(model, "forward", tokens):
                self._run_on(model, "forward", batch)
            # Where the whole model has run, more tokens would not call more.
            if ran[0] or not self._missing(model).difference(self.doubtful):
                return

    def result(self) -> Calls:
        """What was found, and what was not."""
        found = {**self.doubtful, **self.found}
        missing = dict.fromkeys(type(module).__name__ for module, kind in self.kinds.items() if kind not in found)
        if not missing and found.keys() == self.found.keys():
            return Calls(found)
        what = [f"not called: {', '.join(missing)}"] if missing else []
        why = [*self.failures, *self.refusals][:1]
        return Calls(found, "; ".join([*what, *why]))

    def _until_one_runs(self, model: PreTrainedModel, method: str, tokens: int) -> bool:
        """Whether one did."""
        return any(self._run_on(model, method, batch) for batch in self._batches(model, method, tokens))

    def _batches(self, model: PreTrainedModel, method: str, tokens: int) -> Iterator[dict[str, Any]]:
        """Those that a model may accept and that were not tried, while a kind in it is missing."""
        if not self._missing(model):
            return
        try:
            for batch in small_inputs(model, self.samples, tokens, method):
                key = model, method, tuple((name, getattr(value, "shape", value)) for name, value in batch.items())
                if self._missing(model) and key not in self.tried and len(self.tried) < MOST_RUNS:
                    self.tried.add(key)
                    yield batch
        except UnknownInputsError as error:
            self.refusals.append(str(error))

    def _run_on(self, model: PreTrainedModel, method: str, batch: dict[str, Any]) -> bool:
        """Whether it did not fail."""
        kinds = {module: self.kinds[module] for module in model.modules() if module in self.kinds}
        needs_gradient = any(weight.requires_grad for weight in model.parameters())
        recorder = Recorder(kinds, self._missing(model), needs_gradient)
        failure = _run(model, method, batch, recorder, self.autocast_dtype)
        if failure is not None:
            self.failures.append(failure)
        calls = self.found if failure is None else self.doubtful
        for kind, call in recorder.found.items():
            calls.setdefault(kind, call)
        return failure is None

    def _missing(self, model: PreTrainedModel) -> set[Hashable]:
        return {self.kinds[module] for module in model.modules() if module in self.kinds}.difference(self.found)


def _ways(model: PreTrainedModel) -> Iterator[tuple[PreTrainedModel, str]]:
    """What to run: the whole model first, then its methods for one kind of input, then the models in it."""
    for part in (each for each in model.modules() if isinstance(each, PreTrainedModel)):
        yield part, "forward"
        for name in dir(type(part)):
            if name.startswith("get_") and name.endswith("_features"):
                yield part, name


def _run(
    model: PreTrainedModel,
    method: str,
    batch: dict[str, Any],
    recorder: Recorder,
    autocast_dtype: torch.dtype | None,
) -> str | None:
    """Run it until the recorder stops it; why it failed, in a line, if it did."""
    weights = [weight for weight in model.parameters() if not weight.is_meta]
    device = weights[0].device if weights else torch.device("cpu")
    try:
        with undisturbed(model, device), _no_caches(model), _real_settings(), _autocast(device, autocast_dtype):
            recorder.watch(model)
            (model if method == "forward" else getattr(model, method))(**batch)
    except Stop:
        return None
    except PatchingError:
        raise
    except Exception as error:  # whatever a foreign forward raises
        text = " ".join(f"{type(error).__name__}: {error}".split())
        text = text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
        return f"{type(model).__name__}.{method}({', '.join(batch)}) raised {text}"
    return None


@contextmanager
def _no_caches(model: PreTrainedModel) -> Iterator[None]:
    """As training has it. Not every model takes an argument that says so."""
    configs = {id(config): config for each in model.modules() if (config := getattr(each, "config", None)) is not None}
    used = [config for config in configs.values() if getattr(config, "use_cache", False) is True]
    for config in used:
        config.use_cache = False
    try:
        yield
    finally:
        for config in used:
            config.use_cache = True


def _real_settings() -> AbstractContextManager[object]:
    """Among fake tensors, token ids and masks stay real, and what is computed from them."""
    with unset_fake_temporarily() as mode:
        pass
    return nullcontext() if mode is None else RealSettings()


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """A given dtype, or the one that is active; without its cache, which would keep weights that it has cast."""
    if dtype is None:
        if not torch.is_autocast_enabled(device.type):
            return nullcontext()
        dtype = torch.get_autocast_dtype(device.type)
    return torch.autocast(device.type, dtype, cache_enabled=False)
