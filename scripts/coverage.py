"""Patch a small model of every model type of the installed Transformers, and compare it with the unpatched one.

Writes results/coverage.json, from which scripts/render_results.py makes docs/coverage.md. Needs no network and no GPU.

Usage: python scripts/coverage.py [MODEL_TYPE ...]
"""

import os
import sys
from pathlib import Path

# The small models need nothing from the hub. Set before anything of Hugging Face is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments/ is beside this folder

from experiments.common.script import start

if __name__ == "__main__":
    sys.exit(start("experiments.coverage.command"))
