"""Where a result was measured: hardware and versions."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from hf_invact.environment import installed_version, processor_name

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft", "hf_invact")


def describe_environment() -> dict[str, Any]:
    """Hardware and versions, as JSON-compatible data."""
    return {
        "python": platform.python_version(),
        **{name: found for name in PACKAGES if (found := installed_version(name))},
        "platform": platform.platform(),
        # The vector instructions that PyTorch uses decide its speed, and the last digits of activations.
        "processor": f"{processor_name()} ({torch.backends.cpu.get_cpu_capability()})",
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
