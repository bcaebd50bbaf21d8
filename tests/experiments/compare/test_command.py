"""Whole comparisons of tiny models: their files, continuing after an interruption, and errors."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.common.files import read_json
from experiments.compare.command import main
from experiments.compare.comparison import compare_model
from tests.experiments.small import contents, write_config, write_plan


def run_times(folder: Path) -> dict[str, int]:
    """When each run was finished."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("runs/*/run.json")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A finished comparison of two models. Not to be changed."""
    folder = tmp_path_factory.mktemp("compare")
    plan = write_plan(folder)
    assert main([str(plan)]) == 0
    return SimpleNamespace(plan=plan, folder=folder / "out", comparison=read_json(folder / "out/comparison.json"))


def test_all_its_files_are_there(finished):
    files = contents(finished.folder)
    runs = [f"bert-{variant}-seed{seed}" for variant in ("plain", "inverted") for seed in (0, 1)]
    runs += [f"gpt2-{variant}-seed{seed}" for variant in ("plain", "inverted") for seed in (0, 1)]
    runs.append("gpt2-fused-seed0")
    assert sorted(run_times(finished.folder)) == sorted(runs)
    assert {"comparison.json", "plan.json", "report.html", "report.md"} <= files.keys()
    assert {path for path in files if path.endswith(".png")} == {
        f"plots/{model}-{kind}.png" for model in ("1-bert", "2-gpt2") for kind in ("loss", "memory")
    }
    assert all(f"runs/{run}.log" in files for run in [*runs, "bert-step-time", "gpt2-step-time"])


def test_it_agrees_with_its_runs(finished):
    for model in finished.comparison["models"]:
        for run in model["runs"]:
            result = read_json(finished.folder / run["folder"] / "run.json")
            own = {key: value for key, value in run.items() if key not in ("variant", "seed", "folder")}
            assert own == {key: result[key] for key in own}
            assert result["settings"]["training"]["seed"] == run["seed"]
            assert result["settings"]["training"]["use_inverted_activations"] is (run["variant"] == "inverted")
        assert model["comparison"] == compare_model(model["runs"])
        assert model["step_time"]["low"] <= model["step_time"]["ratio"] <= model["step_time"]["high"]


def test_what_is_compared(finished):
    bert, gpt2 = finished.comparison["models"]
    assert [(run["variant"], run["seed"]) for run in gpt2["runs"]] == [
        ("plain", 0),
        ("fused", 0),
        ("inverted", 0),
        ("plain", 1),
        ("inverted", 1),
    ]
    assert (bert["title"], bert["task"], bert["activation"]) == ("BERT", "masked-lm", "GELUActivation")
    assert (gpt2["title"], gpt2["task"], gpt2["activation"]) == ("gpt2", "causal-lm", "NewGELUActivation")
    units = {run["variant"]: run["intermediate_units"] for run in gpt2["runs"]}
    assert units == {"plain": 5.0, "fused": 2.0, "inverted": 1.03125}
    for model in (bert, gpt2):
        assert model["comparison"]["first_loss_identical"] is True
        assert model["comparison"]["steps"] == model["comparison"]["steps_within_spread"] == 3
        assert model["comparison"]["largest_difference"] < 1e-4 < model["comparison"]["smallest_spread"]


def test_the_report_shows_the_same(finished):
    text = (finished.folder / "report.md").read_text().replace("\u00a0", " ")
    bert = finished.comparison["models"][0]
    plain, inverted = (run for run in bert["runs"] if run["seed"] == 0)
    assert "| 2.00 → 1.03 |" in text
    assert "| 5.00 → (2.00) → 1.03 |" in text
    assert f"{plain['loss'][-1]['loss']:.4f} → {inverted['loss'][-1]['loss']:.4f}" in text
    assert bert["data"]["sha256"][:12] in text
    assert f"python scripts/compare.py {finished.plan}" in (finished.folder / "report.html").read_text()


def test_running_it_again_runs_nothing_again(finished, monkeypatch):
    def no_process(*args):
        raise AssertionError("a finished run was started again")

    monkeypatch.setattr("experiments.compare.command.run_in_process", no_process)
    before = run_times(finished.folder)
    report = (finished.folder / "report.html").read_bytes()
    assert main([str(finished.plan)]) == 0
    assert run_times(finished.folder) == before
    assert read_json(finished.folder / "comparison.json") == finished.comparison
    assert (finished.folder / "report.html").read_bytes() == report


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--learning_rate", "0.5"],
            "bert-plain-seed0 holds a finished run with learning_rate=0.001, but 0.5 is asked for",
        ),
        (["--max_seq_length", "8"], "holds a finished run with max_seq_length=16, but 8 is asked for"),
        (["--max_step", "3"], "unknown option '--max_step' on the command line; did you mean '--max_steps'?"),
        (["--max_steps", "x"], "max_steps.* invalid int value: 'x'"),
        (["--seeds", "0", "0"], r"seeds must be .*different whole numbers from 0 to 4294967295, got \[0, 0\]"),
        (["--seeds", "x"], "--seeds: invalid int value: 'x'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refused_with_nothing_lost(finished, capsys, options, message):
    before = contents(finished.folder)
    assert main([str(finished.plan), *options]) == 2
    assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)
    assert contents(finished.folder) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan.unlink(), "cannot read the config .*plan.yaml: No such file"),
        (lambda plan: plan.write_text("experiments: [\n  {"), "plan.yaml is not valid YAML"),
        (lambda plan: plan.write_text("experimens: []\n"), "unknown option 'experimens' in the config .*plan.yaml"),
        (lambda plan: (plan.parent / "bert.yaml").unlink(), "cannot read the config .*bert.yaml: No such file"),
        (
            lambda plan: (plan.parent / "bert.yaml").write_text("max_step: 3\n"),
            "unknown option 'max_step' in the config .*bert.yaml; did you mean 'max_steps'",
        ),
        (
            lambda plan: plan.write_text(plan.read_text().replace("name: bert", "name: ../../b")),
            "name in the experiment '../../b' of .*plan.yaml is used for folders, and must be up to 100 letters",
        ),
        (
            lambda plan: (plan.parent / "bert.yaml").open("a").write("per_device_eval_batch_size: -1\n"),
            "per_device_eval_batch_size must be at least 1, got -1",
        ),
        (lambda plan: (plan.parent / "out").touch(), "the output folder .*out cannot be written"),
        (lambda plan: (plan.parent / "out/mine").mkdir(parents=True), "the output folder .*out is not empty"),
    ],
    ids=[
        "no plan",
        "no yaml",
        "misspelt",
        "no config",
        "option in a config",
        "name",
        "batch",
        "file",
        "somebody's folder",
    ],
)
def test_refused_before_anything_is_made(tmp_path, capsys, change, message):
    plan = write_plan(tmp_path)
    change(plan)
    before = contents(tmp_path)
    assert main([str(plan)]) == 2
    assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)
    assert contents(tmp_path) == before


def test_a_config_is_needed(capsys):
    assert main([]) == 2
    assert re.fullmatch("error: .*required: config\n", capsys.readouterr().err)


def test_runs_before_one_that_is_refused_are_kept(tmp_path, capsys):
    plan = write_plan(tmp_path, seeds=[0], max_steps=1)
    write_config(tmp_path, "gpt2", name="gpt2.yaml", max_seq_length=512)
    assert main([str(plan)]) == 2
    message = "error: .*fewer than one sequence of max_seq_length=512; .*lower max_seq_length\n"
    assert re.fullmatch(message, capsys.readouterr().err)
    before = run_times(tmp_path / "out")
    assert sorted(before) == ["bert-inverted-seed0", "bert-plain-seed0"]
    write_plan(tmp_path, seeds=[0], max_steps=1)  # fixed
    assert main([str(plan)]) == 0
    assert before.items() <= run_times(tmp_path / "out").items()
    assert len(read_json(tmp_path / "out/comparison.json")["models"]) == 2


def test_a_run_that_fails_is_named(tmp_path, capsys):
    config = write_config(tmp_path, "llama", lr_scheduler_kwargs={"nope": 1})
    assert main([str(config), "--output_dir", str(tmp_path / "out")]) == 1
    message = "error: TypeError: .*nope.* in .*config-plain-seed0.log\nRun the same command again to continue.\n"
    assert re.fullmatch(message, capsys.readouterr().err)
    assert "Traceback" in (tmp_path / "out/runs/config-plain-seed0.log").read_text()


def test_one_config_without_losses_or_step_times(tmp_path):
    config = write_config(tmp_path, "llama", max_steps=1, logging_steps=5)
    assert main([str(config), "--output_dir", str(tmp_path / "out"), "--seeds", "4"]) == 0
    (model,) = read_json(tmp_path / "out/comparison.json")["models"]
    assert (model["name"], model["seeds"], model["comparison"]) == ("config", [4], None)
    assert "n/a" in (tmp_path / "out/report.md").read_text()


def test_settings_that_the_trainer_checks_together_reach_the_end(tmp_path):
    together = {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps"}
    config = write_config(tmp_path, "llama", max_steps=2, save_steps=1, eval_steps=1, **together)
    assert main([str(config), "--output_dir", str(tmp_path / "out"), "--seeds", "0"]) == 0
