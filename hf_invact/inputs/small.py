"""Makes a small batch for a model: of text, images, videos, spectra, sound, or several of them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from itertools import combinations, product

from transformers import PreTrainedModel

from .tensors import COMPANIONS, FURTHER, MAIN, STATES, Companion
from .wanted import Batch, Wanted

MOST_KINDS = 3  # in a batch


class UnknownInputsError(ValueError):
    """A model takes inputs of which nothing is known here."""


def small_inputs(model: PreTrainedModel, samples: int, tokens: int, method: str = "forward") -> Iterator[Batch]:
    """Batches that a model may accept, the likeliest first: its signature does not tell which inputs are enough.

    Numbers are random, the same every time, on the model's device and of its dtype. They are fake where tensors are;
    token ids and masks are real, since models decide by their values. Caches are turned off where that is an argument.

    Args:
        model: any model of Transformers.
        samples: how many sequences, images or recordings.
        tokens: in a sequence; fewer where the model has fewer positions. Images and spectra have the size that the
            config names.
        method: the one to call, such as ``get_image_features``.

    Raises:
        UnknownInputsError: it takes none of the inputs that are known, or requires others as well.

    >>> from transformers import ViTConfig, ViTModel
    >>> model = ViTModel(ViTConfig(num_hidden_layers=1, image_size=32))
    >>> [(name, tuple(x.shape)) for name, x in next(small_inputs(model, samples=2, tokens=4)).items()]
    [('pixel_values', (2, 3, 32, 32))]
    """
    parameters = list(inspect.signature(getattr(type(model), method)).parameters.values())[1:]
    named = [each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    required = {each.name for each in named if each.default is each.empty}
    wanted = Wanted(model, frozenset(each.name for each in named), samples, tokens)
    main = [name for name in MAIN if name in wanted.takes] + [name for name in STATES if name in required]
    main.sort(key=lambda name: name != model.main_input_name)
    unknown = sorted(required - {*main, *COMPANIONS, *FURTHER})
    if unknown or not main:
        others = ", ".join(each.name for each in named[:4]) or "no arguments with names"
        what = f"requires {', '.join(unknown)}" if unknown else f"takes {others}"
        raise UnknownInputsError(
            f"{type(model).__name__}.{method} {what}: only {', '.join(MAIN)}, and what goes with them, are known"
        )
    return _batches(wanted, main, required)


def _batches(wanted: Wanted, main: list[str], required: set[str]) -> Iterator[Batch]:
    always = {**COMPANIONS, **{name: make for name, make in FURTHER.items() if name in required}}
    further = {name: make for name, make in FURTHER.items() if name not in required}
    makers = {**MAIN, **STATES}
    for names in (each for size in range(1, MOST_KINDS + 1) for each in combinations(main, size)):
        if not required.intersection(main).issubset(names):
            continue
        for values in product(*(makers[name](wanted) for name in names)):
            batch = dict(zip(names, values, strict=True))
            usual = {**batch, **_made(wanted, always, batch)}
            yield usual
            if more := _made(wanted, further, batch):
                yield {**usual, **more}


def _made(wanted: Wanted, makers: Mapping[str, Companion], batch: Batch) -> Batch:
    made = {name: make(wanted, batch) for name, make in makers.items() if name in wanted.takes and name not in batch}
    return {name: value for name, value in made.items() if value is not None}
