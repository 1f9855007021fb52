"""How the benchmarks bring other libraries to a budget: as close to it as they can."""

from types import SimpleNamespace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import rivals


class Limited:
    """A ruler for networks that are numbers: what they cost."""

    def __init__(self, limit):
        self.limit = limit

    def __call__(self, network):
        return network


def found(cost, level, limit, granularity="channel"):
    """Return the cost of what a library is brought to, and the knobs that it was called with."""
    knobs = []

    def call(_model, _task, knob):
        knobs.append(knob)
        return cost(knob)

    case = SimpleNamespace(granularity=granularity, level=level)
    task = SimpleNamespace(model=None)
    return rivals.by_library(call, case, task, Limited(limit))[0], knobs


@given(st.floats(0.05, 0.9), st.floats(0.5, 3.0), st.floats(0.5, 2.0))
def test_a_smooth_cost_is_brought_within_a_hundredth(level, power, scale):
    limit = level * min(scale, 1)
    cost, knobs = found(lambda knob: scale * knob**power, level, limit)
    assert 0.99 * limit <= cost <= limit
    assert all(0 < knob <= 1 for knob in knobs)


@given(st.integers(4, 60), st.floats(0.1, 0.9), st.sampled_from(("channel", "element")))
def test_a_cost_in_steps_is_brought_to_the_last_one_that_fits(steps, level, granularity):
    def cost(knob):
        return (max(int(steps * knob + 1e-9), 1) / steps) ** 2

    fit = [cost(n / steps) for n in range(1, steps + 1) if cost(n / steps) <= level]
    assume(fit)
    assert found(cost, level, level, granularity)[0] == pytest.approx(max(fit))


def test_no_knob_that_fits_is_a_failure():
    with pytest.raises(RuntimeError, match="no call kept to the budget"):
        found(lambda _knob: 1.0, 0.5, 0.5)


def test_a_library_that_never_fills_the_budget_keeps_all():
    assert found(lambda knob: 0.3 * knob, 0.5, 0.5)[0] == pytest.approx(0.3)
