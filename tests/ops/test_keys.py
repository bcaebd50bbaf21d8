"""Keys: one for each record, and none for two."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hf_invact.curves import CURVES, GELU, clipped_gelu, elu, leaky_relu, softplus
from hf_invact.ops.keys import curve_of, key_of


def test_a_key_leads_back_to_its_curve() -> None:
    curves = [*CURVES.values(), softplus(2.0), softplus(3.0), elu(0.5), leaky_relu(0.3), clipped_gelu(-1.0, 1.0)]
    assert [curve_of(key_of(curve)) for curve in curves] == curves
    assert len({key_of(curve) for curve in curves}) == len(set(curves))


def test_equal_records_have_one_key() -> None:
    assert replace(GELU) is not GELU
    assert key_of(replace(GELU)) == key_of(GELU)
    assert key_of(replace(GELU, scale=2.0)) != key_of(GELU)


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValueError, match="no curve has the key 'gelu#none'"):
        curve_of("gelu#none")
