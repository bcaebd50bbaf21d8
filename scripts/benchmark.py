"""Measure operators and whole training steps on one device. Needs torch, transformers and accelerate alone.

Usage: python scripts/benchmark.py [--device cuda] [--backends eager compile] [--output FILE] [--minutes 9] [--quick]
       python scripts/benchmark.py --plot-only results/benchmark-DEVICE.json
"""

import sys

try:
    from hf_invact.experiments.script import start
except KeyboardInterrupt:  # while PyTorch is loaded
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(start("hf_invact.experiments.benchmark.command"))
