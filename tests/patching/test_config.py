"""The options of patching, and how mistakes in them are refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from hf_invact import InvActConfig


def test_defaults_patch_everything_with_the_best_backend() -> None:
    assert InvActConfig() == InvActConfig(("*",), (), plan="auto", backend="auto", autocast_dtype=None, require=False)


def test_lists_become_tuples_so_that_a_config_is_a_value() -> None:
    config = InvActConfig.from_dict({"include": ["*.mlp"], "exclude": ["*.0.mlp"]})
    assert (config.include, config.exclude) == (("*.mlp",), ("*.0.mlp",))
    assert len({config, InvActConfig(include=("*.mlp",), exclude=("*.0.mlp",))}) == 1


def test_is_frozen() -> None:
    config: Any = InvActConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.backend = "eager"


@pytest.mark.parametrize("field", ["include", "exclude"])
@pytest.mark.parametrize("patterns", ["*.mlp", [1], None, 3], ids=repr)
def test_patterns_that_are_not_a_list_of_strings_are_refused(field: str, patterns: Any) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be a list of patterns such as \['\*.mlp'\], got "):
        InvActConfig(**{field: patterns})


@pytest.mark.parametrize("plan", ["outputs", "", None], ids=repr)
def test_an_unknown_plan_is_refused_with_the_known_ones(plan: Any) -> None:
    known = "auto, adapter-input, gate-inputs, input, gate-output, output"
    with pytest.raises(ValueError, match=rf"unknown plan {plan!r}; known: {known}"):
        InvActConfig(plan=plan)


@pytest.mark.parametrize("dtype", ["bf16", torch.float32, "float32", 16], ids=repr)
def test_an_invalid_autocast_dtype_is_refused_with_the_valid_ones(dtype: Any) -> None:
    with pytest.raises(ValueError, match="autocast_dtype must be one of bfloat16, float16 or null, got"):
        InvActConfig(autocast_dtype=dtype)


@pytest.mark.parametrize("backend", ["cuda", ""], ids=repr)
def test_an_unknown_backend_is_refused_with_the_known_ones(backend: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown backend '{backend}'; known: auto, eager"):
        InvActConfig(backend=backend)


@pytest.mark.parametrize("backend", [None, ["eager"]], ids=repr)
def test_a_backend_that_is_not_a_name_is_refused(backend: Any) -> None:
    with pytest.raises(ValueError, match="backend must be the name of a backend, got"):
        InvActConfig(backend=backend)


@pytest.mark.parametrize("require", ["true", 1, None], ids=repr)
def test_a_requirement_that_is_not_a_boolean_is_refused(require: Any) -> None:
    with pytest.raises(ValueError, match="require must be true or false, got"):
        InvActConfig(require=require)


def test_from_dict() -> None:
    values: dict[str, Any] = {"include": ["*.mlp"], "exclude": ["*.0.*"], "plan": "output", "backend": "eager"}
    values |= {"autocast_dtype": "bfloat16", "require": True}
    expected = InvActConfig(("*.mlp",), ("*.0.*",), "output", "eager", torch.bfloat16, require=True)
    assert InvActConfig.from_dict(values) == expected
    assert InvActConfig.from_dict({}) == InvActConfig()


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("includes", "did you mean 'include'"),
        ("back_end", "did you mean 'backend'"),
        ("verbose", "option 'verbose' of"),
    ],
)
def test_from_dict_refuses_an_unknown_key_with_a_hint_and_the_known_ones(key: str, hint: str) -> None:
    known = "known: include, exclude, plan, backend, autocast_dtype, require"
    with pytest.raises(ValueError, match=f"unknown option '{key}' .*{known}") as error:
        InvActConfig.from_dict({key: ["*"]})
    assert hint in str(error.value)
    assert ("did you mean" in str(error.value)) == hint.startswith("did")


def test_from_dict_refuses_a_bad_value() -> None:
    with pytest.raises(ValueError, match="exclude must be a list"):
        InvActConfig.from_dict({"exclude": "*.mlp"})


def test_plans_and_kinds_of_sites_in_lists() -> None:
    config = InvActConfig.from_dict({"plan": ["output", "adapter-input", "gate-output"], "sites": ["activation"]})
    assert (config.plan, config.sites) == (("output", "adapter-input", "gate-output"), ("activation",))
    assert [plan.name for plan in config.plans] == ["gate-output", "output"]
    assert [plan.name for plan in InvActConfig(plan=config.plan).plans] == ["adapter-input", "gate-output", "output"]
    assert InvActConfig().sites == ("adapter", "activation", "norm")
    assert InvActConfig().plans == ()
    with pytest.raises(ValueError, match="plan='norm-input' concerns no site, since sites="):
        InvActConfig(plan="norm-input", sites=("adapter", "activation"))


@pytest.mark.parametrize("plan", [[], ["output", "best"], [1]], ids=repr)
def test_a_list_with_an_unknown_plan_is_refused(plan: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"unknown plan .*; known: auto, adapter-input, gate-inputs, input"):
        InvActConfig(plan=plan)


@pytest.mark.parametrize("kinds", [[], "activation", ["activations"], None], ids=repr)
def test_unknown_kinds_of_sites_are_refused(kinds: Any) -> None:
    with pytest.raises(ValueError, match="sites must be a list of kinds of sites, of adapter, activation, norm, got"):
        InvActConfig(sites=kinds)
