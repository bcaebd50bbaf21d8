"""Remembers what was decided, for as long as nothing changes that it depends on."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch import nn
from transformers import PretrainedConfig

from ...sites import Site
from ..config import InvActConfig
from ..probing.signature import setting, signature
from .planner import Decision

_NOT_READ = ("use_cache", "problem_type")  # a Trainer turns caches off, and a classifier notes what its labels are


class Memory:
    """Decisions by all that they depend on. A model of which nothing has changed is not measured again."""

    def __init__(self) -> None:
        self._decisions: dict[Hashable, dict[str, Decision]] = {}

    def recall(self, key: Hashable) -> Mapping[str, Decision] | None:
        """The decisions by name of the site; None where there are none for this key (see `dependencies`)."""
        return self._decisions.get(key)

    def keep(self, key: Hashable, decisions: Mapping[Site, Decision]) -> None:
        """Remember decisions."""
        self._decisions[key] = {site.name: decision for site, decision in decisions.items()}


def dependencies(model: nn.Module, obstacles: Mapping[Site, str | None], config: InvActConfig) -> Hashable:
    """What the decisions for a model depend on: its layers, the configs they read, the sites, and the precision.

    Not what the model itself has beside its layers: Accelerate replaces its forward, for one.

    Args:
        model: with nothing patched in it.
        obstacles: of all sites: why one is left alone, if it is.
    """
    configs = {id(each.config): each.config for each in model.modules() if hasattr(each, "config")}
    settings = [setting(_read(each), model) for each in configs.values() if isinstance(each, PretrainedConfig)]
    layers = [(name, signature(child)) for name, child in model.named_children()]
    sites = [(site.name, site.kind.name, site.key, why) for site, why in obstacles.items()]
    precision = config.autocast_dtype, *((_autocast(kind)) for kind in ("cpu", _device(model)))
    demanded = [(kind.name, tuple(config.demanded(kind))) for kind in config.kinds]
    return type(model), tuple(layers), tuple(settings), tuple(sites), precision, tuple(demanded)


def _read(config: PretrainedConfig) -> dict[str, object]:
    """What layers may read when they are measured."""
    return {name: value for name, value in vars(config).items() if name not in _NOT_READ}


def _device(model: nn.Module) -> str:
    return next((weight.device.type for weight in model.parameters()), "cpu")


def _autocast(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
