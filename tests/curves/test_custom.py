"""The fit of a user's function does not depend on the default dtype or device."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_invact.curves import fit_curve
from tests.ops.test_defaults import DEFAULTS, Default


def shifted(x: Tensor) -> Tensor:
    return F.silu(x - torch.tensor(2.0, dtype=x.dtype))  # a constant of its own, on the default device


@pytest.mark.parametrize("default", DEFAULTS.values(), ids=DEFAULTS)
@pytest.mark.parametrize("function", [shifted, F.softplus])
def test_fit_under_a_default_of_the_callers(function: object, default: Default) -> None:
    expected = fit_curve("own", function, None, max_error=1e-4)
    with default():
        curve = fit_curve("own", function, None, max_error=1e-4)
    assert curve.inverse == expected.inverse
