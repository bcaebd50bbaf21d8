"""Fine-tune one model.

Usage: python scripts/finetune.py [CONFIG.yaml] [--use_inverted_activations] [--key value ...]

The keys are those of transformers.TrainingArguments and of experiments.finetuning.arguments.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments/ lies beside this folder

try:
    from experiments.common.script import start
except KeyboardInterrupt:  # while PyTorch is loaded
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(start("experiments.finetuning.run"))
