"""The models, settings and variants whose memory is compared, and the published figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class MemoryVariant:
    """A way to train the same model.

    Attributes:
        name: in the results.
        plan: of `hf_invact.InvActConfig`; None leaves the model unpatched.
        sites: the kinds of sites that are patched.
        activation: replaces that of the model's config.
        checkpointed: whether layers are recomputed in the backward pass.
        compiled: whether the model is compiled by `torch.compile`.
    """

    name: str
    plan: str | None = None
    sites: tuple[str, ...] = ("adapter", "activation", "norm")
    activation: str | None = None
    checkpointed: bool = False
    compiled: bool = False


PLAIN = MemoryVariant("plain")
# What others do, or the paper does, is in the activations alone.
ACTIVATIONS = ("activation",)
ACTIVATION = MemoryVariant("activation inverted", plan="output", sites=ACTIVATIONS)
OURS = MemoryVariant("ours", plan="auto")
WITHOUT_NORMS = MemoryVariant("ours, without norms", plan="auto", sites=("adapter", "activation"))
OURS_ACTIVATIONS = MemoryVariant("ours, activations alone", plan="auto", sites=ACTIVATIONS)
EXACT_GATE = MemoryVariant("exact gate", plan="gate-inputs", sites=ACTIVATIONS)
FUSED = MemoryVariant("fused activation", activation="gelu_pytorch_tanh")
FUSED_OURS = MemoryVariant("fused + ours", plan="auto", activation="gelu_pytorch_tanh")
CHECKPOINTED = MemoryVariant("checkpointing", checkpointed=True)
CHECKPOINTED_OURS = MemoryVariant("checkpointing + ours", plan="auto", checkpointed=True)
COMPILED = MemoryVariant("torch.compile", compiled=True)
COMPILED_OURS = MemoryVariant("torch.compile + ours", plan="auto", compiled=True)
GELU_IN_PLACE_OF_SILU = MemoryVariant(
    "activation inverted, GELU for SiLU", plan="output", sites=ACTIVATIONS, activation="gelu"
)

_OTHERS = (CHECKPOINTED, CHECKPOINTED_OURS, COMPILED, COMPILED_OURS)
_ENCODER = (PLAIN, ACTIVATION, WITHOUT_NORMS, OURS, *_OTHERS)
_UNFUSED = (PLAIN, FUSED, ACTIVATION, WITHOUT_NORMS, OURS, FUSED_OURS, *_OTHERS)
_GATED = (PLAIN, ACTIVATION, EXACT_GATE, WITHOUT_NORMS, OURS, *_OTHERS)
_ADAPTED = (PLAIN, ACTIVATION, EXACT_GATE, OURS_ACTIVATIONS, WITHOUT_NORMS, OURS, *_OTHERS)
_DROPPED = (PLAIN, OURS_ACTIVATIONS, WITHOUT_NORMS, OURS, CHECKPOINTED, CHECKPOINTED_OURS)

MEASURED_ON_GPU = (PLAIN, ACTIVATION, OURS_ACTIVATIONS, WITHOUT_NORMS, OURS)
"""The variants that are also measured if there is a GPU."""


@dataclass(frozen=True)
class PublishedFigures:
    """What the paper's authors measured on a GPU, in GiB allocated after a forward pass, weights included."""

    weights: float
    plain: float
    inverted: float
    source: str

    @property
    def change(self) -> float:
        """The relative change of what is not weights."""
        return (self.inverted - self.plain) / (self.plain - self.weights)


BERT_NOTEBOOK = PublishedFigures(0.409, 5.12, 4.03, "github.com/PgLoLo/optiacts, examples/BERT.ipynb")
MISTRAL_NOTEBOOK = PublishedFigures(4.83, 47.5, 40.8, "github.com/PgLoLo/optiacts, examples/Mistral.ipynb")


@dataclass(frozen=True)
class MemoryCase:
    """A model, the way it is trained, and its batch.

    Attributes:
        key: names its figure.
        model, setting: its title.
        model_class: of Transformers.
        batch_size, seq_len: of the batch.
        variants: those that apply to it, the plain one first.
        dtype: of the weights.
        config: values that differ from the defaults of the model class.
        autocast: whether the forward pass runs under autocast to bfloat16.
        adapters: dtype of LoRA's adapters (r=16, on all linear layers); None trains all weights.
        dropout: of the adapters.
        forward_only: whether the model returns no loss, as in the reference notebooks.
        quantized: whether the frozen weights of the reference notebook are emulated (see `published.py`).
        published: the figures to compare with.
    """

    key: str
    model: str
    setting: str
    model_class: str
    batch_size: int
    seq_len: int
    variants: tuple[MemoryVariant, ...]
    dtype: str = "bfloat16"
    config: Mapping[str, Any] = field(default_factory=dict)
    autocast: bool = False
    adapters: str | None = None
    dropout: float = 0.0
    forward_only: bool = False
    quantized: bool = False
    published: PublishedFigures | None = None

    def inputs(self, variant: MemoryVariant) -> dict[str, Any]:
        """Everything that decides what is counted, as JSON-compatible data."""
        own = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        del own["variants"]
        own["config"] = dict(self.config)
        own["published"] = self.published and dataclasses.asdict(self.published)
        sites = [] if variant.plan is None else list(variant.sites)
        return {**own, "variant": {**dataclasses.asdict(variant), "sites": sites}}


_WINDOWLESS = {"sliding_window": None}
# In the notebook's version of Transformers, attention kept keys and values repeated for all heads.
_REPEATED = {**_WINDOWLESS, "num_key_value_heads": 32}
_PUBLISHED_VARIANTS = (PLAIN, GELU_IN_PLACE_OF_SILU, OURS)


def _cases(
    sizes: Mapping[str, tuple[int, int]], encoder: Mapping[str, Any], gpt2: Mapping[str, Any], gated: Mapping[str, Any]
) -> tuple[MemoryCase, ...]:
    """The cases with batches of these sizes, and models with these config values besides their defaults."""
    bert_batch, gpt2_batch, decoder_batch = sizes["bert"], sizes["gpt2"], sizes["decoder"]

    def named(batch: tuple[int, int], text: str) -> str:
        return f"{batch[0]} x {batch[1]:,}, {text}"

    def gpt2_case(key: str, text: str, dtype: str, autocast: bool = False) -> MemoryCase:
        setting = named(gpt2_batch, text)
        return MemoryCase(
            key, "GPT-2", setting, "GPT2LMHeadModel", *gpt2_batch, _UNFUSED, dtype, config=gpt2, autocast=autocast
        )

    def mistral_case(key: str, text: str, variants: tuple[MemoryVariant, ...], **options: Any) -> MemoryCase:
        config = {**gated, **(_REPEATED if options.get("quantized") else _WINDOWLESS)}
        if gated and options.get("quantized"):
            config["num_key_value_heads"] = gated["num_attention_heads"]
        setting = named(decoder_batch, text)
        return MemoryCase(
            key, "Mistral-7B", setting, "MistralForCausalLM", *decoder_batch, variants, config=config, **options
        )

    return (
        MemoryCase(
            *("bert-base", "BERT-base", named(bert_batch, "fp32, as published"), "BertModel", *bert_batch, _ENCODER),
            dtype="float32",
            config=encoder,
            forward_only=True,
            published=BERT_NOTEBOOK,
        ),
        mistral_case(
            *("mistral-published", "4-bit weights, no adapter, as published", _PUBLISHED_VARIANTS),
            forward_only=True,
            quantized=True,
            published=MISTRAL_NOTEBOOK,
        ),
        mistral_case("mistral-7b", "bf16, full fine-tuning", _GATED, published=MISTRAL_NOTEBOOK),
        mistral_case("mistral-lora", "LoRA, bf16 adapters", _ADAPTED, adapters="bfloat16"),
        mistral_case(
            *("mistral-peft", "LoRA, PEFT's fp32 adapters, autocast to bf16", _ADAPTED),
            adapters="float32",
            autocast=True,
        ),
        mistral_case(
            *("mistral-peft-dropout", "LoRA, PEFT's fp32 adapters, dropout 0.05", _DROPPED),
            adapters="float32",
            dropout=0.05,
        ),
        mistral_case(
            *("mistral-peft-dropout-autocast", "LoRA, PEFT's fp32 adapters, dropout 0.05, autocast to bf16", _DROPPED),
            adapters="float32",
            dropout=0.05,
            autocast=True,
        ),
        MemoryCase(
            *("llama-7b", "Llama-7B", named(decoder_batch, "bf16, full fine-tuning"), "LlamaForCausalLM"),
            *(*decoder_batch, _GATED),
            config=gated,
        ),
        gpt2_case("gpt2-fp32", "fp32", "float32"),
        gpt2_case("gpt2-bf16", "bf16", "bfloat16"),
        gpt2_case("gpt2-autocast", "fp32 weights, autocast to bf16", "float32", autocast=True),
    )


_NARROW = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
_SMALL = {**_NARROW, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_COMPILED_QUICKLY = ("mistral-7b", "gpt2-fp32")  # compiling the others would take most of the time


def _quick_cases() -> tuple[MemoryCase, ...]:
    sizes = {"bert": (4, 64), "gpt2": (4, 64), "decoder": (1, 256)}
    encoder = {**_SMALL, "intermediate_size": 256}
    gated = {**_SMALL, "intermediate_size": 224, "num_key_value_heads": 2}
    cases = _cases(sizes, encoder, _SMALL, gated)
    return tuple(
        dataclasses.replace(
            case,
            model=f"{case.model} made tiny",
            variants=tuple(each for each in case.variants if not each.compiled or case.key in _COMPILED_QUICKLY),
        )
        for case in cases
    )


CASES: Mapping[str, tuple[MemoryCase, ...]] = MappingProxyType(
    {
        "full": _cases({"bert": (16, 512), "gpt2": (8, 1024), "decoder": (1, 4096)}, {}, {}, {}),
        "quick": _quick_cases(),
    }
)
"""By effort: "full", and "quick" with narrow models of few layers, only some of which are compiled."""
