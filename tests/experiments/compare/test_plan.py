"""What a comparison runs, according to its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.common.errors import ConfigError
from experiments.compare.plan import read_plan
from experiments.finetuning.arguments import parse_run
from tests.experiments.small import MODELS, write_config

CONFIGS = sorted(path for path in Path("configs").rglob("*.yaml") if path.parent.name != "accelerate")


def write_plan(folder: Path, **changes: Any) -> Path:
    for model in ("bert", "gpt2"):
        write_config(folder / "models", model, name=f"{model}.yaml")
    values = {
        "title": "Two models",
        "output_dir": "somewhere",
        "seeds": [3, 1],
        "experiments": [
            {"name": "bert", "title": "BERT", "config": "models/bert.yaml"},
            {"name": "gpt2", "config": "models/gpt2.yaml", "fused": {"activation_function": "gelu"}},
        ],
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}))
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to("configs").as_posix())
def test_every_config_can_be_compared(path):
    plan = read_plan(path, overrides=["--use_cpu"])  # without a GPU, bf16 is refused at once
    runs = [run for experiment in plan.experiments for run in plan.runs(experiment)]
    assert all(run.arguments().training.seed == run.seed for run in runs)
    assert len({run.folder for run in runs}) == len(runs) >= 2 * len(plan.seeds)
    if "experiments" not in yaml.safe_load(path.read_text()):
        assert parse_run([str(path), "--use_cpu"]).training.use_inverted_activations is False


def test_there_are_configs():
    assert Path("configs/demo.yaml") in CONFIGS
    assert len(CONFIGS) >= 5


def test_a_plan_is_read(tmp_path):
    plan = read_plan(write_plan(tmp_path))
    assert (plan.title, plan.output_dir, plan.seeds) == ("Two models", Path("somewhere"), (3, 1))
    bert, gpt2 = plan.experiments
    assert (bert.name, bert.title, bert.config, bert.fused) == ("bert", "BERT", tmp_path / "models/bert.yaml", None)
    assert (gpt2.name, gpt2.title, gpt2.fused) == ("gpt2", "gpt2", {"activation_function": "gelu"})


def test_both_variants_run_for_each_seed(tmp_path):
    plan = read_plan(write_plan(tmp_path))
    runs = plan.runs(plan.experiments[0])
    assert [(run.variant, run.seed) for run in runs] == [
        ("plain", 3),
        ("inverted", 3),
        ("plain", 1),
        ("inverted", 1),
    ]
    for run in runs:
        arguments = run.arguments()
        assert run.folder == Path(f"somewhere/runs/bert-{run.variant}-seed{run.seed}")
        assert arguments.training.output_dir == str(run.folder)
        assert arguments.training.use_inverted_activations is (run.variant == "inverted")
        assert arguments.training.seed == run.seed
        assert arguments.model.model_type == "bert"


def test_the_fused_baseline_runs_for_the_first_seed_and_changes_the_activation_only(tmp_path):
    plan = read_plan(write_plan(tmp_path))
    runs = plan.runs(plan.experiments[1])
    (fused,) = [run for run in runs if run.variant == "fused"]
    assert (fused.seed, len(runs)) == (3, 5)
    assert fused.arguments().model.model_config == {**MODELS["gpt2"], "activation_function": "gelu"}
    assert fused.arguments().training.use_inverted_activations is False


def test_options_reach_each_run_but_not_what_tells_them_apart(tmp_path):
    options = ["--max_steps", "2", "--model_config", '{"n_embd": 8}', "--seed", "9", "--output_dir", "nowhere"]
    plan = read_plan(write_plan(tmp_path), overrides=[*options, "--use_inverted_activations"])
    for run in plan.runs(plan.experiments[1]):
        arguments = run.arguments()
        assert arguments.training.max_steps == 2
        assert arguments.model.model_config["n_embd"] == 8
        assert (arguments.training.seed, arguments.training.output_dir) == (run.seed, str(run.folder))
        assert arguments.training.use_inverted_activations is (run.variant == "inverted")
        assert ("activation_function" in arguments.model.model_config) is (run.variant == "fused")


def test_the_command_line_goes_before_the_file(tmp_path):
    plan = read_plan(write_plan(tmp_path), tmp_path / "other", [5])
    assert (plan.output_dir, plan.seeds) == (tmp_path / "other", (5,))


def test_defaults_of_a_plan(tmp_path):
    plan = read_plan(write_plan(tmp_path, title="T", seeds=None))
    assert plan.seeds == (0, 1)


def test_the_config_of_one_run_is_compared_by_itself(tmp_path):
    plan = read_plan(write_config(tmp_path, "llama", name="small-llama.yaml"))
    (experiment,) = plan.experiments
    assert (experiment.name, experiment.fused, plan.seeds) == ("small-llama", None, (0, 1))
    assert plan.output_dir == Path("results/small-llama")
    assert [run.arguments().model.model_type for run in plan.runs(experiment)] == ["llama"] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"titel": "x"}, "unknown option 'titel' in the config .*plan.yaml; did you mean 'title'"),
        ({"seeds": [1, 1]}, r"seeds must be one or more different whole numbers from 0 to 4294967295, got \[1, 1\]"),
        ({"seeds": 3}, "seeds must be one or more different whole numbers from 0 to 4294967295, got 3"),
        ({"seeds": [0.5]}, r"seeds must be .* got \[0.5\]"),
        ({"seeds": [-1]}, r"seeds must be .* got \[-1\]"),
        ({"seeds": [True, False]}, r"seeds must be .* got \[True, False\]"),
        ({"seeds": "01"}, "seeds must be .* got '01'"),
        ({"seeds": [[0]]}, r"seeds must be .* got \[\[0\]\]"),
        ({"seeds": []}, r"seeds must be .* got \[\]"),
        ({"seeds": 0}, "seeds must be .* got 0"),
        ({"seeds": [2**32]}, r"seeds must be .* to 4294967295, got \[4294967296\]"),
        ({"title": None}, "title in .*plan.yaml must be a non-empty text, got None"),
        ({"output_dir": ""}, "output_dir in .*plan.yaml must be a non-empty text, got ''"),
        ({"experiments": [{"name": "a", "config": None}]}, "config in the experiment 'a' .* got None"),
        ({"experiments": [{"name": "a", "config": "b", "title": " "}]}, "title in the experiment 'a' .* got ' '"),
        (
            {"experiments": [{"name": "a", "config": "a.yaml"}, {"name": "A", "config": "b.yaml"}]},
            r"must have different names \(upper and lower case count as equal\), got \['a', 'A'\]",
        ),
        ({"experiments": None}, "experiments in .*plan.yaml must be a list of at least one experiment, got None"),
        ({"experiments": []}, r"experiments in .*plan.yaml must be a list of at least one experiment, got \[\]"),
        ({"experiments": {"name": "a"}}, "experiments in .* must be a list"),
        ({"experiments": ["models/bert.yaml"]}, "must be a mapping with name and config, got 'models/bert.yaml'"),
        ({"experiments": [{"name": "a"}]}, "must be a mapping with name and config, got {'name': 'a'}"),
        (
            {"experiments": [{"name": "a", "config": "a.yaml", "confg": 1}]},
            "unknown option 'confg' in the experiment 'a' of .*plan.yaml; did you mean 'config'",
        ),
        (
            {"experiments": [{"name": "a", "config": "a.yaml", "fused": "gelu"}]},
            "fused in the experiment 'a' of .* must be a mapping, got 'gelu'",
        ),
        (
            {"experiments": [{"name": "a", "config": "a.yaml"}, {"name": "a", "config": "b.yaml"}]},
            r"must have different names .* got \['a', 'a'\]",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_refused_plans(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        read_plan(write_plan(tmp_path, **changes))


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../../b",
        "/tmp/b",
        "a/b",
        "a\\b",
        "a\0b",
        "a\nb",
        " ",
        "-a",
        ".a",
        "a.",
        "é",
        "a" * 101,
        None,
        True,
        ["a"],
    ],
    ids=repr,
)
def test_a_name_that_could_leave_the_output_folder(tmp_path, name):
    path = write_plan(tmp_path, experiments=[{"name": name, "config": "models/bert.yaml"}])
    with pytest.raises(ConfigError, match="must be up to 100 letters, digits") as caught:
        read_plan(path)
    assert "\n" not in str(caught.value)


def test_names_of_folders_as_they_are(tmp_path):
    names = ["a", "GPT-2_small.v1", "0", 2024]
    entries = [{"name": name, "config": "models/bert.yaml"} for name in names]
    assert [each.name for each in read_plan(write_plan(tmp_path, experiments=entries)).experiments] == [
        *names[:3],
        "2024",
    ]


@pytest.mark.parametrize("key", ["experiment", "Experiments", "experimens", "experiements"])
def test_experiments_misspelt(tmp_path, key):
    path = write_plan(tmp_path)
    path.write_text(path.read_text().replace("experiments:", f"{key}:"))
    with pytest.raises(ConfigError, match=f"unknown option '{key}' in the config .*; did you mean 'experiments'"):
        read_plan(path)


def test_a_plan_without_experiments(tmp_path):
    (tmp_path / "plan.yaml").write_text("title: Nothing\n")
    with pytest.raises(
        ConfigError, match=r"experiments in .*plan\.yaml must be a list of at least one experiment, got None"
    ):
        read_plan(tmp_path / "plan.yaml")


def test_a_key_that_is_there_twice(tmp_path):
    path = write_plan(tmp_path)
    path.write_text(path.read_text() + "title: Another\n")
    with pytest.raises(ConfigError, match=r"plan\.yaml is not valid YAML: the key 'title' occurs twice"):
        read_plan(path)


def test_a_config_whose_name_is_no_name(tmp_path):
    plan = read_plan(write_config(tmp_path, name="my config (1).yaml"))
    assert (plan.experiments[0].name, plan.experiments[0].title) == ("my-config-1", "my config (1)")


def test_a_run_that_is_refused(tmp_path):
    plan = read_plan(write_plan(tmp_path), overrides=["--max_step", "2"])
    with pytest.raises(ConfigError, match="did you mean '--max_steps'"):
        plan.runs(plan.experiments[0])[0].arguments()
