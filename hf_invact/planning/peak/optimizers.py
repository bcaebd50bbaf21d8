"""The optimizers that a step can be planned with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import nn, optim

OptimizerFactory = Callable[[Iterable[nn.Parameter]], optim.Optimizer]


def _adafactor(parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    from transformers.optimization import Adafactor

    made: optim.Optimizer = Adafactor(parameters, lr=0.0, scale_parameter=False, relative_step=False)
    return made


# The learning rate is 0, so that weights that are real stay what they are.
OPTIMIZERS: Mapping[str, OptimizerFactory] = {
    "adamw": lambda parameters: optim.AdamW(parameters, lr=0.0, foreach=True),
    "adamw_fused": lambda parameters: optim.AdamW(parameters, lr=0.0, fused=True),
    "sgd": lambda parameters: optim.SGD(parameters, lr=0.0, foreach=True),
    "adafactor": _adafactor,
}
"""Optimizers by name, as they run on CUDA.

``adamw`` and ``sgd`` are torch's with its default there, ``foreach``: this AdamW makes temporaries of the size of the
trainable parameters. ``adamw_fused`` (the Trainer's default, ``adamw_torch_fused``) makes none. ``adafactor`` is
Transformers', as the Trainer sets it up.
"""


def make_optimizer(
    optimizer: str | OptimizerFactory | optim.Optimizer, parameters: Iterable[nn.Parameter]
) -> optim.Optimizer:
    """Of a name in `OPTIMIZERS`, or of a function. One that is made already is returned.

    Raises:
        ValueError: the name is not known.
    """
    if isinstance(optimizer, optim.Optimizer):
        return optimizer
    if not isinstance(optimizer, str):
        return optimizer(parameters)
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"the optimizer {optimizer!r} is not known; choose one of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[optimizer](parameters)
