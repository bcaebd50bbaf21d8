"""Tiny runs on a few lines of local text: real training in well under a second."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16},
    "bert": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 16,
    },
}
_ANIMALS = ("cat", "dog", "hen", "fox", "owl", "cow", "pig")
_VERBS = ("sees", "hears", "likes", "follows", "finds")
_PLACES = ("in the old house", "by the river", "under a green tree")
SENTENCES = [
    f"The {_ANIMALS[n % 7]} {_VERBS[n % 5]} the {_ANIMALS[(3 * n + 1) % 7]} {_PLACES[n % 3]}." for n in range(80)
]
RESULTS = ("train_results.json", "eval_results.json", "all_results.json", "trainer_state.json", "README.md")


def write_config(folder: Path, model: str = "gpt2", *, name: str = "config.yaml", **changes: Any) -> Path:
    """A config of six steps on `SENTENCES`, in a file beside it. A change to None leaves the key out."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    text.write_text("".join(f"{sentence}\n" for sentence in SENTENCES), encoding="utf-8")
    values = {
        "task": "masked-lm" if model == "bert" else "causal-lm",
        "train_file": str(text),
        "max_seq_length": 16,
        "max_eval_samples": 4,
        "validation_fraction": 0.2,
        "model_type": model,
        "model_config": MODELS[model],
        "tokenizer_vocab_size": 300,
        "output_dir": str(folder / "run"),
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": "1e-3",  # what YAML makes of 1e-3 without quotes, too
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": "none",
    }
    values = {key: value for key, value in {**values, **changes}.items() if value is not None}
    config = folder / name
    config.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return config


def write_plan(folder: Path, *, seeds: Sequence[int] = (0, 1), max_steps: int = 3) -> Path:
    """A comparison of two models, which writes into the folder's `out`."""
    for model in ("bert", "gpt2"):
        write_config(folder, model, name=f"{model}.yaml", max_steps=max_steps)
    fused = {"activation_function": "gelu_pytorch_tanh"}
    values = {
        "title": "Two tiny models",
        "output_dir": str(folder / "out"),
        "seeds": list(seeds),
        "experiments": [
            {"name": "bert", "title": "BERT", "config": "bert.yaml"},
            {"name": "gpt2", "config": "gpt2.yaml", "fused": fused},
        ],
    }
    plan = folder / "plan.yaml"
    plan.write_text(yaml.safe_dump(values), encoding="utf-8")
    return plan


def write_records(path: Path, records: list[dict[str, Any]]) -> str:
    """A .jsonl file."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def contents(folder: Path) -> dict[str, str]:
    """Every path below a folder, with a hash of its content."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "/"
        for path in sorted(folder.rglob("*"))
    }


def losses(result: dict[str, Any]) -> list[float]:
    """The training losses of a result, by step."""
    return [entry["loss"] for entry in result["loss"]]


def alive_after(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """The processes that have not ended by then. A zombie counts as ended."""
    deadline = time.monotonic() + seconds
    while (alive := [process for process in processes if _is_alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return alive


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def own_lines(output: str) -> str:
    """What a script printed, without what bitsandbytes prints where PEFT imports it: it asks the hub for a kernel."""
    lines = output.splitlines(keepends=True)
    return "".join(line for line in lines if "bitsandbytes" not in line and "get_kernel(" not in line)
