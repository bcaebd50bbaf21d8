"""Fine-tune one model.

Usage: python scripts/finetune.py [CONFIG.yaml] [--use_inverted_activations] [--key value ...]

The keys are those of transformers.TrainingArguments and of hf_invact.experiments.arguments.
"""

import sys

try:
    from hf_invact.experiments.script import start
except KeyboardInterrupt:  # while PyTorch is loaded
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(start("hf_invact.experiments.finetune"))
