"""The optimizers that a training step can be planned with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import nn, optim


def _adafactor(parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    from transformers.optimization import Adafactor

    made: optim.Optimizer = Adafactor(parameters, lr=0.0, scale_parameter=False, relative_step=False)
    return made


# With a learning rate of 0, real weights keep their values.
OPTIMIZERS: Mapping[str, Callable[[Iterable[nn.Parameter]], optim.Optimizer]] = {
    "adamw": lambda parameters: optim.AdamW(parameters, lr=0.0, foreach=True),
    "adamw_fused": lambda parameters: optim.AdamW(parameters, lr=0.0, fused=True),
    "sgd": lambda parameters: optim.SGD(parameters, lr=0.0, foreach=True),
    "adafactor": _adafactor,
}
"""Optimizers by name, as they run on CUDA.

``adamw`` and ``sgd`` are torch's, with its default on CUDA, ``foreach``: this AdamW makes temporaries of the size of
the trainable parameters. ``adamw_fused`` (the Trainer's default, ``adamw_torch_fused``) makes none. ``adafactor`` is
Transformers', as the Trainer sets it up.
"""


def make_optimizer(name: str, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    """An optimizer by its name in `OPTIMIZERS`.

    Raises:
        ValueError: an unknown name.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}; choose one of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name](parameters)
