"""Times training steps with LoRA: plain, with inverted activations and adapters that keep their input once."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ..steps.models import FULL_LORA, QUICK_LORA
from ..steps.run import time_models

PART = "lora_steps"


def run(folder: Path, quick: bool, console: Console, command: str) -> Path:
    """Write lora_steps.json and its figure into the folder.

    Raises:
        ConfigError: as `time_models`.
    """
    return time_models(PART, QUICK_LORA if quick else FULL_LORA, folder, quick, console, command)
