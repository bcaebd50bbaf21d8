"""The README's section, the page, and the figures, from results files alone."""

from __future__ import annotations

import copy
import io
import runpy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiments.benchmark import tables
from experiments.benchmark.figures import operator_figure, step_figure, write_figures
from experiments.common.files import write_json
from tests.experiments.benchmark.files import SIZES, cuda_results

SCRIPT = Path(__file__).parents[3] / "scripts" / "render_results.py"
NAME = "benchmark-nvidia-h999.json"
COMMAND = "`PYTHONPATH=. python scripts/benchmark.py` measures everything within 10 minutes on a bare CUDA machine"


def cpu_results() -> dict[str, Any]:
    content = cuda_results("AMD EPYC")
    content["device"] |= {"kind": "cpu", "threads": 2}
    return content


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_without_a_gpu_it_says_so_and_how() -> None:
    for files in ({}, {"benchmark-cpu.json": cpu_results()}):
        text = tables.section(files)
        assert "not yet measured on a GPU" in text
        assert COMMAND in text
    assert "kept for backward, MiB" in text
    assert "2 threads" in text


def test_the_tables_of_a_gpu() -> None:
    text = tables.section({NAME: cuda_results()})
    assert "not yet measured" not in text
    header, _, *lines = rows(text)
    assert header[1:] == ["forward / backward, ms", "share of copy", "x PyTorch", "x compiled", "x Liger"]
    assert header[0] == "NVIDIA H999: bf16, 67,108,864 elements, inverted (triton)"
    assert lines[0] == ["gelu", "0.231 / 0.231", "91% / 91%", "1.02 / 1.02", "1.05 / 1.05", "- / -"]
    assert lines[1] == ["gate of silu", "0.231 / 0.231", "91% / 91%", "1.02 / 1.02", "1.05 / 1.05", "0.97 / 0.97"]
    header, _, gpt2, llama = lines[2:]
    assert header[1:] == ["plain", "inverted (auto)", "checkpointing", "Liger", "PyTorch's fused GELU"]
    plain = ["31.2 ms, 10.0", "1.01x, 8.0 (-20.0%)", "1.25x, 5.0 (-50.0%)"]
    assert gpt2 == ["GPT-2 (124M), 8x1024, bf16", *plain, "-", "out of memory"]
    assert llama == ["Llama, 1.2B, 8x1024, bf16", *plain, "0.98x, 9.0 (-10.0%)", "-"]
    assert "torch 2.11.0, triton 3.6.0, transformers 5.17.0, CUDA 13.0, driver 580.1, seed 0" in text
    assert "The first losses differ from the plain one by at most 9e-07" in text


def test_the_other_backends_follow_where_they_were_measured() -> None:
    content = cuda_results()
    for entry in content["operators"]:
        if entry["operator"] == "gelu":
            found = entry["backward"]["implementations"]
            entry["backward"] = entry["backward"] | {
                "implementations": found | {"inverted-eager": found["inverted-triton"] | {"ratio_to_native": 3.21}}
            }
    header, _, gelu, gate, *_ = rows(tables.section({NAME: content}))
    assert header[-1] == "inverted (eager) x PyTorch"
    assert (gelu[-1], gate[-1]) == ("- / 3.21", "- / -")


def test_gpus_come_first_and_a_trial_is_left_out() -> None:
    quick = cuda_results("NVIDIA Quick")
    quick["settings"]["quick"] = True
    text = tables.section({"benchmark-amd.json": cpu_results(), NAME: cuda_results(), "benchmark-quick.json": quick})
    assert text.index("NVIDIA H999") < text.index("AMD EPYC")
    assert "Quick" not in text
    assert len(rows(text)) <= 2 * (2 + 12)


def test_the_page_has_all_dtypes_and_sizes_and_the_figures() -> None:
    text = tables.page({NAME: cuda_results()})
    for dtype in ("bf16", "fp32"):
        for size in SIZES:
            assert f"{dtype}, {size:,} elements" in text
    assert "(../results/benchmark-nvidia-h999-operators.png)" in text
    assert "not yet measured" not in text.lower()
    assert "not yet measured on a gpu" in tables.page({}).lower()


def incomplete() -> dict[str, dict[str, Any]]:
    """Runs that were interrupted, or in which something failed."""
    cut, no_operators, broken, no_plain = (copy.deepcopy(cuda_results()) for _ in range(4))
    cut["steps"], cut["complete"] = [], False
    no_operators["operators"] = []
    broken["operators"] = [{**entry, "forward": None} for entry in broken["operators"]]
    for entry in broken["operators"]:
        for direction in ("forward", "backward", "autograd"):
            entry.pop(direction, None)
        entry["failed"] = "ValueError: no"
    broken["steps"] = [{"model": "gpt2", "unavailable": "out of memory: all of it"}]
    for entry in no_plain["steps"]:
        entry["variants"]["plain"] = {"unavailable": "out of memory: all of it"}
        entry["variants"]["inverted-auto"].pop("ratio")
    return {"cut": cut, "no operators": no_operators, "broken": broken, "no plain": no_plain}


@pytest.mark.parametrize("content", incomplete().values(), ids=incomplete())
def test_what_is_missing_is_left_out(content: dict[str, Any], tmp_path: Path) -> None:
    text = tables.section({NAME: content}) + tables.page({NAME: content})
    assert ("The run was interrupted" in text) == (not content["complete"])
    write_figures(content, tmp_path / NAME)


def test_where_nothing_else_fits() -> None:
    text = tables.section({NAME: incomplete()["no plain"]})
    assert "| out of memory | 31.6 ms, 8.0 |" in text


def test_the_script_renders_what_lies_in_the_folder(tmp_path: Path) -> None:
    script = runpy.run_path(str(SCRIPT))
    write_json(tmp_path / NAME, cuda_results())
    assert tables.section(script["benchmarks"](tmp_path)) == tables.section({NAME: cuda_results()})
    text = "a\n<!-- begin benchmark: why -->\nold\n<!-- end benchmark -->\nb\n"
    assert script["_replaced"](text, "benchmark", "new\n") == text.replace("old", "new")
    with pytest.raises(SystemExit, match="markers of benchmark once; found 0"):
        script["_replaced"]("a", "benchmark", "new\n")


def test_figures_are_written_beside_the_file(tmp_path: Path) -> None:
    paths = write_figures(cuda_results(), tmp_path / NAME)
    assert [path.name for path in paths] == ["benchmark-nvidia-h999-operators.png", "benchmark-nvidia-h999-steps.png"]
    assert all(Image.open(io.BytesIO(path.read_bytes())).width > 1000 for path in paths)


def test_the_figure_of_the_operators() -> None:
    figure = operator_figure(cuda_results()["operators"], "bf16")
    gelu, gate, *_ = figure.axes
    assert [axes.get_title() for axes in (gelu, gate)] == ["gelu, bf16", "gate_silu, bf16"]
    shares = [(list(line.get_xdata()), list(line.get_ydata())) for line in gate.get_lines()]
    assert shares.count(([*SIZES], [0.91, 0.91])) == 2  # forward and backward
    assert ([SIZES[-1]], [0.88]) in shares


def test_the_figure_of_the_steps() -> None:
    gpt2, llama = step_figure(cuda_results()["steps"], "cuda").axes
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in llama.get_lines() if len(line.get_xdata()) == 1]
    assert points == [(1.0, 10.0), (1.01, 8.0), (1.25, 5.0), (0.98, 9.0)]
    assert gpt2.get_title() == "GPT-2 (124M): plain 31.2 ms"
