"""Reproduce the published experiments, beside what one would pick instead.

Usage: python scripts/reproduce.py {memory,methods,steps,finetune,all} [--quick] [--output_dir DIR]
"""

import sys

from hf_invact.experiments.reproduce.command import main, quieten_libraries

if __name__ == "__main__":
    quieten_libraries()
    sys.exit(main(sys.argv[1:]))
