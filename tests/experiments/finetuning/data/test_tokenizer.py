"""Tokenizers that are trained here."""

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from experiments.common.errors import ConfigError
from experiments.finetuning.data.tokenizer import ensure_padding, train_tokenizer

TEXTS = [
    f"Return the {a} of the {b}, or None if there is no {a}." for a in ("name", "size") for b in ("file", "résumé")
]


@pytest.fixture(params=["bert", "gpt2", "llama"])
def tokenizer(request) -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, request.param, vocab_size=400, max_length=32)


def test_round_trip_through_a_folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    for loaded in (PreTrainedTokenizerFast.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert dict(loaded(TEXTS)) == dict(tokenizer(TEXTS))
        assert loaded.special_tokens_map == tokenizer.special_tokens_map
        assert loaded.model_max_length == 32
        assert loaded.pad_token_id == tokenizer.pad_token_id


def test_vocabulary_keeps_to_its_size(tokenizer):
    assert len(tokenizer) <= 400
    assert max(tokenizer.get_vocab().values()) == len(tokenizer) - 1


def test_text_survives_encoding_and_decoding(tokenizer):
    ids = tokenizer("Return the size of the file", add_special_tokens=False)["input_ids"]
    expected = "return the size of the file" if tokenizer.mask_token else "Return the size of the file"
    assert tokenizer.decode(ids) == expected
    assert len(ids) < 12  # whole words were learned


def test_bert_marks_the_sentences_of_a_pair():
    tokenizer = train_tokenizer(TEXTS, "bert", 400, 32)
    encoded = tokenizer("the name", "no size")
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert tokens == ["[CLS]", "the", "name", "[SEP]", "no", "size", "[SEP]"]
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert tokenizer.mask_token_id == tokenizer.convert_tokens_to_ids("[MASK]")
    assert tokenizer.tokenize("the [MASK]") == ["the", "[MASK]"]


def test_characters_are_no_special_tokens_of_bert():
    # They are given to the trainer first, but "##a" in a text is still three characters.
    tokenizer = train_tokenizer([*TEXTS, "#"], "bert", 400, 32)
    assert tokenizer.tokenize("##a") == ["#", "#", "a"]
    assert len(tokenizer.all_special_ids) == 5


def test_decoders_end_a_text_with_a_token_of_its_own():
    tokenizer = train_tokenizer(TEXTS, "gpt2", 400, 32)
    assert tokenizer("the size" + tokenizer.eos_token)["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert "token_type_ids" not in tokenizer("the size")


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_training_is_repeatable(model_type):
    # The library's own WordPiece trainer gives another vocabulary each time.
    trained = {train_tokenizer(TEXTS, model_type, 400, 32).backend_tokenizer.to_str() for _ in range(5)}
    assert len(trained) == 1


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_too_small_a_vocabulary_is_an_error(model_type):
    with pytest.raises(ConfigError, match="tokenizer_vocab_size=20 is too small"):
        train_tokenizer(TEXTS, model_type, 20, 32)


def test_padding_falls_back_to_the_end_of_text_token():
    tokenizer = train_tokenizer(TEXTS, "gpt2", 400, 32)
    tokenizer.pad_token = None
    ensure_padding(tokenizer)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="neither a padding nor an end-of-text token"):
        ensure_padding(tokenizer)
