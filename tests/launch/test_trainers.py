"""Every Trainer made while the flags are applied follows them, and the classes are restored."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    HfArgumentParser,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_invact import (
    InvActConfig,
    InvActTrainerMixin,
    InvActTrainingArguments,
    InvertedActivationsCallback,
    PatchingError,
)
from hf_invact.launch.flags import CONFIG, USE, Flags, take_flags
from hf_invact.launch.trainers import flags_applied
from hf_invact.patching import activation_sites
from tests.models import tiny_model
from tests.trainer.helpers import SAVED, Witness, arguments, is_patched, losses, make_trainer, training_logs
from tests.trainer.test_mixin import scalars

ON, OFF = Flags(use=True), Flags(use=False)
DURING = {"train_begin": [True], "step": [True] * 3, "train_end": [False]}


class MixedTrainer(InvActTrainerMixin, Trainer):
    """Adds the callback itself."""


class OwnTrainer(Trainer):
    """Accepts any arguments, as many do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert "saved" not in kwargs

    def log(self, *args: Any, **kwargs: Any) -> None:
        super().log(*args, **kwargs)


def patchers(trainer: Trainer) -> list[TrainerCallback]:
    return [found for found in trainer.callback_handler.callbacks if isinstance(found, InvertedActivationsCallback)]


@pytest.mark.parametrize(
    ("trainer_class", "arguments_class"),
    [
        (Trainer, TrainingArguments),
        (OwnTrainer, TrainingArguments),
        (Seq2SeqTrainer, Seq2SeqTrainingArguments),
        (MixedTrainer, TrainingArguments),
        (Trainer, InvActTrainingArguments),
    ],
    ids=["Trainer", "subclass", "Seq2SeqTrainer", "with our mixin", "with our arguments"],
)
def test_patches_for_the_training(
    trainer_class: type[Trainer], arguments_class: type[TrainingArguments], tmp_path: Path
) -> None:
    model, witness = tiny_model("llama"), Witness()
    originals = [model.get_submodule(site) for site in activation_sites(model)]
    with flags_applied(ON) as events:
        trainer = make_trainer(model, arguments(tmp_path, arguments_class), witness, cls=trainer_class)
        assert events.counts == {"made": 1, "trained": 0, "inverted": 0}
        trainer.train()
    assert events.counts == {"made": 1, "trained": 1, "inverted": 1}
    assert witness.patched["step"] == [True] * 3
    assert len(patchers(trainer)) == 1
    assert [model.get_submodule(site) for site in activation_sites(model)] == originals


def test_losses_are_those_of_a_training_without_it(tmp_path: Path) -> None:
    def train(name: str) -> Trainer:
        trainer = make_trainer(tiny_model(name), arguments(tmp_path, TrainingArguments, max_steps=5))
        trainer.train()
        return trainer

    for name in ("bert", "llama"):
        plain = train(name)
        with flags_applied(ON):
            patched = train(name)
        assert losses(patched)[0] == losses(plain)[0]
        assert losses(patched) == pytest.approx(losses(plain), rel=1e-5)
        assert all(SAVED in entry for entry in training_logs(patched))
        assert not any(SAVED in entry for entry in training_logs(plain))


def test_the_classes_are_put_back_also_when_a_script_fails(tmp_path: Path) -> None:
    def methods() -> list[Any]:
        return [Trainer.__init__, Trainer.log, argparse.ArgumentParser.parse_known_args, *sys.meta_path]

    def fail() -> None:
        with flags_applied(ON):
            assert [now != then for now, then in zip(methods(), before, strict=True)][:3] == [True] * 3
            raise RuntimeError("the script")

    before = methods()
    with pytest.raises(RuntimeError, match="the script"):
        fail()
    assert methods() == before
    make_trainer(tiny_model("llama"), arguments(tmp_path, TrainingArguments), witness := Witness()).train()
    assert witness.patched["step"] == [False] * 3


@pytest.mark.parametrize(
    "callback",
    [
        InvertedActivationsCallback,
        InvertedActivationsCallback(),
        InvertedActivationsCallback(InvActConfig(exclude=("*.0.mlp",))),
    ],
    ids=["class", "instance", "with a config"],
)
def test_a_callback_of_the_script_is_the_only_one(callback: Any, tmp_path: Path) -> None:
    callbacks = [callback]
    with flags_applied(ON):
        trainer = Trainer(tiny_model("llama"), arguments(tmp_path, TrainingArguments), callbacks=callbacks)
    (found,) = patchers(trainer)
    assert isinstance(callback, type) or found is callback
    assert callbacks == [callback], "the script's own list"
    assert is_patched(trainer.model)


def test_a_config_that_is_not_used_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = InvertedActivationsCallback(InvActConfig(exclude=("*.0.mlp",)))
    with flags_applied(Flags(True, {"exclude": ["*.1.mlp"]})):
        make_trainer(tiny_model("llama"), arguments(tmp_path, TrainingArguments), own)
    assert own.report is not None
    assert [site.name for site in own.report.sites if site.plan is None] == ["model.layers.0.mlp.act_fn"]
    assert f"own callback has a config, so {CONFIG} is not used" in capsys.readouterr().err


@pytest.mark.parametrize("arguments_class", [TrainingArguments, InvActTrainingArguments])
def test_the_config_reaches_the_model(arguments_class: type[TrainingArguments], tmp_path: Path) -> None:
    with flags_applied(Flags(True, {"exclude": ["*.0.mlp"], "backend": "eager"})):
        trainer = make_trainer(tiny_model("llama"), arguments(tmp_path, arguments_class))
    (callback,) = patchers(trainer)
    assert [site.name for site in callback.report.sites if site.plan is None] == ["model.layers.0.mlp.act_fn"]


def test_a_flag_that_is_off_turns_off_what_a_script_turned_on(tmp_path: Path) -> None:
    witness = Witness()
    with flags_applied(OFF):
        args = arguments(tmp_path, use_inverted_activations=True)
        make_trainer(tiny_model("llama"), args, witness, InvertedActivationsCallback()).train()
        other = make_trainer(tiny_model("llama"), arguments(tmp_path, TrainingArguments))
    assert witness.patched["step"] == [False] * 3
    assert patchers(other) == []


def test_the_arguments_go_by_position_or_by_name_or_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = arguments(tmp_path)
    with flags_applied(ON):
        assert is_patched(Trainer(tiny_model("llama")).model)
        assert is_patched(Trainer(args=args, callbacks=None, model=tiny_model("llama")).model)
        with pytest.raises(TypeError, match="nonsense"):
            Trainer(tiny_model("llama"), args, nonsense=1)
        with pytest.raises(RuntimeError, match="requires either a `model`"):
            Trainer()


def test_the_fresh_model_of_model_init_is_patched(tmp_path: Path) -> None:
    def model_init() -> PreTrainedModel:
        return tiny_model("llama")

    witness = Witness()
    with flags_applied(ON):
        make_trainer(None, arguments(tmp_path, TrainingArguments), witness, model_init=model_init).train()
    assert witness.patched == DURING


def test_reporters_and_the_console_show_the_memory_figures(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    with flags_applied(ON):
        args = arguments(tmp_path, TrainingArguments, report_to="tensorboard")
        trainer = make_trainer(tiny_model("llama"), args)
        trainer.train()
    kept = [entry[SAVED] for entry in training_logs(trainer)]
    assert len(kept) == 3
    assert scalars(tmp_path / "events")[f"train/{SAVED}"] == [*kept, kept[-1]]
    assert capsys.readouterr().out.count(f"'{SAVED}'") == 4
    assert "inverted activations: 7 of 7 sites patched" in caplog.text


def test_what_the_callback_refuses_is_refused(tmp_path: Path) -> None:
    with flags_applied(Flags(True, {"sites": ["activation"]})), pytest.raises(PatchingError, match="nothing to invert"):
        make_trainer(tiny_model("llama", activation="relu"), arguments(tmp_path, TrainingArguments))


@pytest.mark.usefixtures("liger")
def test_the_flag_of_liger_is_refused(tmp_path: Path) -> None:
    args = arguments(tmp_path, TrainingArguments, use_liger_kernel=True)
    with flags_applied(ON), pytest.raises(ValueError, match="use_liger_kernel and use_inverted_activations"):
        make_trainer(tiny_model("llama"), args)


def test_a_wrong_option_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped, flags_applied(Flags(True, {"includ": []})):
        raise AssertionError("nothing runs")
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"hf-invact run: {CONFIG}: unknown option 'includ'")


def hf_parser(arguments: list[str] | None) -> Any:
    (args,) = HfArgumentParser(InvActTrainingArguments).parse_args_into_dataclasses(arguments)
    return args


def hf_parser_with_a_name(arguments: list[str] | None) -> Any:
    parser = HfArgumentParser(InvActTrainingArguments)
    parser.add_argument("name")
    args, rest = parser.parse_args_into_dataclasses(["data.json", *(sys.argv[1:] if arguments is None else arguments)])
    assert rest.name == "data.json"
    return args


def own_parser(arguments: list[str] | None) -> Any:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir")
    parser.add_argument("--use_inverted_activations", action="store_true")
    parser.add_argument("names", nargs="*")
    return parser.parse_args(arguments)


def commands_parser(arguments: list[str] | None) -> Any:
    parser = argparse.ArgumentParser()
    train = parser.add_subparsers().add_parser("train")
    train.add_argument("--output_dir")
    train.add_argument("--use_inverted_activations", action="store_true")
    return parser.parse_args(["train", *(sys.argv[1:] if arguments is None else arguments)])


@pytest.mark.parametrize("is_given", [False, True], ids=["sys.argv", "given"])
@pytest.mark.parametrize(
    ("parse", "written"),
    [
        (hf_parser, [USE]),
        (hf_parser, [USE, "true"]),
        (hf_parser_with_a_name, [USE]),
        (own_parser, [USE]),
        (own_parser, [USE, "--", "a", "--b"]),
        (commands_parser, [USE]),
    ],
    ids=[
        "HfArgumentParser",
        "HfArgumentParser, a value",
        "HfArgumentParser, a name",
        "argparse",
        "argparse, names",
        "argparse, commands",
    ],
)
def test_a_parser_that_knows_the_flag_finds_it(
    parse: Callable[[list[str] | None], Any],
    written: list[str],
    is_given: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags, rest = take_flags(["train.py", "--output_dir", str(tmp_path), *written])
    assert USE not in rest
    monkeypatch.setattr(sys, "argv", rest)
    with flags_applied(flags):
        args = parse(rest[1:] if is_given else None)
    assert args.use_inverted_activations is True
    assert args.output_dir == str(tmp_path)
    assert sys.argv == rest


def test_a_parser_that_does_not_know_the_flag_does_not_find_it(tmp_path: Path) -> None:
    with flags_applied(Flags(True, {}, {USE: (), CONFIG: ("{}",)})):
        (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(["--output_dir", str(tmp_path)])
    assert not hasattr(args, "use_inverted_activations")


LATE = """
import sys
from hf_invact.launch.flags import Flags
from hf_invact.launch.trainers import flags_applied

with flags_applied(Flags(use=True, config={config})):
    assert not {{"torch", "transformers"}} & set(sys.modules)
    import transformers
    assert "hf_invact.patching" not in sys.modules
    from transformers import Trainer
    print(Trainer.__init__.__wrapped__.__qualname__, Trainer.__init__.__code__.co_filename)
print(hasattr(Trainer.__init__, "__wrapped__"), len(sys.meta_path))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "code", "printed"),
    [(None, 0, "Trainer.__init__ .*trainers.py\nFalse "), ({"backend": "cuda"}, 2, "unknown backend 'cuda'")],
    ids=["right", "a wrong option"],
)
def test_waits_until_the_script_imports_the_trainer(config: Any, code: int, printed: str) -> None:
    command = [sys.executable, "-c", LATE.format(config=config)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert re.search(printed, ended.stdout + ended.stderr)
