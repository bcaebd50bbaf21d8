"""Measure operators and whole training steps on one device. Needs torch, transformers and accelerate alone.

Usage: python scripts/benchmark.py [--device cuda] [--backends eager compile] [--output FILE] [--minutes 9] [--quick]
       python scripts/benchmark.py --plot-only results/benchmark-DEVICE.json
"""

import sys

from hf_invact.experiments.benchmark.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
