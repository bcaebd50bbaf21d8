"""Weights that are sharded when a model is patched, in two real processes: they agree, and train as unpatched."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.models import tiny_model
from tests.patching.weights.test_fake_copy import COPIED
from tests.processes import sharded
from tests.processes.launch import launch
from tests.versions import since_transformers

pytestmark = pytest.mark.slow

FSDP1_HAS_SHARDED = "left alone: FSDP1 has sharded its weights, so it cannot be run"
# Whose norms cannot be run in a layer of a copy, and keep their input by default; or have hooks of tensor parallelism.
NORMS_NOT_MEASURED = ("tensor parallel, phi3", "tensor parallel, qwen3_moe")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sharded")
    return launch(Path(sharded.__file__), folder, str(folder))


@pytest.mark.parametrize("when", ["once", "before", "after"])
@pytest.mark.parametrize("name", sharded.FSDP1)
def test_fsdp1_trains_as_unpatched(name: str, when: str, found: list[dict[str, Any]]) -> None:
    first, second = (results[f"{name}, {when}"] for results in found)
    assert second.report == first.report
    for site in first.report.sites:
        if site.kind == "activation":
            assert ("not measured" in site.reason) == (when == "after")
        elif site.kind == "norm":
            assert site.is_patched or site.reason in (FSDP1_HAS_SHARDED, "left alone: nothing would keep less")
        else:  # FSDP1 wraps its matrices
            assert site.is_patched == (when == "once")
            assert when == "once" or "its adapter is wrapped in FullyShardedDataParallel" in site.reason
    assert when == "after" or any(site.is_patched for site in first.report.sites if site.kind == "norm")
    for results in found:
        plain, patched = results[f"{name}, no"], results[f"{name}, {when}"]
        assert patched.losses == pytest.approx(plain.losses, rel=1e-2 if "mixed" in name else 1e-5)
        assert when == "after" or patched.saved_bytes < plain.saved_bytes


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, marks=since_transformers(sharded.SINCE[way.partition(",")[0]], "sharded so at load"))
        for way in sharded.AT_LOAD
    ],
)
def test_weights_that_are_sharded_at_load_are_measured(way: str, found: list[dict[str, Any]]) -> None:
    first, second = (results[f"{way}, after"] for results in found)
    assert second.report == first.report
    assert [site.reason for site in first.report.sites if site.kind == "activation"] == [COPIED] * 2
    of_norms = {site.reason for site in first.report.sites if site.kind == "norm"}
    assert (of_norms == {COPIED}) == (way not in NORMS_NOT_MEASURED)
    for results in found:
        plain, patched = results[f"{way}, no"], results[f"{way}, after"]
        assert patched.losses == pytest.approx(plain.losses, rel=1e-5)
        saved = plain.saved_bytes - patched.saved_bytes
        if way.startswith("tensor"):  # under expert parallelism, a process's number of tokens depends on the routing
            expected = 32 * first.report.saved_bytes_per_token
            if way == NORMS_NOT_MEASURED[0]:
                assert saved > expected
            else:
                assert saved == pytest.approx(expected, rel=0.02)
        assert saved > 0


def test_a_process_without_weights_decides_as_the_one_that_loads_them(found: list[dict[str, Any]]) -> None:
    loaded, missing = (results["one process loads"].sites for results in found)
    figures = [(site.plan, site.before, site.after) for site in loaded]
    assert [(site.plan, site.before, site.after) for site in missing] == figures
    for site, other in zip(loaded, missing, strict=True):
        assert site.reason in ("", "left alone: nothing would keep less")
        assert other.reason == (f"{site.reason} ({COPIED})" if site.reason else COPIED)


def test_the_callback_keeps_what_it_has_patched_when_the_trainer_wraps_the_model(found: list[dict[str, Any]]) -> None:
    for results in found:
        first, second = results["callback"]
        assert first.saved_bytes_per_token > 0
        assert second == first
        assert all(site.is_patched for site in first.sites)
    layers = tiny_model("llama").config.num_hidden_layers
    assert Counter(site.kind for site in first.sites) == {"activation": layers, "norm": 2 * layers + 1}
