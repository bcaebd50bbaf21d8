"""Fine-tune one model.

Usage: python scripts/finetune.py [CONFIG.yaml] [--use_inverted_activations] [--key value ...]

The keys are those of transformers.TrainingArguments and experiments/finetuning/arguments.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments/ is beside this folder

from experiments.common.script import start

if __name__ == "__main__":
    sys.exit(start("experiments.finetuning.run"))
