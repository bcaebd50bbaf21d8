"""Fine-tune with and without inverted activations, and report both side by side.

Usage: python scripts/compare.py CONFIG.yaml [--output_dir DIR] [--seeds 0 1 2] [--key value ...]
"""

import sys

from hf_invact.experiments.compare import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
