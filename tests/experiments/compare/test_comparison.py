"""The figures of a comparison, compared with values computed by hand, and by their properties."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.compare.comparison import compare_model

FINITE = st.floats(-100, 100)
CURVES = st.lists(FINITE, min_size=1, max_size=5)
quick = settings(max_examples=50, deadline=None)


def run(variant: str, seed: int, *losses: float, first_step: int = 1) -> dict:
    loss = [{"step": step, "loss": loss} for step, loss in enumerate(losses, first_step)]
    return {"variant": variant, "seed": seed, "loss": loss}


def test_two_seeds_by_hand():
    assert compare_model(
        [
            run("plain", 0, 8.0, 4.0, 2.0),
            run("inverted", 0, 8.0, 4.5, 2.25),
            run("plain", 1, 7.0, 4.25, 2.5),
            run("inverted", 1, 7.0, 4.0, 2.5),
        ]
    ) == {
        "first_loss_difference": 0.0,
        "first_loss_identical": True,
        "largest_difference": 0.5,  # seed 0, step 2
        "final_difference": 0.25,  # seed 0
        "steps": 3,
        "steps_within_spread": 2,  # 0 < 1 and 0.25 < 0.5, not 0.5 < 0.25
        "smallest_spread": 0.25,
        "largest_spread": 1.0,
        "final_spread": 0.5,
    }


def test_three_seeds_spread_between_the_outer_two():
    plain = [run("plain", seed, loss) for seed, loss in enumerate([1.0, 4.0, 2.0])]
    assert compare_model([*plain, run("inverted", 0, 1.5)])["largest_spread"] == 3.0


def test_a_difference_as_large_as_the_spread_is_not_within_it():
    runs = [run("plain", 0, 1.0), run("inverted", 0, 1.5), run("plain", 1, 1.5), run("inverted", 1, 1.5)]
    assert compare_model(runs)["steps_within_spread"] == 0


def test_one_seed_has_no_spread():
    figures = compare_model([run("plain", 5, 3.0, 2.0), run("inverted", 5, 3.0, 2.5)])
    assert (figures["largest_difference"], figures["steps"]) == (0.5, 2)
    assert [value for key, value in figures.items() if "spread" in key] == [None] * 4


def test_a_first_loss_that_differs():
    figures = compare_model([run("plain", 0, 3.0), run("inverted", 0, 3.0 + 2**-40)])
    assert (figures["first_loss_identical"], figures["first_loss_difference"]) == (False, 2**-40)


def test_the_fused_baseline_does_not_count():
    runs = [run("plain", 0, 3.0), run("inverted", 0, 3.5), run("plain", 1, 2.0), run("inverted", 1, 2.0)]
    assert compare_model([run("fused", 0, 99.0), *runs]) == compare_model(runs)


def test_steps_that_only_one_run_has_are_left_out():
    figures = compare_model([run("plain", 0, 9.0, 3.0, first_step=0), run("inverted", 0, 3.5, 7.0)])
    assert (figures["steps"], figures["largest_difference"], figures["final_difference"]) == (1, 0.5, 0.5)


def test_runs_without_a_logged_step_cannot_be_compared():
    assert compare_model([run("plain", 0), run("inverted", 0)]) is None


@pytest.mark.parametrize("loss", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_loss_that_is_not_finite_is_no_small_difference(step, loss):
    broken = [3.0, 2.0, 1.0]
    broken[step] = loss
    plain, other = run("plain", 0, *broken), run("inverted", 0, *broken)
    figures = compare_model([plain, other, run("plain", 1, 3.0, 2.5, 1.0), run("inverted", 1, 3.0, 2.5, 1.0)])
    assert math.isnan(figures["largest_difference"])
    assert figures["first_loss_identical"] is (step != 0)
    assert math.isnan(figures["final_difference"]) is (step == 2)
    assert not math.isfinite(figures["largest_spread"])
    assert figures["smallest_spread"] == 0.0


@given(st.lists(CURVES, min_size=1, max_size=4))
@quick
def test_runs_that_are_the_same_do_not_differ(curves):
    runs = [run(variant, seed, *curve) for seed, curve in enumerate(curves) for variant in ("plain", "inverted")]
    figures = compare_model(runs)
    assert figures["first_loss_identical"]
    assert figures["largest_difference"] == figures["final_difference"] == 0.0
    assert figures["steps"] == max(map(len, curves))


@given(CURVES, CURVES)
@quick
def test_differences_and_spreads_are_symmetric(one, other):
    pairs = [("plain", 0, one), ("inverted", 0, other), ("plain", 1, other), ("inverted", 1, one)]
    swapped = [("plain", 1, one), ("inverted", 1, other), ("plain", 0, other), ("inverted", 0, one)]
    figures = compare_model([run(variant, seed, *losses) for variant, seed, losses in pairs])
    assert figures == compare_model([run(variant, seed, *losses) for variant, seed, losses in swapped])
    assert figures["largest_difference"] == figures["largest_spread"]


@given(st.permutations(range(6)), st.lists(st.lists(FINITE, min_size=3, max_size=3), min_size=6, max_size=6))
@quick
def test_the_order_of_the_runs_does_not_matter(order, curves):
    runs = [run("inverted" if n % 2 else "plain", n // 2, *curve) for n, curve in enumerate(curves)]
    figures = compare_model(runs)
    assert compare_model([runs[n] for n in order]) == figures
    assert 0 <= figures["first_loss_difference"] <= figures["largest_difference"]
    assert figures["smallest_spread"] <= figures["largest_spread"]
    assert 0 <= figures["steps_within_spread"] <= figures["steps"]
