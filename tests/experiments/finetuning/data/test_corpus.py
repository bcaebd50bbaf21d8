"""The text read from the standard library."""

import ast
import gc
import random
from collections import Counter

import pytest

from experiments.common.errors import ConfigError
from experiments.finetuning.data import corpus

SOURCE = '''
"""Module."""
class Some:
    """Class."""
    async def method(self, default=lambda: "no docstring"):
        """Method."""
if Some:
    def function():
        """
        Two
        lines.
        """
else:
    def function(): "Otherwise."
try:
    "no docstring"
except ValueError:
    def handler(): "Handler."
finally:
    def last(): "Finally."
'''


@pytest.fixture(scope="module")
def pairs():
    found = corpus._docstrings_by_package()
    assert gc.isenabled()
    return found


@pytest.fixture
def read_once(pairs, monkeypatch):
    """Reading the sources takes seconds, so most tests share one reading."""
    monkeypatch.setattr(corpus, "_docstrings_by_package", lambda: pairs)


@pytest.fixture
def prose(read_once):
    return corpus.prose()


@pytest.fixture
def docstrings(read_once):
    return corpus.docstrings()


def test_prose_is_plenty_distinct_and_repeatable(pairs):
    texts = [record["text"] for record in corpus.prose()]
    assert sum(map(len, texts)) > 1_500_000
    assert len(set(texts)) == len(texts)
    assert all(text.strip() and text.endswith("\n\n") for text in texts)
    found = dict.fromkeys(text for _, text in pairs)
    assert [text.rstrip("\n") for text in texts[: len(found)]] == list(found)


def test_the_garbage_collector_waits_until_the_sources_are_read(monkeypatch):
    """It would double the time, and find nothing."""
    states = set()
    monkeypatch.setattr(corpus, "_docstrings", lambda node: states.add(gc.isenabled()) or ())
    corpus._docstrings_by_package()
    assert states == {False}
    assert gc.isenabled()


def test_expressions_are_not_searched_for_definitions(monkeypatch):
    """They are most of a source; searching them too would take several times as long."""
    visited, docstrings = [], corpus._docstrings
    monkeypatch.setattr(corpus, "_docstrings", lambda node: visited.append(node) or docstrings(node))
    assert len(list(corpus._docstrings(ast.parse(SOURCE)))) == 7
    assert all(isinstance(node, ast.Module | ast.stmt | ast.ExceptHandler) for node in visited)


def test_prose_holds_docstrings_and_help_topics(prose):
    text = "".join(record["text"] for record in prose)
    assert "A Path subclass" in text or "PurePath" in text
    assert 'The "for" statement is used to iterate' in text


def test_definitions_are_found_wherever_statements_may_stand(tmp_path, monkeypatch):
    (tmp_path / "json" / "tests").mkdir(parents=True)
    (tmp_path / "json" / "tests" / "test_it.py").write_text('"""A test."""')
    (tmp_path / "json" / "__init__.py").write_text(SOURCE)
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_text('"""No part of the library."""')
    (tmp_path / "abc.py").write_bytes('# coding: latin-1\n"""Café."""'.encode("latin-1"))
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda name: str(tmp_path))
    texts = ["Module.", "Class.", "Method.", "Two\nlines.", "Otherwise.", "Handler.", "Finally."]
    assert corpus._docstrings_by_package() == [("abc", "Café."), *(("json", text) for text in texts)]


def test_docstrings_have_sixteen_classes_of_useful_size(docstrings):
    counts = Counter(record["label"] for record in docstrings)
    assert len(counts) == corpus.NUM_CLASSES
    assert min(counts.values()) >= 40
    assert "asyncio" in counts
    assert not any(label.startswith("_") for label in counts)


def test_docstrings_are_long_enough_and_unambiguous(docstrings):
    texts = [record["text"] for record in docstrings]
    assert len(set(texts)) > 0.99 * len(texts)  # blanking the names may make two texts equal
    assert min(len(text.split()) for text in texts) >= corpus.MIN_WORDS - 1


def test_docstrings_do_not_name_a_class(docstrings):
    labels = {record["label"] for record in docstrings}
    for record in docstrings:
        words = record["text"].lower().replace(".", " ").split()
        assert labels.isdisjoint(words)


def test_a_text_of_two_packages_is_left_out(monkeypatch):
    shared, own = "one two three four five six seven eight", "nine ten one two three four five six"
    pairs = [("json", shared), ("email", shared), ("json", own), ("json", own), ("_json", own + " seven"), ("ast", "x")]
    monkeypatch.setattr(corpus, "_docstrings_by_package", lambda: pairs)
    assert corpus.docstrings() == [{"text": own, "label": "json"}]


def test_sources_that_are_missing_are_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ConfigError, match="no sources of its standard library"):
        corpus.prose()


def test_hash_names_the_text_whatever_its_order(docstrings):
    info = corpus.describe(docstrings)
    shuffled = random.Random(0).sample(docstrings, len(docstrings))
    assert corpus.describe(shuffled) == info
    assert info.records == len(docstrings)
    assert info.characters == sum(len(record["text"]) + len(record["label"]) for record in docstrings)
    changed = [{**docstrings[0], "text": docstrings[0]["text"] + "."}, *docstrings[1:]]
    assert corpus.describe(changed).sha256 != info.sha256
    assert corpus.describe(docstrings[1:]).sha256 != info.sha256
