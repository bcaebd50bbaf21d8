"""Trains a small tokenizer, for models with fresh weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from ...common.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_END_OF_TEXT, _PADDING = "<|endoftext|>", "<|pad|>"


def train_tokenizer(texts: Iterable[str], model_type: str, vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer of the kind that `model_type` uses. The same texts always give the same tokenizer.

    Architectures with a masked-language-model head (bert, ...) get BERT's WordPiece, lower-cased, with its special
    tokens. All others get byte-level BPE with an end-of-text and a padding token.

    Args:
        texts: to train on.
        model_type: the architecture, as Transformers names it.
        vocab_size: the largest size of the vocabulary, including special tokens.
        max_length: the longest sequence that the model takes; stored as `model_max_length`.

    Raises:
        ConfigError: `vocab_size` is too small for the characters of the text.
    """
    train = _train_word_piece if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else _train_byte_level_bpe
    tokenizer = train(list(texts), vocab_size, max_length)
    if len(tokenizer) > vocab_size:
        raise ConfigError(
            f"tokenizer_vocab_size={vocab_size} is too small: the characters of this text and the special tokens "
            f"alone take {len(tokenizer)}; give at least that, and preferably several thousand"
        )
    return tokenizer


def ensure_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer without a padding token (GPT-2's) pad with its end-of-text token, in place.

    Raises:
        ConfigError: the tokenizer has neither.
    """
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigError(
                "the tokenizer has neither a padding nor an end-of-text token; give another tokenizer_name"
            )
        tokenizer.pad_token = tokenizer.eos_token


def _train_word_piece(texts: list[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    def untrained(vocab: dict[str, int] | None = None) -> Tokenizer:
        tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=_BERT_TOKENS["unk_token"]))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return tokenizer

    def vocabulary(size: int, first_tokens: list[str]) -> dict[str, int]:
        tokenizer = untrained()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=first_tokens, show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer.get_vocab()

    # The trainer numbers characters inside words ("##a") in hash order, which differs between processes and decides
    # ties between merges. Giving it all characters first, sorted, makes the vocabulary reproducible.
    characters = sorted(vocabulary(0, []))
    tokenizer = untrained(vocabulary(vocab_size, [*_BERT_TOKENS.values(), *characters]))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(_BERT_TOKENS.values()))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **_BERT_TOKENS,
    )


def _train_byte_level_bpe(texts: list[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END_OF_TEXT, _PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        bos_token=_END_OF_TEXT,
        eos_token=_END_OF_TEXT,
        pad_token=_PADDING,
        model_input_names=["input_ids", "attention_mask"],
    )
