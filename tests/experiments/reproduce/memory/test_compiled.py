"""What is counted for a compiled model, compared with models that are compiled and run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from experiments.reproduce.memory.cases import CASES, COMPILED, COMPILED_OURS, MemoryCase, MemoryVariant
from experiments.reproduce.memory.compiled import compiled_bytes
from experiments.reproduce.memory.counting import SAMPLED_LAYERS, _compiled, batch_of, built, count, patch, source_of
from hf_invact.memory import SavedActivations

QUICK = {case.key: case for case in CASES["quick"]}
needs_a_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


def each(*chosen: tuple[str, MemoryVariant, bool]) -> pytest.MarkDecorator:
    """Parametrizes with the keys of cases and variants, and marks those that are slow."""
    params = [
        pytest.param(key, variant, id=f"{key}-{variant.name}", marks=[pytest.mark.slow] if is_slow else [])
        for key, variant, is_slow in chosen
    ]
    return pytest.mark.parametrize(("key", "variant"), params)


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def small(key: str, layers: int) -> MemoryCase:
    """In float32 without attention dropout: inductor's attention on a CPU has a kernel for that."""
    case = QUICK[key]
    config = {**case.config, "num_hidden_layers": layers}
    if "gpt2" in key:
        config["attn_pdrop"] = 0.0
    if "bert" in key:
        config["attention_probs_dropout_prob"] = 0.0
    return replace(case, dtype="float32", config=config, batch_size=2, seq_len=32)


def really_kept(case: MemoryCase, variant: MemoryVariant) -> int:
    source = source_of(case, variant)
    source.config.use_cache = False
    model = source.model_class._from_config(source.config, dtype=torch.float32, attn_implementation="sdpa").train()
    model.loss_type = "ForCausalLM"  # otherwise a warning is logged, which cannot be compiled
    patch(case, variant, model)
    batch = {name: tensor for name, tensor in batch_of(case, model).items() if name != "attention_mask"}
    compiled = torch.compile(model, fullgraph=True)
    compiled(**batch)
    own = [*model.parameters(), *model.buffers(), *batch.values()]
    with SavedActivations(nn.Module(), ignore=own) as saved:
        outputs = compiled(**batch)
    assert outputs is not None
    return saved.total_bytes


@needs_a_compiler
@each(  # a tiny Llama is a tiny Mistral
    ("gpt2-fp32", COMPILED, False),
    ("gpt2-fp32", COMPILED_OURS, False),
    ("mistral-7b", COMPILED, True),
    ("mistral-7b", COMPILED_OURS, True),
    ("bert-base", COMPILED_OURS, True),
)
def test_counts_what_inductor_keeps(key: str, variant: MemoryVariant) -> None:
    case = small(key, layers=1)
    assert _compiled(case, variant, "cpu", 1) == really_kept(case, variant)


@each(("mistral-7b", COMPILED_OURS, False))
def test_layers_are_alike(key: str, variant: MemoryVariant) -> None:
    more = SAMPLED_LAYERS[1] + 2
    case = replace(QUICK[key], config={**QUICK[key].config, "num_hidden_layers": more})
    (extrapolated,) = count(case, variant).parts.values()
    assert extrapolated == _compiled(case, variant, "cuda", more)


def test_leaves_the_model_as_it_was() -> None:
    case = small("gpt2-fp32", layers=1)
    with built(case, COMPILED, "cpu") as (model, _):
        names = [name for name, _ in model.named_parameters()]
        batch = batch_of(case, model)
        del batch["attention_mask"]
        assert compiled_bytes(model, batch) == compiled_bytes(model, batch)
        assert [name for name, _ in model.named_parameters()] == names
