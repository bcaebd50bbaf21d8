"""The Markdown of the part "memory"."""

from __future__ import annotations

from typing import Any

from experiments.reproduce.memory.tables import headline, section

GIB = 2**30
BERT = {"weights": 0.409, "plain": 5.12, "inverted": 4.03, "source": "a notebook", "change": -0.2314}
MISTRAL = {"weights": 4.83, "plain": 47.5, "inverted": 40.8, "source": "another", "change": -0.157}


def entry(case: str, model: str, setting: str, variant: str, kept: float | None, **more: Any) -> dict[str, Any]:
    is_compiled = "compile" in variant
    half = int((kept or 0) * GIB / 2)
    parts = {"not told apart": 2 * half} if is_compiled else {"activation": half, "norm": half}
    return {
        **{"case": case, "model": model, "setting": setting, "variant": variant, "published": None, "reason": None},
        **{
            "inputs": {"quantized": False, "forward_only": "published" in setting},
            "weights_bytes": GIB // 2,
            "plans": {},
        },
        **{"kept_bytes": None if kept is None else 2 * half, "parts": parts if kept else {}},
        **{"measured_bytes": None, "measured_note": "not yet measured on a GPU", **more},
    }


def results(**bert: Any) -> dict[str, Any]:
    emulated = {"quantized": True, "forward_only": True}
    bert_case = ("bert", "BERT-base", "16 x 512, fp32, as published")
    published_case, real_case = ("mp", "Mistral-7B", "4-bit, as published"), ("m", "Mistral-7B", "bf16")
    return {
        "command": "python scripts/reproduce.py memory",
        "environment": {"torch": "2.13", "transformers": "5.23", "device": "cpu"},
        "settings": {"sampled_layers": [2, 3]},
        "entries": [
            entry(*bert_case, "plain", 4.0, published=BERT, **bert),
            entry(*bert_case, "activation inverted", 3.0, published=BERT),
            entry(*bert_case, "ours", 3.0, published=BERT, plans={"output": 12}),
            entry(*bert_case, "torch.compile", None, published=BERT, reason="not counted: Error: why"),
            entry(*published_case, "plain", 40.0, published=MISTRAL, inputs=emulated),
            entry(*published_case, "activation inverted, GELU for SiLU", 33.0, published=MISTRAL, inputs=emulated),
            entry(*published_case, "ours", 32.0, published=MISTRAL, inputs=emulated),
            entry(*real_case, "plain", 20.0, published=MISTRAL),
            entry(*real_case, "ours", 15.0, published=MISTRAL),
            entry(*real_case, "torch.compile", 10.0, published=MISTRAL),
        ],
    }


def test_the_headline_compares_published_figures_with_ours() -> None:
    text = headline(results())
    (bert,) = (line for line in text.splitlines() if line.startswith("| BERT"))
    assert bert == (
        "| BERT-base, 16 x 512, fp32 | 5.12 → 4.03 GiB with weights (-23.1%) | 4.00 → 3.00 GiB (-25.0%) "
        "| 4.00 → 3.00 GiB (-25.0%) | 1.08x |"
    )
    (mistral,) = (line for line in text.splitlines() if line.startswith("| Mistral"))
    assert mistral == (
        "| Mistral-7B, bf16 | 47.5 → 40.8 GiB with weights (-15.7%) | 40.00 → 33.00 GiB (-17.5%) "
        "| 20.00 → 15.00 GiB (-25.0%) | 1.59x |"
    )
    assert "Not yet measured on a GPU." in text
    assert "`python scripts/reproduce.py memory`" in text


def test_a_table_for_each_case_by_part() -> None:
    text = section(results())
    assert text.count("### ") == 3
    assert "| kept, GiB | activation | norm | all | change | of the published | measured, GiB |" in text
    assert "| ours | 1.50 | 1.50 | 3.00 | -25.0% | 1.08x | - |" in text
    assert "Published: 5.12 → 4.03 GiB allocated" in text
    assert "Counted, with weights: 4.50 → 3.50 GiB." in text
    assert "Counted, with the published weights: 44.83 → 37.83 GiB." in text
    assert "*ours*: output (12)" in text


def test_what_was_not_counted_is_a_dash_with_its_reason() -> None:
    text = section(results())
    assert "| torch.compile | - | - | - | - | - | - |" in text
    assert "torch.compile: not counted: Error: why." in text


def test_a_compiled_model_has_one_part() -> None:
    assert "| torch.compile | - | - | 10.00 | -50.0% | 3.18x | - |" in section(results())


def test_a_measured_figure_has_its_column() -> None:
    text = section(results(measured_bytes=4 * GIB, measured_note=None))
    assert "| plain | 2.00 | 2.00 | 4.00 | - | - | 4.00 |" in text
    assert "Measured on cpu." in text
    assert "Not yet measured on a GPU." not in text


def test_the_emulated_setting_is_explained() -> None:
    text = section(results())
    assert text.count("emulated") == 1
    assert text.index("emulated") > text.index("### Mistral-7B, 4-bit")


def test_parts_that_keep_next_to_nothing_have_no_column() -> None:
    content = results()
    content["entries"][0]["parts"]["embedding"] = GIB // 300
    assert "embedding" not in section(content)
    content["entries"][0]["parts"]["embedding"] = GIB // 100
    assert "| embedding |" in section(content)
