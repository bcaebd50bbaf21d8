"""The code of docs/adapters.md runs as it stands, and what it links to is there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

from hf_invact.sites import patched_sites
from tests.models import tiny_model

PAGE = Path(__file__).parents[1] / "docs" / "adapters.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_its_code_runs() -> None:
    first, exact, off = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, Any] = {"model": tiny_model("llama")}

    def kinds_after(code: str) -> set[str]:
        exec(compile(code, PAGE.name, "exec"), names)
        return {site.kind.name for site in patched_sites(names["adapted"])}

    assert kinds_after(first) == {"adapter", "activation", "norm"}
    assert kinds_after(exact) == {"adapter"}
    without, by_name = off.splitlines()
    assert kinds_after(without) == {"activation"}  # nobody else keeps the outputs of norms
    assert kinds_after(by_name) == {"adapter", "activation", "norm"}
    assert not any(site.name.endswith("q_proj") for site in patched_sites(names["adapted"]))


def test_its_figures_are_the_committed_ones() -> None:
    assert runpy.run_path(str(PAGE.parents[1] / "scripts" / "render_results.py"))["adapters_page"]() == TEXT


def test_what_it_links_to_is_there() -> None:
    links = re.findall(r"\]\(([\w.-]+)(?:#([\w-]+))?\)", TEXT)
    assert len(links) >= 2
    for file, heading in links:
        target = (PAGE.parent / file).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)$", target, re.MULTILINE)
        assert not heading or heading in [each.lower().replace(" ", "-") for each in headings]
