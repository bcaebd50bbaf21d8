"""Fine-tune one model.

Usage: python scripts/finetune.py [CONFIG.yaml] [--use_inverted_activations] [--key value ...]

The keys are those of transformers.TrainingArguments and of hf_invact.experiments.arguments.
"""

import sys

from hf_invact.experiments.finetune import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
