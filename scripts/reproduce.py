"""Reproduce the published experiments, beside what one would pick instead.

Usage: python scripts/reproduce.py {memory,methods,steps,finetune,all} [--quick] [--output_dir DIR]
"""

import sys

try:
    from hf_invact.experiments.script import start
except KeyboardInterrupt:  # while PyTorch is loaded
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(start("hf_invact.experiments.reproduce.command", "quiet_main"))
