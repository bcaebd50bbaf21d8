"""Keys: each record has one, and no two records share one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
from torch import nn

from hf_invact.curves import CURVES, GELU, Curve, clipped_gelu, elu, leaky_relu, softplus
from hf_invact.curves.custom import fit_curve
from hf_invact.curves.keys import curve_by_key


def test_a_key_leads_back_to_its_curve() -> None:
    curves = [*CURVES.values(), softplus(2.0), softplus(3.0), elu(0.5), leaky_relu(0.3), clipped_gelu(-1.0, 1.0)]
    assert [curve_by_key(curve.key) for curve in curves] == curves
    assert len({curve.key for curve in curves}) == len(set(curves))


def test_equal_records_have_one_key() -> None:
    assert replace(GELU) is not GELU
    assert replace(GELU).key == GELU.key
    assert replace(GELU, scale=2.0).key != GELU.key


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda curve: pickle.loads(pickle.dumps(curve))])
@pytest.mark.parametrize(
    "curve",
    [*CURVES.values(), softplus(2.5), elu(2.5), leaky_relu(0.25), fit_curve("celu", nn.functional.celu, None, 1e-5)],
    ids=lambda curve: curve.name,
)
def test_a_copy_has_the_same_key(curve: Curve, duplicate: Callable[[Curve], Curve]) -> None:
    """So that nothing is cached for it again: tables, formulas, compiled graphs."""
    twin = duplicate(curve)
    assert (twin, twin.key, hash(twin)) == (curve, curve.key, hash(curve))


def test_a_key_is_not_carried_to_another_process() -> None:
    assert b"softplus#" not in pickle.dumps(softplus(2.0))


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValueError, match="no curve has the key 'gelu#none'"):
        curve_by_key("gelu#none")
