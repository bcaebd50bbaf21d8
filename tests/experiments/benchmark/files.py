"""A results file of a benchmark on a GPU, with made-up numbers."""

from __future__ import annotations

from typing import Any

SIZES = (1 << 20, 1 << 26)
RATIOS = {"native": 1.02, "compiled": 1.05, "liger": 0.97}


def cuda_results(name: str = "NVIDIA H999") -> dict[str, Any]:
    """Two operators in two dtypes and sizes, and two models."""
    operators = [
        _operator(operator, dtype, elements)
        for operator in ("gelu", "gate_silu")
        for dtype in ("bf16", "fp32")
        for elements in SIZES
    ]
    return {
        "format": 1,
        "command": "python scripts/benchmark.py",
        "device": {"name": name, "kind": "cuda", "slug": name.lower().replace(" ", "-")},
        "environment": {
            "torch": "2.11.0",
            "triton": "3.6.0",
            "transformers": "5.17.0",
            "liger-kernel": "0.8.5",
            "cuda": "13.0",
            "driver": "580.1",
        },
        "settings": {
            "dtypes": ["bf16", "fp32"],
            "sizes": list(SIZES),
            "compared_size": SIZES[-1],
            "backends": ["triton", "eager"],
            "seed": 0,
            "quick": False,
        },
        "complete": True,
        "operators": operators,
        "steps": [_model("gpt2", "GPT-2 (124M)", with_liger=False), _model("llama-1b", "Llama, 1.2B", with_liger=True)],
    }


def _operator(operator: str, dtype: str, elements: int) -> dict[str, Any]:
    is_compared = elements == SIZES[-1]
    has_liger = operator == "gate_silu"
    found = {"native": _figures(0.9)}
    if is_compared:
        found["compiled"] = _figures(0.88)
    if has_liger:
        found["liger"] = _figures(0.93)
    found["inverted-triton"] = _figures(0.91) | {
        "ratio_to_native": RATIOS["native"],
        "ratio_to_compiled": RATIOS["compiled"] if is_compared else None,
        "ratio_to_liger": RATIOS["liger"] if has_liger else None,
    }
    if is_compared:
        found["inverted-eager"] = {"unavailable": "out of memory: tried to allocate 4 GiB"}
    direction = {"repetitions": 100, "copy": _figures(1.0), "implementations": found}
    return {
        "operator": operator,
        "dtype": dtype,
        "elements": elements,
        **dict.fromkeys(("forward", "backward", "autograd") if is_compared else ("forward", "backward"), direction),
    }


def _figures(share: float) -> dict[str, Any]:
    return {"ms": 0.21 / share, "bytes": 276824064, "gb_per_s": 1300.0 * share, "copy_share": share}


def _model(model: str, title: str, *, with_liger: bool) -> dict[str, Any]:
    missing = {"unavailable": "Liger has no kernel for this MLP"}
    variants: dict[str, dict[str, Any]] = {
        "plain": _step(1.0, 10 << 30),
        "inverted-auto": _step(1.01, 8 << 30, loss=10.80001),
        "checkpointing": _step(1.25, 5 << 30),
        "liger": _step(0.98, 9 << 30) if with_liger else missing,
    }
    if not with_liger:
        variants["fused"] = {"unavailable": "out of memory: tried to allocate 4 GiB"}
    shape = {"sequences": 8, "tokens": 1024, "dtype": "bf16"}
    return {"model": model, "title": title, "parameters": 124439808, **shape, "rounds": 12, "variants": variants}


def _step(ratio: float, peak: int, loss: float = 10.8) -> dict[str, Any]:
    facts = {"first_loss": loss, "kept_bytes": peak // 2, "peak_bytes": peak, "step_ms": 31.25 * ratio}
    spread = {"median": ratio, "low": ratio - 0.01, "high": ratio + 0.02}
    return facts if ratio == 1.0 else facts | {"ratio": spread}
