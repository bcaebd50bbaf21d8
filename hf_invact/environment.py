"""Describes the installation: versions, devices and their backends, and what can be inverted."""

from __future__ import annotations

import os
import platform
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from . import __version__, sites
from .display.sizes import size
from .display.tables import table
from .ops.backends import AUTO, ENVIRONMENT_VARIABLE, TRITON_DEVICES, choose_backend, why_not_triton
from .sites import Known

PACKAGES = ("torch", "transformers", "accelerate", "peft", "triton", "liger-kernel")
WIDTH = 100

# Triton for other devices is distributed under other names.
_OTHER_NAMES = {"triton": ("pytorch-triton", "pytorch-triton-rocm", "pytorch-triton-xpu", "triton-windows")}


def describe_installation() -> dict[str, Any]:
    """The installation as values for JSON; the version is None for a package that is not installed."""
    packages = {name: _version_of_any(name, *_OTHER_NAMES.get(name, ())) for name in PACKAGES}
    return {
        "versions": {"hf_invact": __version__, "python": platform.python_version(), **packages},
        "platform": platform.platform(),
        "devices": [_describe_device(device) for device in _devices()],
        **{known.key: known.names for known in _known()},
    }


def render_installation(facts: dict[str, Any]) -> str:
    """The result of `describe_installation` as text for a terminal."""
    versions = [(name, found or "not installed") for name, found in facts["versions"].items()]
    devices = [("device", "name", "auto uses", "why")]
    for device in facts["devices"]:
        name = [device["name"], *([size(device["memory_bytes"])] if device["memory_bytes"] else [])]
        devices.append((device["device"], ", ".join(name), device["backend"] or "-", device["reason"]))
    return "\n\n".join(
        [
            table([*versions, ("platform", facts["platform"])], aligned="<"),
            table(devices, aligned="<"),
            *(f"{known.heading}:\n{_names(facts[known.key])}" for known in _known()),
        ]
    )


def installed_version(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor_name() -> str:
    """The processor's name; `platform.processor` is empty on most Linux systems."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _version_of_any(*packages: str) -> str | None:
    return next(filter(None, map(installed_version, packages)), None)


def _devices() -> list[torch.device]:
    """The CPU and all accelerators."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count() if accelerator is not None else 0
    return [torch.device("cpu"), *(torch.device(accelerator.type, index) for index in range(count) if accelerator)]


def _describe_device(device: torch.device) -> dict[str, Any]:
    facts: dict[str, Any] = {"device": str(device), "name": "", "memory_bytes": None, "backend": None}
    try:
        facts["name"], facts["memory_bytes"] = _name_and_memory(device)
        like = torch.empty(0, device=device)
        facts["backend"] = choose_backend(AUTO, like)
        facts["reason"] = _reason(facts["backend"], like)
    except (RuntimeError, ValueError) as error:  # a busy or broken device, or an invalid backend
        facts["reason"] = str(error).partition("\n")[0]
    return facts


def _name_and_memory(device: torch.device) -> tuple[str, int | None]:
    if device.type == "cpu":
        return f"{processor_name()}, {torch.get_num_threads()} threads", None
    properties = getattr(torch.get_device_module(device), "get_device_properties", None)  # Apple's devices have none
    if properties is None:
        return device.type, None
    found = properties(device)
    return found.name, found.total_memory


def _reason(backend: str, like: torch.Tensor) -> str:
    if os.environ.get(ENVIRONMENT_VARIABLE, AUTO) not in ("", AUTO):
        return f"{ENVIRONMENT_VARIABLE} is set"
    if backend == "triton":
        return "triton is installed; float64 tensors use eager"
    if like.device.type not in TRITON_DEVICES:
        return f"triton has no kernels for {like.device.type} tensors"
    return why_not_triton(like) or ""


def _known() -> list[Known]:
    return [known for kind in sites.KINDS for known in kind.known()]


def _names(names: Sequence[str] | Mapping[str, Sequence[str]]) -> str:
    if isinstance(names, Mapping):
        return "\n".join(f"  {group}:\n{_listed(of_group)}" for group, of_group in names.items())
    return _listed(name.rpartition(".")[2] for name in names)


def _listed(names: Iterable[str]) -> str:
    return textwrap.fill(", ".join(names), WIDTH, initial_indent="    ", subsequent_indent="    ")
