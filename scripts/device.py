"""Measure everything that needs a GPU in one call of at most 8 minutes, the most important first, into one file.

Needs torch, transformers, accelerate and peft alone; without a GPU, `--device cpu` runs the same code on small sizes.

Usage: python scripts/device.py [--device cuda] [--minutes 8] [--only STAGE ...] [--output FILE]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments/ lies beside this folder

from experiments.common.script import start

if __name__ == "__main__":
    sys.exit(start("experiments.device.command"))
