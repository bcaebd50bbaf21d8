"""Loads what was saved in a process where this package does not exist, and prints the losses for each folder.

Run as `python plain.py FOLDER...`; each folder holds a model, and other files that a test saved.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM


def losses(folder: Path) -> dict[str, float | str]:
    is_bert = json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    auto_class = AutoModelForMaskedLM if is_bert else AutoModelForCausalLM
    models = {"pretrained": auto_class.from_pretrained(folder)}
    models["state"] = auto_class.from_config(models["pretrained"].config)
    models["state"].load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    models["unpatched"] = torch.load(folder / "unpatched.pt", weights_only=False)
    ids = torch.arange(3, 35).view(2, 16)
    with torch.no_grad():
        found = {key: model.eval()(input_ids=ids, labels=ids).loss.item() for key, model in models.items()}
    try:
        torch.load(folder / "patched.pt", weights_only=False)
    except ImportError as error:
        found["patched"] = str(error)
    return found


if __name__ == "__main__":
    sys.modules["hf_invact"] = None  # type: ignore[assignment]  # importing it fails
    for path in sys.argv[1:]:
        print(json.dumps(losses(Path(path))))
