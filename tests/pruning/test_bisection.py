"""Bisection, against trying every `k` in turn."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexrel.pruning.bisection import least_removal, most_removal

searched = settings(max_examples=200, derandomize=True)
# Steps of zero and few distinct values: plateaus are where bisection goes wrong.
drops = st.lists(st.sampled_from([0, 0, 1, 2, 50]), max_size=80)


def table_of(falls):
    """Return costs that never rise, the last of them 3."""
    costs = [3]
    for fall in reversed(falls):
        costs.insert(0, costs[0] + fall)
    return costs


def least_slowly(costs, limit):
    """Try every k in turn."""
    return next((k for k, value in enumerate(costs) if value <= limit), None)


class Counted:
    """A table that counts how often a new entry is asked for."""

    def __init__(self, values):
        self.values, self.asked = values, set()

    def __call__(self, k):
        assert 0 <= k < len(self.values), "asked beyond the table"
        assert k not in self.asked, "asked twice for the same"
        self.asked.add(k)
        return self.values[k]


@searched
@given(falls=drops, data=st.data())
def test_the_least_removal_is_that_of_a_linear_scan(falls, data):
    costs = table_of(falls)
    limit = data.draw(st.integers(0, max(costs) + 2))
    cost = Counted(costs)

    found = least_removal(cost, limit, len(costs) - 1)

    assert found == least_slowly(costs, limit)
    assert len(cost.asked) <= 2 + math.ceil(math.log2(len(costs)))


@searched
@given(falls=drops, data=st.data(), tolerance=st.sampled_from([0.001, 0.05, 0.3]))
def test_with_a_tolerance_the_limit_is_met_and_the_rest_nearly_used(falls, data, tolerance):
    costs = table_of(falls)
    limit = data.draw(st.integers(1, max(costs) + 2))
    cost = Counted(costs)

    found = least_removal(cost, limit, len(costs) - 1, tolerance)

    if found is None:
        assert least_slowly(costs, limit) is None
    else:
        assert costs[found] <= limit
        assert found in cost.asked  # really measured
        assert found == 0 or costs[found] >= limit * (1 - tolerance) or costs[found - 1] > limit
    assert len(cost.asked) <= 2 + 2 * math.ceil(math.log2(len(costs)))


def test_an_even_fall_needs_few_measurements():
    costs = Counted(list(range(10**6, 0, -1)))

    found = least_removal(costs, 123_456, 10**6 - 1, tolerance=0.002)

    assert 123_456 * 0.998 <= costs.values[found] <= 123_456
    assert len(costs.asked) <= 4  # the two ends, the line between them, and one to spare


@pytest.mark.parametrize(
    "cost",
    [
        lambda k: 10**9 / (k + 1) ** 3,  # nearly all of the fall at once
        lambda k: 10**9 - k**2,  # slow at first
        lambda k: 10**6 if k < 9_000 else 10_000 - k,
    ],
)
@pytest.mark.parametrize("at", [3, 5_000, 9_500])
def test_an_uneven_fall_needs_no_more_than_twice_the_steps_of_bisection(cost, at):
    costs = Counted([cost(k) for k in range(10**4)])

    found = least_removal(costs, costs.values[at], 10**4 - 1, tolerance=1e-9)

    assert costs.values[found] <= costs.values[at]
    assert len(costs.asked) <= 2 + 2 * math.ceil(math.log2(10**4))


def test_examples_by_hand():
    costs = [9, 7, 7, 4, 4, 1]

    assert least_removal(lambda k: costs[k], 9, 5) == 0
    assert least_removal(lambda k: costs[k], 8, 5) == 1
    assert least_removal(lambda k: costs[k], 6.9, 5) == 3
    assert least_removal(lambda k: costs[k], 1, 5) == 5
    assert least_removal(lambda k: costs[k], 0, 5) is None
    assert least_removal(lambda k: costs[k], 4, 0) is None


@searched
@given(answers=st.lists(st.booleans(), min_size=1, max_size=60), data=st.data())
def test_the_most_removal_was_really_found_good(answers, data):
    least = data.draw(st.integers(0, len(answers) - 1))
    resolution = data.draw(st.integers(0, 10))
    begin = data.draw(st.none() | st.integers(-5, len(answers) + 5))
    good = Counted(answers)

    found = most_removal(good, least, len(answers) - 1, resolution, begin)

    if found is None:
        assert not answers[least]
    else:
        assert answers[found]
        assert found in good.asked
        assert least <= found


@searched
@given(size=st.integers(1, 200), data=st.data(), resolution=st.integers(0, 12))
def test_the_turning_point_is_found_to_within_the_resolution(size, data, resolution):
    least = data.draw(st.integers(0, size - 1))
    last_good = data.draw(st.integers(least, size - 1))
    good = Counted([k <= last_good for k in range(size)])

    begin = data.draw(st.none() | st.integers(least, size - 1))

    found = most_removal(good, least, size - 1, resolution, begin)

    assert last_good - max(resolution, 1) < found <= last_good
    apart = size if begin is None else 2 + abs(begin - last_good)
    assert len(good.asked) <= (1 if begin is None else 2) * (1 + math.ceil(math.log2(apart + 1)))


def test_a_good_guess_saves_tries():
    answers = Counted([k <= 700 for k in range(1024)])
    guessed = Counted([k <= 700 for k in range(1024)])

    assert most_removal(answers, 0, 1023, 8) == pytest.approx(700, abs=8)
    assert most_removal(guessed, 0, 1023, 8, 690) == pytest.approx(700, abs=8)
    assert len(guessed.asked) <= 4
    assert len(answers.asked) >= 7


@pytest.mark.parametrize("most", [0, 1, 2, 7, 8, 100])
def test_all_goes_where_all_is_good(most):
    assert most_removal(lambda _: True, 0, most, 1) == most


def test_nothing_is_good_if_the_least_is_not():
    assert most_removal(lambda k: k > 3, 2, 10, 1) is None


def test_a_search_ends_where_nothing_that_is_left_would_be_worth_it():
    asked = []

    def good(count):
        asked.append(count)
        return count <= 3

    # 0 is good, 50 of 0 ... 100 is not: at most 49 are left, and 60 would have been worth it.
    assert most_removal(good, 0, 100, 1, worth=lambda count: count >= 60) == 0
    assert asked == [0, 50]


def test_a_search_that_begins_too_far_ends_where_less_would_not_be_worth_it():
    asked = []

    def good(count):
        asked.append(count)
        return count <= 3

    # 80 is not good, nor 76 four below it: at most 75 are left, and 76 would have been worth it.
    assert most_removal(good, 0, 100, 1, 80, lambda count: count >= 76) is None
    assert asked == [80, 76]
