"""Flags are taken from a command line as HfArgumentParser would read them, and nothing else is taken."""

from __future__ import annotations

import pytest

from hf_invact.launch.flags import CONFIG, REQUIRE, USE, Flags, take_flags

PARTS = {"include": ["*.mlp"]}
JSON = '{"include": ["*.mlp"]}'


@pytest.mark.parametrize(
    ("arguments", "use", "config", "rest"),
    [
        ("train.py --seed 7", None, None, "train.py --seed 7"),
        ("train.py --use_inverted_activations", True, None, "train.py"),
        ("--use_inverted_activations train.py --seed 7", True, None, "train.py --seed 7"),
        ("train.py --use_inverted_activations data.json", True, None, "train.py data.json"),
        ("train.py --use_inverted_activations --bf16", True, None, "train.py --bf16"),
        ("train.py --use_inverted_activations true --bf16", True, None, "train.py --bf16"),
        ("train.py --use_inverted_activations False --bf16", False, None, "train.py --bf16"),
        ("train.py --use_inverted_activations=yes x", True, None, "train.py x"),
        ("train.py --use_inverted_activations=0", False, None, "train.py"),
        ("train.py --use-inverted-activations no", False, None, "train.py"),
        (f"--use_inverted_activations {CONFIG} JSON x.py", True, PARTS, "x.py"),
        (f"x.py {CONFIG}=JSON --use_inverted_activations", True, PARTS, "x.py"),
        ("x.py -- --use_inverted_activations", None, None, "x.py -- --use_inverted_activations"),
        ("x.py --use_liger_kernel true", None, None, "x.py --use_liger_kernel true"),
    ],
)
def test_takes_the_flags_and_leaves_the_rest(
    arguments: str, use: bool | None, config: dict[str, list[str]] | None, rest: str
) -> None:
    flags, left = take_flags([item.replace("JSON", JSON) for item in arguments.split()])
    assert (flags.use, flags.config, left) == (use, config, rest.split())


def test_keeps_what_was_written_for_a_script_that_knows_the_flag() -> None:
    flags, _ = take_flags([CONFIG, JSON, "x.py", USE])
    assert flags == Flags(True, PARTS, {CONFIG: (JSON,), USE: ()})


@pytest.mark.parametrize(
    ("arguments", "require", "rest"),
    [
        (f"--require x.py {USE}", True, "x.py"),
        (f"{USE} --require -m x", True, "-m x"),
        (f"x.py {USE} --require", True, "x.py"),
        (f"x.py --require --seed 7 {USE}", True, "x.py --seed 7"),
        (f"x.py --require name {USE}", False, "x.py --require name"),
        ("x.py --require", False, "x.py --require"),
        (f"x.py {USE} -- --require", False, "x.py -- --require"),
    ],
)
def test_a_requirement_of_the_scripts_own_is_left_to_it(arguments: str, require: bool, rest: str) -> None:
    flags, left = take_flags(arguments.split())
    assert (flags.require, left) == (require, rest.split())
    assert (REQUIRE in flags.written) == require


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([USE, "x.py", USE], f"{USE} is given twice"),
        ([USE, CONFIG, "{}", f"{CONFIG}={{}}"], f"{CONFIG} is given twice"),
        ([f"{USE}=perhaps"], f"{USE} must be one of yes, true, t, y, 1, no, false, f, n, 0, got 'perhaps'"),
        ([USE, CONFIG, '{"include": '], "is not valid JSON (Expecting value"),
        ([USE, CONFIG], "is not valid JSON"),
        ([USE, CONFIG, "[]"], "must be a mapping such as"),
        ([CONFIG, "{}"], f"{CONFIG} needs {USE} as well"),
        ([REQUIRE, "x.py"], f"{REQUIRE} needs {USE} as well"),
        ([REQUIRE, "x.py", f"{USE}=no"], f"{REQUIRE} needs {USE} as well"),
        (["x.py", "--use_inverted_activation"], f"unknown option --use_inverted_activation; did you mean {USE}?"),
        (["x.py", "--no_use_inverted_activations"], f"did you mean {USE}?"),
        (["x.py", "--inverted-activation-config={}"], f"did you mean {CONFIG}?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        take_flags(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hf-invact run: ")
    assert message in line
