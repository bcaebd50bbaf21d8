"""The colours of the variants in every figure."""

from __future__ import annotations

# The Okabe-Ito palette, which people with any colour vision can tell apart.
VARIANT_COLOURS = {"plain": "#0072B2", "fused": "#009E73", "inverted": "#D55E00"}
