"""Real English text that needs no network: the docstrings and help topics of Python's own standard library.

Sources are parsed, not imported. The text depends on the version of Python, so results hold a `CorpusInfo`.
"""

import ast
import gc
import hashlib
import json
import platform
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from ...common.errors import ConfigError

NUM_CLASSES = 16
MIN_WORDS = 8  # shorter docstrings ("Return the name.") could belong to any package

_TEST_FOLDERS = {"test", "tests", "idle_test"}
# Applications, which many systems install separately, and tables with generated docstrings.
_NOT_LIBRARIES = {"encodings", "idlelib", "lib2to3", "pydoc_data", "turtledemo"}
_STATEMENT_LISTS = ("body", "orelse", "handlers", "finalbody")


@dataclass(frozen=True)
class CorpusInfo:
    """Identifies a text, to tell whether two results are of the same one."""

    python_version: str
    sha256: str
    characters: int
    records: int


def prose() -> list[dict[str, str]]:
    """Records with `text`: every distinct docstring and help topic, each followed by an empty line, in fixed order."""
    texts = dict.fromkeys(docstring for _, docstring in _docstrings_by_package())
    texts.update(dict.fromkeys(text.strip() for _, text in sorted(topics.items())))
    return [{"text": f"{text}\n\n"} for text in texts]


def docstrings() -> list[dict[str, str]]:
    """Records with `text` and `label`: to which package of the standard library does this docstring belong?

    The classes are the `NUM_CLASSES` public top-level packages and modules with the most docstrings of at least
    `MIN_WORDS` words. Each text occurs once; one that several packages share is left out. The names of the classes
    are blanked in every text, since they would give the label away.
    """
    owners: dict[str, set[str]] = {}
    for package, text in _docstrings_by_package():
        if len(text.split()) >= MIN_WORDS:
            owners.setdefault(text, set()).add(package)
    labels = {text: next(iter(packages)) for text, packages in owners.items() if len(packages) == 1}
    counts = Counter(label for label in labels.values() if not label.startswith("_"))
    classes = sorted(sorted(counts), key=counts.__getitem__, reverse=True)[:NUM_CLASSES]
    names = re.compile(rf"\b({'|'.join(map(re.escape, classes))})\b", re.IGNORECASE)
    return [{"text": names.sub("___", text), "label": label} for text, label in labels.items() if label in classes]


def describe(records: Iterable[Mapping[str, object]]) -> CorpusInfo:
    """Identify a text by a hash over its records that does not depend on their order.

    So the hash does not depend on how a seed splits the text. `characters` counts all fields that hold text.
    """
    digests: list[bytes] = []
    characters = 0
    for record in records:
        line = json.dumps(record, sort_keys=True, default=str)
        digests.append(hashlib.sha256(line.encode()).digest())
        characters += sum(len(value) for value in record.values() if isinstance(value, str))
    digest = hashlib.sha256(b"".join(sorted(digests))).hexdigest()
    return CorpusInfo(platform.python_version(), digest, characters, len(digests))


def _docstrings_by_package() -> list[tuple[str, str]]:
    """(top-level name, cleaned docstring) for all modules, classes and functions, in order of their paths."""
    root = Path(sysconfig.get_path("stdlib"))
    sources = [(name, path) for name in sorted(sys.stdlib_module_names) for path in _sources(root, name)]
    if not sources:
        raise ConfigError(
            f"this Python has no sources of its standard library in {root}, so the stdlib-* data sets cannot be read; "
            "give train_file or the hub name of a data set"
        )
    with _garbage_collection_paused():
        return [(name, text) for name, path in sources for text in _docstrings(ast.parse(path.read_bytes(), str(path)))]


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    # Parsing creates millions of short-lived nodes without cycles. The collector would double the time for nothing.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _sources(root: Path, name: str) -> list[Path]:
    if name in _NOT_LIBRARIES:
        return []
    if (module := root / f"{name}.py").is_file():
        return [module]
    paths = sorted((root / name).rglob("*.py"))
    return [path for path in paths if _TEST_FOLDERS.isdisjoint(path.relative_to(root).parts)]


def _docstrings(node: ast.AST) -> Iterator[str]:
    # Only statements contain definitions. Skipping expressions is several times faster than ast.walk.
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            yield docstring.strip()
    for field in _STATEMENT_LISTS:
        children = getattr(node, field, None)
        if isinstance(children, list):  # the body of a lambda or conditional expression is not a list
            for child in children:
                yield from _docstrings(child)
