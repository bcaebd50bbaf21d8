"""The page, from a file as a GPU would leave it."""

from __future__ import annotations

from typing import Any

from experiments.device.page import RENDERED, page
from experiments.device.stages import STAGES

GIB = 2**30


def case(name: str, **found: Any) -> dict[str, Any]:
    return {"case": name, "state": "measured", "seconds": 1.0, "found": found}


def stage(name: str, *cases: dict[str, Any], state: str = "done", reason: str | None = None) -> dict[str, Any]:
    return {"stage": name, "title": f"about {name}", "state": state, "reason": reason, "seconds": 1.0, "cases": cases}


def variant(step_ms: float, peak: int, kept: int, **facts: Any) -> dict[str, Any]:
    return {"step_ms": step_ms, "peak_bytes": peak * GIB, "kept_bytes": kept * GIB, "first_loss": 2.5, **facts}


STEPS = {
    "plain": variant(100.0, 40, 20, equal_loss=True),
    "inverted": variant(102.0, 30, 15, equal_loss=False, ratio={"median": 1.024}),
    "checkpointing": {"unavailable": "out of memory: tried"},
}
BUDGET = {
    **{"budget_bytes": 24 * GIB, "predicted_bytes": 20 * GIB, "measured_bytes": 21 * GIB, "used_bytes": 23 * GIB},
    **{"layers": 32, "checkpointed": 7},
}
FIGURES = {"native": {"ms": 0.5, "copy_share": 0.91}, "liger": {"unavailable": "not installed"}}
MEASURED = {
    "format": 1,
    "device": {"name": "NVIDIA H999", "kind": "cuda", "memory_bytes": 80 * GIB},
    "environment": {"torch": "2.11.0", "triton": "3.6.0", "transformers": "5.17.0", "driver": "580.1"},
    "command": "python scripts/device.py",
    "seconds": 431.2,
    "stages": [
        stage("smoke", case("gelu, triton, bf16", errors={"output": 0.0017, "gradient 1": 0.0027})),
        stage("steps", case("m", title="Model", sequences=4, tokens=8, dtype="bf16", variants=STEPS)),
        stage("budget", case("b", title="Model", sequences=4, tokens=8, dtype="bf16", **BUDGET)),
        stage(
            "counted",
            case(
                "c",
                model="Mistral-7B",
                setting="LoRA",
                variant="ours",
                counted={"kept_bytes": 16 * GIB},
                measured_bytes=17 * GIB,
                measured_note=None,
            ),
            {"case": "d", "state": "failed", "reason": "it was killed by SIGKILL", "output": []},
        ),
        stage(
            "operators",
            case(
                "o",
                operator="gelu",
                dtype="bf16",
                elements=1 << 20,
                forward={"implementations": FIGURES},
                backward={"implementations": FIGURES},
            ),
        ),
        stage("tests", case("tests/test_a.py", counts={"passed": 9, "failed": 1}), state="cut", reason="over"),
        stage("later", state="not run", reason="its time was over"),
    ],
}


def test_without_a_gpu_it_says_so() -> None:
    assert page({}).endswith("Not yet measured on a GPU.\n")
    rehearsal = {**MEASURED, "device": {"name": "EPYC", "kind": "cpu"}}
    assert page({"a": rehearsal, "b": {**MEASURED, "device": None}}) == page({})


def test_every_stage_is_rendered() -> None:
    assert list(RENDERED) == [stage.name for stage in STAGES]


def test_what_a_gpu_has_measured() -> None:
    text = page({"device-nvidia-h999.json": MEASURED})
    lines = text.splitlines()
    for expected in (
        "## NVIDIA H999",
        "80.00 GiB; torch 2.11.0, triton 3.6.0, transformers 5.17.0, driver 580.1; `python scripts/device.py`, 431 s.",
        "| gelu, triton, bf16 | 0.0017 | 0.0027 |",
        "| Model, 4x8, bf16: plain | 40.00 GiB | 20.00 GiB | 100.0 ms | equal |",
        "| Model, 4x8, bf16: inverted | 30.00 GiB (-25.0%) | 15.00 GiB (-25.0%) | 1.02x | differs: 2.5 |",
        "| Model, 4x8, bf16: checkpointing | - | - | - | out of memory: tried |",
        "| Mistral-7B, LoRA: ours | 16.00 GiB | 17.00 GiB | +6.2% |",
        "| Model, 4x8, bf16 | 24.00 GiB | 7 of 32 | 20.00 GiB | 21.00 GiB (+5.0%) | 23.00 GiB |",
        "| gelu, bf16, 1,048,576: native | 0.5 / 0.5 | 91% / 91% |",
        "| tests/test_a.py | 9 passed, 1 failed |",
        "- counted, d: it was killed by SIGKILL",
        "- later: its time was over",
    ):
        assert expected in lines, expected
    assert "liger |" not in text
