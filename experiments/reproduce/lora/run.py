"""Fine-tunes with LoRA and its dropout: plain, with the inputs of adapters alone, with everything, and as a control."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ..finetune.run import train_subjects
from ..subjects import LORA_SUBJECTS, QUICK_LORA_SUBJECTS

PART = "lora"


def run(folder: Path, quick: bool, console: Console, command: str) -> Path:
    """Run what is not finished, and write lora.json and its plot into the folder.

    Raises:
        ConfigError, RunFailed: as `train_subjects`.
    """
    return train_subjects(PART, QUICK_LORA_SUBJECTS if quick else LORA_SUBJECTS, folder, console, command)
