"""Finds the config of a model and the class to train it with, without its weights."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..errors import PlanningError
from .real import transformers_model

HUB_TIMEOUT = 5.0  # seconds
LOSS_ARGUMENTS = ("labels", "return_loss", "start_positions")  # with one of them a model returns a loss

# The first one with a class for the config decides. Many encoders also have a causal head, and many
# encoder-decoders a masked one.
_AUTO_CLASSES = (
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForSeq2SeqLM",
    "AutoModelForMaskedLM",
    "AutoModelForCausalLM",
    "AutoModel",  # CLIP
    "AutoModelForImageClassification",
    "AutoModelForAudioClassification",
    "AutoModelForCTC",
)


@dataclass(frozen=True)
class Source:
    """What a model is built from.

    Attributes:
        name: the name or path that was given.
        config: its config.
        model_class: a class of Transformers that returns a loss.
    """

    name: str
    config: PretrainedConfig
    model_class: type[PreTrainedModel]


def find_source(model: str | Path | PretrainedConfig | nn.Module) -> Source:
    """Find the config and the class of a model.

    Args:
        model: a name on the hub, a local folder, a ``config.json``, a config itself, or a model.

    Raises:
        PlanningError: it is not found, cannot be read, or has no class in Transformers that can be trained.
    """
    if isinstance(model, nn.Module):
        inner = transformers_model(model)
        return Source(inner.config._name_or_path or type(inner).__name__, inner.config, type(inner))
    config = model if isinstance(model, PretrainedConfig) else _read_config(str(model))
    name = config.model_type if isinstance(model, PretrainedConfig) else str(model)
    return Source(name, config, _model_class(name, config))


def _read_config(name: str) -> PretrainedConfig:
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise PlanningError(f"the folder {name!r} holds no config.json; save one there with config.save_pretrained")
        return _from_file(name, path / "config.json")
    if path.is_file():
        return _from_file(name, path)
    if path.suffix == ".json" or path.is_absolute() or name.startswith((".", "~")):
        raise PlanningError(f"there is no file or folder {name!r}; give a hub name, a folder or a config.json")
    return _from_hub(name)


def _from_file(name: str, path: Path) -> PretrainedConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlanningError(f"{str(path)!r} is not valid JSON ({_brief(error)}); save it again") from error
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type is None:
        raise PlanningError(f"{str(path)!r} has no model_type; add one, such as 'llama'")
    if model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(model_type), list(CONFIG_MAPPING), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "its code may be custom, or need a newer Transformers"
        raise PlanningError(f"the installed Transformers has no model_type {model_type!r} (in {name!r}); {hint}")
    return _parse(name, str(path))


def _parse(name: str, path: str, **options: Any) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False, **options)
    except Exception as error:  # configs validate their values in many ways
        raise PlanningError(
            f"the config of {name!r} is invalid ({_brief(error)}); fix its values, or update Transformers"
        ) from error


def _from_hub(name: str) -> PretrainedConfig:
    try:
        # Try the cache first: without a network, a download is retried for half a minute.
        return AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        _require_on_hub(name)
    return _parse(name, name)


def _require_on_hub(name: str) -> None:
    instead = "give a local folder or a config.json instead"
    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise PlanningError(
            f"{name!r} is neither a local folder nor a model on the hub (for a private one, log in first); {instead}"
        ) from error
    except Exception as error:  # of whatever HTTP library the hub's client uses
        raise PlanningError(
            f"{name!r} is neither a local folder nor in the cache, and the hub cannot be reached "
            f"({_brief(error)}); go online (with HF_HUB_OFFLINE unset), or {instead}"
        ) from error


def _model_class(name: str, config: PretrainedConfig) -> type[PreTrainedModel]:
    if getattr(config, "quantization_config", None) is not None:
        raise PlanningError(
            f"the weights of {name!r} are quantized, and their layers cannot be built without them; "
            "plan the model that it was quantized from, with LoRA if its weights stay frozen"
        )
    candidates = list(dict.fromkeys(_candidates(config)))
    for model_class in candidates:
        if _returns_loss(model_class):
            return model_class
    found = ", ".join(model_class.__name__ for model_class in candidates)
    raise PlanningError(
        f"no class of Transformers can train {name!r} (model_type {config.model_type!r}): "
        f"{f'{found} takes no labels' if found else 'none is known for it'}; name one that takes "
        "labels in the config's architectures"
    )


def _candidates(config: PretrainedConfig) -> Iterator[type[PreTrainedModel]]:
    named = config.architectures
    for architecture in named if isinstance(named, (list, tuple)) else [named]:
        model_class = getattr(transformers, str(architecture), None)
        if isinstance(model_class, type) and issubclass(model_class, PreTrainedModel):
            yield model_class
    names = ("AutoModelForCausalLM", *_AUTO_CLASSES) if getattr(config, "is_decoder", False) else _AUTO_CLASSES
    for name in names:
        mapping = getattr(transformers, name)._model_mapping
        if type(config) in mapping:
            found = mapping[type(config)]
            yield from found if isinstance(found, tuple) else (found,)


def _returns_loss(model_class: type[PreTrainedModel]) -> bool:
    return any(name in inspect.signature(model_class.forward).parameters for name in LOSS_ARGUMENTS)


def _brief(error: Exception) -> str:
    """The message in one line. (Validators give the field in the first line, and the error in the second.)"""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else f"{text[:237]}..."
