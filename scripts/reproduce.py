"""Reproduce the published experiments, and measure the alternatives.

Usage: python scripts/reproduce.py {memory,methods,steps,finetune,all} [--quick] [--output_dir DIR]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments/ is beside this folder

from experiments.common.script import start

if __name__ == "__main__":
    sys.exit(start("experiments.reproduce.command", "quiet_main"))
