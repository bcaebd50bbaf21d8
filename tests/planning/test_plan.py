"""Predictions for whole models of real sizes, against known figures."""

from __future__ import annotations

import resource
import time

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import BertConfig, LlamaConfig, MistralConfig, PretrainedConfig

from hf_invact import InvActConfig, Lora, MemoryPlan, PatchingError, PlanningError, plan_memory
from hf_invact.memory import PARTS
from tests.models import ACTIVATIONS
from tests.planning.small import small_config

GIB = 2**30
TOKENS = 4096


def test_bert_base_as_measured_on_a_gpu() -> None:
    config = BertConfig(architectures=["BertForSequenceClassification"])
    plan = plan_memory(config, 16, 512, dtype="float32", config=ACTIVATIONS)
    assert (plan.parameter_bytes + plan.plain_bytes) / GIB == pytest.approx(5.12, rel=0.01)
    assert (plan.parameter_bytes + plan.patched_bytes) / GIB == pytest.approx(4.03, rel=0.01)
    assert plan.saving == pytest.approx(0.231, abs=0.003)


@pytest.mark.parametrize(
    ("config", "plain"),
    [(LlamaConfig(max_position_embeddings=TOKENS), 23.382), (MistralConfig(sliding_window=None), 25.132)],
    ids=["llama", "mistral"],
)
def test_7b_takes_seconds_and_little_memory(config: PretrainedConfig, plain: float) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    plan = plan_memory(config, 1, TOKENS)
    assert time.process_time() - start < 15  # about 6 s
    # In KiB. In a new process it needs 0.8 GiB, most of it for libraries; here other tests ran before.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20
    inner = 32 * TOKENS * config.intermediate_size * 2
    assert plan.plain_bytes / GIB == pytest.approx(plain, abs=0.001)
    assert plan.plain["activation"] == 4 * inner
    # A norm keeps neither its input in float32 nor the normalized values in bfloat16, but four channels of these in
    # float32, and their indices.
    of_a_norm = TOKENS * (config.hidden_size * (4 + 2) - 4 * 4) - 4 * 8
    assert plan.plain_bytes - plan.patched_bytes == 2 * inner - inner // 16 + 65 * of_a_norm
    assert [site.plan for site in plan.report.sites] == ["gate-output"] * 32 + ["norm-output"] * 65
    assert plan.trainable_bytes <= plan.parameter_bytes  # these include buffers
    assert plan.trainable_bytes > 13e9


def small(**options: object) -> MemoryPlan:
    return plan_memory(**{"model": small_config("llama"), "batch_size": 2, "seq_len": 32, **options})  # type: ignore[arg-type]


def test_parts_are_those_of_the_meter() -> None:
    plan = small()
    assert list(plan.plain) == [part for part in PARTS if part in plan.plain]
    assert {"activation", "attention", "norm", "head and loss"} <= set(plan.plain)
    assert plan.plain_bytes == sum(plan.plain.values())
    activations = small(config=ACTIVATIONS)
    assert {part for part in plan.plain if activations.plain[part] != activations.patched[part]} == {"activation"}
    # A norm's output is then the norm's: the layers that get it keep nothing more.
    assert plan.patched["norm"] < plan.plain["norm"]
    assert set(plan.plain) - set(plan.patched) == {"mlp"}


def test_says_what_it_was_asked_for() -> None:
    plan = small(lora=Lora(r=2, targets="q_proj"), attention="eager", dtype="float32", autocast=True)
    assert (plan.model, plan.model_class, plan.batch_size, plan.seq_len) == ("llama", "LlamaForCausalLM", 2, 32)
    assert (plan.dtype, plan.autocast, plan.attention, plan.device) == ("float32", True, "eager", "cuda")
    assert plan.lora == Lora(r=2, targets="q_proj")
    assert plan.notes == ()


def test_grows_with_the_batch() -> None:
    one, two = small(batch_size=1), small(batch_size=2)
    assert two.parameter_bytes == one.parameter_bytes
    assert 1.9 < two.plain_bytes / one.plain_bytes <= 2


def test_checkpointed_layers_keep_their_input() -> None:
    plan = small(gradient_checkpointing=True)
    assert plan.plain["checkpoints"] == 2 * 2 * 32 * 32 * 2  # layers, sequences, tokens, width, bytes
    assert not {"activation", "attention", "mlp", "other"} & set(plan.plain)
    assert plan.plain_bytes < small().plain_bytes / 2
    assert small(gradient_checkpointing=True, config=ACTIVATIONS).patched == plan.plain
    of_the_last_norm = 2 * 32 * (32 * (4 + 2) - 4) - 8
    assert plan.plain_bytes - plan.patched_bytes == of_the_last_norm


def test_a_model_without_such_activations_is_planned_as_it_is() -> None:
    plan = plan_memory(small_config("t5", feed_forward_proj="relu"), 1, 16, config=ACTIVATIONS)
    assert plan.patched == plan.plain
    assert plan.report.sites == ()
    nothing = "Nothing is patched: no activation to invert in T5ForConditionalGeneration"
    assert any(note.startswith(nothing) for note in plan.notes)  # earlier versions of its class have no sdpa attention
    assert plan.saving == 0


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(PatchingError, match="matches none"):
        small(config=InvActConfig(include=["*.ffn"]))


def test_the_config_decides_what_is_patched() -> None:
    plan = small(config=InvActConfig(include=["*.0.mlp"], plan="output", sites=["activation"]))
    assert [site.plan for site in plan.report.sites] == ["output", None]
    assert small().patched_bytes < plan.patched_bytes < plan.plain_bytes


def test_a_sliding_window_is_noted_where_it_is_reached() -> None:
    config = small_config("mistral", sliding_window=32)
    reached, free = plan_memory(config, 1, 32), plan_memory(config, 1, 31)
    assert "reach the sliding window of 32, so sdpa attention gets a mask" in reached.notes[0]
    assert free.notes == ()
    assert reached.plain["attention"] > 1.3 * free.plain["attention"]


def test_attention_that_a_model_lacks_is_noted() -> None:
    plan = plan_memory(small_config("deberta-v2"), 1, 16)
    assert plan.attention == "eager"
    assert plan.notes == ("DebertaV2ForMaskedLM has no sdpa attention, so eager is planned.",)


def test_leaves_nothing_behind() -> None:
    config = small_config("llama")
    with FakeTensorMode():
        torch.ones(7).exp()  # an entry of other code in PyTorch's cache
    cached = set(FakeTensorMode.cache)
    before = config.to_dict(), torch.get_default_dtype(), torch.get_rng_state()
    plan_memory(config, 1, 16)
    assert (config.to_dict(), torch.get_default_dtype()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert cached
    assert set(FakeTensorMode.cache) == cached
    assert type(torch.empty(2)) is torch.Tensor


def test_images_have_no_length() -> None:
    plan, with_length = plan_memory(small_config("vit"), 8), plan_memory(small_config("vit"), 8, 4096)
    assert (plan.seq_len, plan.notes) == (None, ())
    assert (with_length.seq_len, with_length.plain) == (None, plan.plain)
    assert with_length.notes == ("ViTForImageClassification takes images alone, so the sequence length is ignored.",)


@pytest.mark.parametrize("model_type", ["llama", "clip", "whisper"])
def test_sequences_must_have_a_length(model_type: str) -> None:
    with pytest.raises(PlanningError, match="takes sequences, so how many tokens each has must be said: --seq-len"):
        plan_memory(small_config(model_type), 8)
