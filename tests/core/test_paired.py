"""The bound on a drop of accuracy: against enumeration, closed forms and simulation."""

import itertools
import math
from functools import cache

import numpy as np
import pytest

from flexrel.core.paired import at_most, drop_bound, samples_needed, share_interval

bound = cache(drop_bound)


def chance(lost, won, samples, p_lost, p_won):
    """Return the multinomial probability of so many lost and won."""
    ways = math.comb(samples, lost) * math.comb(samples - lost, won)
    return ways * p_lost**lost * p_won**won * (1 - p_lost - p_won) ** (samples - lost - won)


def outcomes(samples):
    pairs = itertools.product(range(samples + 1), repeat=2)
    return [pair for pair in pairs if sum(pair) <= samples]


@pytest.mark.parametrize("rates", [(0.3, 0.1), (0.02, 0.0), (0.0, 0.5), (0.5, 0.5), (1.0, 0.0)])
@pytest.mark.parametrize("difference", [-3, 0, 2, 9])
def test_the_probability_of_a_difference_is_the_sum_over_outcomes(rates, difference):
    likely = [o for o in outcomes(9) if o[0] - o[1] <= difference]

    expected = sum(chance(*outcome, 9, *rates) for outcome in likely)

    assert at_most(difference, 9, *rates) == pytest.approx(expected, abs=1e-9)


def test_the_interval_of_a_share_has_its_closed_form_at_the_ends():
    """None of n: 1 - (error / 2) ** (1 / n); 3 of 10 from tables of Clopper and Pearson."""
    assert share_interval(0, 50, 0.05) == (0.0, pytest.approx(1 - 0.025 ** (1 / 50), abs=1e-6))
    assert share_interval(50, 50, 0.05) == (pytest.approx(0.025 ** (1 / 50), abs=1e-6), 1.0)
    assert share_interval(3, 10, 0.05) == pytest.approx((0.06674, 0.65245), abs=1e-4)


@pytest.mark.parametrize("p_lost", [0.02, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("p_won", [0.0, 0.05, 0.3])
def test_the_bound_holds_in_95_percent_of_all_draws(p_lost, p_won):
    drop = p_lost - p_won

    held = sum(
        chance(*outcome, 10, p_lost, p_won)
        for outcome in outcomes(10)
        if bound(*outcome, 10) >= drop - 1e-6
    )

    assert held >= 0.95


def test_the_bound_holds_and_is_close_on_10_000_samples():
    """A drop of 0.2 points: 30 samples are lost and 10 won on average, sqrt(40) is 6.3."""
    draws = np.random.default_rng(0).multinomial(10_000, [0.003, 0.001, 0.996], size=60)

    bounds = np.array([bound(int(lost), int(won), 10_000) for lost, won, _ in draws])

    assert (bounds >= 0.002).mean() >= 0.9  # of 60: 95 % less two standard errors
    assert bounds.mean() < 0.002 + 2.5 * math.sqrt(40) / 10_000
    assert bounds.max() < 0.006


def test_more_samples_lost_or_fewer_won_are_a_larger_drop():
    lost = [drop_bound(count, 10, 1000) for count in (0, 5, 10, 40)]
    won = [drop_bound(10, count, 1000) for count in (0, 5, 10, 40)]

    assert lost == sorted(set(lost))
    assert won == sorted(set(won), reverse=True)
    assert all(-1 <= one <= 1 for one in lost + won)


@pytest.mark.parametrize("counts", [(0, 0), (300, 0), (0, 300), (150, 150)])
def test_extreme_counts_have_a_bound(counts):
    assert (counts[0] - counts[1]) / 300 <= drop_bound(*counts, 300) <= 1


def test_as_many_samples_as_are_asked_for_do():
    needed = samples_needed(4, 2, 400, 0.01)

    assert drop_bound(round(4 * needed / 400), round(2 * needed / 400), needed) <= 0.01
    fewer = needed // 2
    assert drop_bound(round(4 * fewer / 400), round(2 * fewer / 400), fewer) > 0.01
    assert samples_needed(8, 2, 400, 0.01) is None  # 1.5 points were measured
