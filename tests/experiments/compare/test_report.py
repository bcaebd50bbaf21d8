"""The report of a comparison, written from made-up numbers: no value here was measured."""

from __future__ import annotations

import math
import os
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NoReturn

import pytest
from rich.console import Console

from experiments.compare.report import summary_rows, summary_table, write_report

MIB = 2**20
STEPS = 60
MODELS = {
    "gpt2": ("GPT-2", "causal-lm", "gelu_new", (3.0, 2.0, 1.03)),
    "bert": ("BERT", "masked-lm", "gelu", (2.0, None, 1.03)),
    "llama": ("Llama", "causal-lm", "silu", (4.0, None, 3.0)),
    "org/mistral": ("Mistral, LoRA", "causal-lm", "silu", (4.0, None, 3.03)),
}


def synthetic_comparison(*, seeds: tuple[int, ...] = (0, 1), cuda: bool = False) -> dict[str, Any]:
    """A comparison of four models with invented numbers that look like training."""
    return {
        "title": "Small models, with and without inverted activations",
        "command": "python scripts/compare.py configs/demo.yaml",
        "environment": {
            "python": "3.11.7",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "hf_invact": "0.1.0",
            "platform": "Linux",
            "cpu_count": 2,
            "device": "Imaginary GPU" if cuda else "cpu",
        },
        "models": [_model(name, seeds, cuda) for name in MODELS],
    }


def _model(name: str, seeds: tuple[int, ...], cuda: bool) -> dict[str, Any]:
    title, task, activation, units = MODELS[name]
    sites = dict(zip(("plain", "fused", "inverted"), units, strict=True))
    several = len(seeds) > 1
    return {
        "name": name,
        "title": title,
        "task": task,
        "dtype": "float32",
        "parameters": 5_000_000,
        "activation": activation,
        "seeds": list(seeds),
        "data": {"name": "stdlib-prose", "sha256": "0123456789abcdef" * 4, "python": "3.11.7"},
        "runs": [
            _run(name, variant, seed, units, cuda)
            for seed in seeds
            for variant, units in sites.items()
            if units is not None
        ],
        "comparison": {
            "first_loss_difference": 0.0,
            "first_loss_identical": True,
            "largest_difference": 1.234e-5,
            "final_difference": 1.1e-6,
            "steps": STEPS,
            "steps_within_spread": STEPS if several else None,
            "smallest_spread": 0.0123 if several else None,
            "largest_spread": 0.456 if several else None,
            "final_spread": 0.1 if several else None,
        },
        "step_time": {"ratio": 1.0512, "low": 1.021, "high": 1.09, "pairs": 7} if name != "bert" else None,
    }


def _run(name: str, variant: str, seed: int, units: float, cuda: bool) -> dict[str, Any]:
    chance, rounding = random.Random(seed), random.Random(f"{variant}{seed}")
    loss = [8.3 * math.exp(-step / 40) + 2 + chance.gauss(0, 0.08) for step in range(STEPS)]
    if variant != "plain":
        drift = [0.0 if step < 3 else 10 ** (-7 + 2 * step / STEPS) * rounding.gauss(0, 1) for step in range(STEPS)]
        loss = [value + moved for value, moved in zip(loss, drift, strict=True)]
    parts = {"activation": 12 * (units - 1), "mlp": 12, "attention": 20, "norm": 7.5, "dropout": 1.25, "embedding": 0}
    saved_parts = {part: int(mib * MIB) for part, mib in {**parts, "head and loss": 33, "other": 0.1}.items()}
    saved = sum(saved_parts.values())
    return {
        "variant": variant,
        "seed": seed,
        "folder": f"runs/{name}-{variant}-seed{seed}",
        "loss": [{"step": step, "loss": value} for step, value in enumerate(loss, 1)],
        "eval": {"eval_loss": loss[-1] + 0.1, "perplexity": math.exp(loss[-1] + 0.1), "eval_accuracy": 0.81234},
        "train_seconds": 12.34,
        "step_seconds": 0.2,
        "saved_bytes": saved,
        "saved_parts": saved_parts,
        "intermediate_units": units,
        "peak_cuda_allocated_bytes": saved + 80 * MIB if cuda else None,
        "peak_cuda_reserved_bytes": saved + 130 * MIB if cuda else None,
    }


def _summary(comparison: dict[str, Any]) -> dict[str, list[str]]:
    """Measure -> its text for each model, read off the console table."""
    table = summary_table(comparison)
    rows = zip(*[[str(cell).replace("\u00a0", " ") for cell in column.cells] for column in table.columns], strict=True)
    return {measure: texts for measure, *texts in rows}


class _References(HTMLParser):
    """Collects what a page would load or link to, and the alternative texts of its images."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.alts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.alts += [dict(attrs).get("alt") or ""] if tag == "img" else []


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(synthetic_comparison(), tmp_path_factory.mktemp("report") / "new").parent


def _one_model(**changes: Any) -> dict[str, Any]:
    comparison = synthetic_comparison(**changes)
    del comparison["models"][1:]
    return comparison


def test_files_are_written_and_no_others(written: Path) -> None:
    names = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    models = ["1-gpt2", "2-bert", "3-llama", "4-org-mistral"]
    plots = {f"plots/{model}-{kind}.png" for model in models for kind in ("loss", "memory")}
    assert names == {"report.html", "report.md"} | plots


def test_images_are_small(written: Path) -> None:
    assert max(path.stat().st_size for path in written.glob("plots/*.png")) < 150_000


def test_html_needs_nothing_from_outside(written: Path) -> None:
    page = (written / "report.html").read_text(encoding="utf-8")
    found = _References(page)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in found.links)
    assert not found.tags & {"script", "link", "iframe", "object", "embed"}
    assert "url(" not in page
    assert "@import" not in page
    assert len(found.alts) == 8
    assert all(len(alt) > 20 for alt in found.alts)


def test_markdown_links_to_the_plots(written: Path) -> None:
    links = re.findall(r"!\[.+\]\((.+)\)", (written / "report.md").read_text(encoding="utf-8"))
    assert len(links) == 8
    assert all((written / link).read_bytes().startswith(b"\x89PNG") for link in links)


def test_summary_rows_hold_bare_numbers() -> None:
    row = summary_rows(synthetic_comparison())[0]
    assert row.title == "GPT-2"
    assert row.first_loss_identical is True
    assert row.largest_difference == 1.234e-5
    assert row.intermediate_units == {"plain": 3.0, "fused": 2.0, "inverted": 1.03}
    assert list(row.saved_bytes) == ["plain", "fused", "inverted"]
    assert row.peak_bytes == {}


def test_summary_rounds() -> None:
    summary = _summary(synthetic_comparison())
    assert [texts[0] for texts in summary.values()] == [
        "identical",
        "1.2e-05",
        "0.012 to 0.46",
        "3.8019 → 3.8019",
        "97.8 → (85.8) → 74.2",
        "-24.2% (-13.6%)",
        "3.00 → (2.00) → 1.03",
        "1.05 (1.02 to 1.09)",
    ]
    assert summary["Kept per MLP, units"][1] == "2.00 → 1.03"
    assert summary["Step time ratio"][1] == "not measured"


def test_different_first_losses_are_reported() -> None:
    comparison = synthetic_comparison()
    comparison["models"][0]["comparison"] |= {"first_loss_identical": False, "first_loss_difference": 0.00321}
    assert _summary(comparison)["First loss"][:2] == ["differs by 0.0032", "identical"]


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_every_form_has_the_same_summary_and_the_details(written: Path, name: str) -> None:
    text = (written / name).read_text(encoding="utf-8").replace("\u00a0", " ").replace("\\", "")
    cells = [cell for texts in _summary(synthetic_comparison()).values() for cell in texts]
    details = [
        "5.00 M parameters",
        "0123456789ab",
        "perplexity",
        "49.494",
        "200.0",
        "Steps within the spread, of 60",
        "0.81234",
        "7 pairs",
    ]
    environment = ["python scripts/compare.py configs/demo.yaml", "2.13.0", "5.23.0"]
    assert [text_ for text_ in cells + details + environment if text_ not in text] == []


@pytest.mark.parametrize("cuda", [False, True], ids=["cpu", "cuda"])
def test_peak_memory_only_where_there_was_a_cuda_device(tmp_path: Path, cuda: bool) -> None:
    comparison = _one_model(cuda=cuda)
    page = write_report(comparison, tmp_path)
    for text in (page.read_text(encoding="utf-8"), page.with_suffix(".md").read_text(encoding="utf-8")):
        assert ("There was no CUDA device" in text) is not cuda
        assert ("Peak CUDA, MiB" in text) is cuda
    assert (tmp_path / "plots/1-gpt2-cuda.png").exists() is cuda
    assert _summary(comparison).get("Peak CUDA, MiB") == (["177.8 → (165.8) → 154.2"] if cuda else None)


def test_single_seed_has_no_spread(tmp_path: Path) -> None:
    comparison = _one_model(seeds=(3,))
    page = write_report(comparison, tmp_path).with_suffix(".md").read_text(encoding="utf-8")
    assert _summary(comparison)["Spread between seeds"] == ["n/a"]
    assert "| Steps within the spread, of 60 | n/a |" in page
    assert "None" not in page


def test_values_are_those_of_the_first_seed() -> None:
    comparison = _one_model(seeds=(0, 1))
    before = summary_rows(comparison)
    comparison["models"][0]["runs"].reverse()
    assert summary_rows(comparison) == before


def test_loss_that_is_not_finite_is_shown(tmp_path: Path) -> None:
    comparison = _one_model()
    inverted = comparison["models"][0]["runs"][2]
    inverted["loss"][40:] = [{"step": step, "loss": math.nan} for step in range(41, STEPS + 1)]
    inverted["eval"]["eval_loss"] = math.nan
    comparison["models"][0]["comparison"]["largest_difference"] = math.nan
    page = write_report(comparison, tmp_path).read_text(encoding="utf-8")
    summary = _summary(comparison)
    assert summary["Final loss"] == ["3.8019 → NaN"]
    assert summary["Largest loss difference"] == ["NaN"]
    assert "GPT-2, inverted, seed 0, diverged: the loss of 20 steps is not finite, first at step 41." in page
    assert "<td>NaN</td>" in page


def test_bytes_that_were_not_measured(tmp_path: Path) -> None:
    comparison = _one_model()
    comparison["models"][0]["inverted"] = 0
    for run in comparison["models"][0]["runs"]:
        run |= dict.fromkeys(("saved_bytes", "saved_parts", "intermediate_units", "step_seconds"))
    page = write_report(comparison, tmp_path).read_text(encoding="utf-8")
    assert "nothing was inverted in GPT-2: both of its runs are plain." in page
    assert "not measured" in page
    assert [path.name for path in tmp_path.glob("plots/*")] == ["1-gpt2-loss.png"]


def test_model_without_inverted_runs(tmp_path: Path) -> None:
    comparison = _one_model()
    model = comparison["models"][0]
    model["runs"] = [run for run in model["runs"] if run["variant"] == "plain"]
    model |= {"comparison": None, "step_time": None}
    page = write_report(comparison, tmp_path).read_text(encoding="utf-8")
    assert "GPT-2 has no inverted run." in page
    assert [texts[0] for texts in _summary(comparison).values()][3:6] == ["3.8019 → n/a", "97.8 → n/a", "n/a"]


def test_text_is_escaped(tmp_path: Path) -> None:
    comparison = _one_model()
    comparison["models"][0] |= {"title": "<b>a|b</b> & [red]_c_", "name": "../../etc/<b>"}
    comparison["command"] = "compare.py <script>alert(1)</script>"
    page = write_report(comparison, tmp_path / "report")
    found = _References(page.read_text(encoding="utf-8"))
    assert not found.tags & {"b", "script"}
    assert found.alts[0].startswith("Training loss of <b>a|b</b> & [red]_c_")
    assert "## \\<b\\>a\\|b\\</b\\> \\& \\[red\\]\\_c\\_" in page.with_suffix(".md").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    console = Console(width=200)
    with console.capture() as capture:
        console.print(summary_table(comparison))
    assert "<b>a|b</b> & [red]_c_" in capture.get()


def test_report_can_be_written_again(tmp_path: Path) -> None:
    page = write_report(_one_model(seeds=(0,)), tmp_path)
    first = page.read_bytes()
    page.write_text("an older report")
    assert write_report(_one_model(seeds=(0,)), tmp_path).read_bytes() == first


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = write_report(_one_model(seeds=(0,)), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(handle: int, mode: str) -> NoReturn:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(OSError, match="no space left"):
        write_report(_one_model(seeds=(0, 1)), page.parent)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
