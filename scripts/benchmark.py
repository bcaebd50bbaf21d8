"""Measure operators and whole training steps on one device. Needs torch, transformers and accelerate alone.

Usage: python scripts/benchmark.py [--device cuda] [--backends eager compile] [--output FILE] [--minutes 9] [--quick]
       python scripts/benchmark.py --plot-only results/benchmark-DEVICE.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments/ is beside this folder

from experiments.common.script import start

if __name__ == "__main__":
    sys.exit(start("experiments.benchmark.command"))
