"""Describes the measured device and the versions."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import torch

from hf_invact.environment import installed_version

from ..common.environment import describe_environment
from ..common.errors import ConfigError

PACKAGES = ("triton", "liger-kernel")


def choose_device(name: str | None) -> torch.device:
    """The device of this name. Without a name: the current CUDA device, or else the CPU.

    Raises:
        ConfigError: it is neither a CPU nor a CUDA device, or does not exist.
    """
    has_cuda = torch.cuda.is_available()
    try:
        device = torch.device(name or ("cuda" if has_cuda else "cpu"))
    except RuntimeError as error:
        raise ConfigError(f"--device must be cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if has_cuda else 0
        if (device.index or 0) >= count:
            raise ConfigError(f"--device {name} does not exist: PyTorch sees {count} CUDA devices; use --device cpu")
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    return device


def describe_device(device: torch.device) -> dict[str, Any]:
    """Its name, kind and size, as JSON-compatible data."""
    if device.type == "cpu":
        environment = describe_environment()
        facts = {"name": environment["processor"], "kind": "cpu", "threads": environment["threads"]}
    else:
        properties = torch.cuda.get_device_properties(device)
        facts = {
            "name": properties.name,
            "kind": "cuda",
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
        }
    return {**facts, "slug": slug(facts["name"] if device.type == "cuda" else f"cpu {facts['name']}")}


def describe_versions(device: torch.device) -> dict[str, Any]:
    """Versions and the rest of the environment, as JSON-compatible data; None for a package that is not installed."""
    environment = describe_environment()
    del environment["device"]  # of this machine, not of this measurement
    environment |= {package: installed_version(package) for package in PACKAGES}
    if device.type == "cuda":
        environment |= {"cuda": torch.version.cuda, "driver": _driver()}
    return environment


def slug(name: str) -> str:
    """A device's name as a part of a file name.

    >>> slug("NVIDIA H200")
    'nvidia-h200'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _driver() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True, timeout=30)
    return result.stdout.splitlines()[0].strip() if result.returncode == 0 and result.stdout.strip() else None
