"""Fine-tune with and without inverted activations, and compare both in a report.

Usage: python scripts/compare.py CONFIG.yaml [--output_dir DIR] [--seeds 0 1 2] [--key value ...]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments/ is beside this folder

from experiments.common.script import start

if __name__ == "__main__":
    sys.exit(start("experiments.compare.command"))
