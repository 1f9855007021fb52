"""From what rules say to units: joined indices, and axes that are made of several."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexrel.structure.dependencies import AxisDependencies, FlattenedAxis
from flexrel.structure.groups import resolve


class Said:
    """A dependencies, put together by hand."""

    def __init__(self):
        self.dependencies = AxisDependencies({})

    def axis(self, size):
        first = self.dependencies.count
        self.dependencies.count += size
        return np.arange(first, first + size)

    def product(self, *sizes):
        """Return a flat axis and the factors it is made of."""
        factors = tuple(self.axis(size) for size in sizes)
        flat = self.axis(int(np.prod(sizes)))
        self.dependencies.flattened.append(FlattenedAxis(flat, factors))
        return flat, factors

    def join(self, one, two):
        self.dependencies.joined.append((one, two))

    def bar(self, indices, reason="it must stay"):
        self.dependencies.barred.append((indices, reason))

    def units(self):
        return resolve(self.dependencies)


@pytest.fixture
def said():
    return Said()


def members_of(units, flat):
    """Return which positions of an axis go together, those that can go."""
    groups = {}
    for position, index in enumerate(flat.tolist()):
        if units.free(flat)[position]:
            groups.setdefault(int(units.of[index]), []).append(position)
    return sorted(groups.values())


# --- joining ------------------------------------------------------------------------------------


@settings(max_examples=100, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30),
    st.lists(st.integers(0, 19), max_size=3),
)
def test_indices_are_one_unit_if_and_only_if_a_path_of_joins_leads_from_one_to_the_other(
    pairs, barred
):
    said = Said()
    said.axis(20)
    for one, two in pairs:
        said.join(np.array([one]), np.array([two]))
    for index in barred:
        said.bar(np.array([index]))
    reached = [{index} for index in range(20)]  # slowly: grow until nothing is added
    for _ in range(20):
        for one, two in pairs:
            reached[one] |= reached[two]
            reached[two] |= reached[one]

    units = said.units()

    for index, others in enumerate(reached):
        assert units.of[index] == min(others)  # the unit has the number of its first index
        assert units.free(np.array([index]))[0] == (not others & set(barred))


def test_of_several_reasons_the_one_said_first_is_given(said):
    axis, other = said.axis(2), said.axis(2)
    said.bar(other, "said first")
    said.bar(axis, "said later")
    said.join(axis, other)

    assert said.units().reason(axis) == "said first"


def test_heads_are_known_in_all_that_goes_with_them(said):
    axis, other, third = said.axis(3), said.axis(3), said.axis(3)
    said.dependencies.heads.append(axis)
    said.join(axis, other)

    units = said.units()

    assert units.heads[other].all()
    assert not units.heads[third].any()


# --- products -----------------------------------------------------------------------------------


def test_of_two_factors_the_one_with_more_units_is_cut(said):
    flat, (slow, fast) = said.product(2, 3)

    units = said.units()

    assert members_of(units, flat) == [[0, 3], [1, 4], [2, 5]]
    assert members_of(units, fast) == [[0], [1], [2]]
    assert not units.free(slow).any()
    assert units.reason(slow) == "it is cut in 3 parts, across this"


def test_of_equal_factors_the_slower_is_cut(said):
    flat, _ = said.product(3, 3)

    assert members_of(said.units(), flat) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_heads_are_cut_though_they_have_fewer_units_than_what_is_in_them(said):
    flat, (heads, _) = said.product(2, 3)
    said.dependencies.heads.append(heads)

    assert members_of(said.units(), flat) == [[0, 1, 2], [3, 4, 5]]


def test_a_barred_factor_leaves_the_choice_to_the_other(said):
    flat, (heads, _) = said.product(2, 3)
    said.dependencies.heads.append(heads)
    said.bar(heads)

    units = said.units()

    assert members_of(units, flat) == [[0, 3], [1, 4], [2, 5]]
    assert units.reason(heads) == "it must stay"


def test_with_all_factors_barred_nothing_of_the_axis_goes_with_the_first_reason(said):
    flat, (slow, fast) = said.product(2, 3)
    said.bar(fast, "the fast one")
    said.bar(slow, "the slow one")

    units = said.units()

    assert members_of(units, flat) == []
    assert units.reason(flat) == "the fast one"


def test_a_barred_axis_bars_its_factors(said):
    flat, (slow, fast) = said.product(2, 3)
    said.bar(flat)

    units = said.units()

    assert not units.free(slow).any()
    assert not units.free(fast).any()
    assert units.reason(fast) == "it must stay"


def test_one_position_that_must_stay_keeps_its_unit_alone(said):
    flat, (_, fast) = said.product(2, 3)
    said.bar(flat[4:5])

    units = said.units()

    assert members_of(units, flat) == [[0, 3], [2, 5]]
    assert members_of(units, fast) == [[0], [2]]


def test_of_three_factors_two_must_stay(said):
    flat, (a, _, c) = said.product(2, 4, 3)

    units = said.units()

    assert members_of(units, flat) == [[0, 1, 2, 12, 13, 14]] + [
        [at + more for more in (0, 1, 2, 12, 13, 14)] for at in (3, 6, 9)
    ]
    assert not units.free(a).any()
    assert not units.free(c).any()


def test_products_that_share_a_factor_are_cut_along_it(said):
    """Once the first is cut along it, the second can't be cut along another, though longer."""
    flat, (_, fast) = said.product(2, 3)
    longer = said.axis(5)
    other = said.axis(15)
    said.dependencies.flattened.append(FlattenedAxis(other, (fast, longer)))

    units = said.units()

    assert members_of(units, flat) == [[0, 3], [1, 4], [2, 5]]
    assert members_of(units, other) == [[5 * at + more for more in range(5)] for at in range(3)]
    assert not units.free(longer).any()


def test_the_factor_is_cut_that_leaves_more_units_after_all_that_is_known(said):
    """The first could go either way, but what it is joined to can be cut in rows alone."""
    flat, _ = said.product(2, 3)
    other, (slow, fast) = said.product(2, 3)
    said.bar(fast)
    said.join(flat, other)

    units = said.units()

    assert members_of(units, other) == members_of(units, flat)
    assert members_of(units, slow) == [[0], [1]]


def test_axes_taken_apart_differently_that_are_joined_can_be_cut_where_both_allow_it(said):
    """6 = 2 x 3 = 3 x 2: rows of the one are columns of no other."""
    flat, _ = said.product(2, 3)
    other, _ = said.product(3, 2)
    said.join(flat, other)

    units = said.units()

    assert members_of(units, flat) in ([], [[0, 1, 2, 3, 4, 5]])


def test_a_factor_that_is_itself_taken_apart_is_cut_to_the_bottom(said):
    """Heads of halves: 12 = 4 heads x (2 x 1.5) is not; 16 = 4 x (2 x 2), heads barred."""
    flat, (heads, width) = said.product(4, 4)
    halves, pairs = said.axis(2), said.axis(2)
    said.dependencies.flattened.append(FlattenedAxis(width, (halves, pairs)))
    said.bar(heads)
    said.bar(halves)

    units = said.units()

    assert members_of(units, width) == [[0, 2], [1, 3]]
    assert members_of(units, flat) == [[0, 2, 4, 6, 8, 10, 12, 14], [1, 3, 5, 7, 9, 11, 13, 15]]


SIZES = st.sampled_from([(2, 2), (2, 3), (3, 2), (4, 3), (2, 2, 3)])
NUMBERS = st.integers(0, 99)


def built(products, joins, bars, heads):
    """Products, and joins and bars between their axes wherever lengths allow it."""
    said = Said()
    for sizes in products:
        said.product(*sizes)
    axes = [axis for p in said.dependencies.flattened for axis in (p.flat, *p.factors)]
    for one, two in joins:
        axis = axes[one % len(axes)]
        alike = [other for other in axes if len(other) == len(axis)]
        said.join(axis, alike[two % len(alike)])
    for at, length in bars:
        axis = axes[at % len(axes)]
        said.bar(axis[: 1 + length % len(axis)])
    said.dependencies.heads += [axes[at % len(axes)] for at in heads]
    return said


@settings(max_examples=300, derandomize=True)
@given(
    st.lists(SIZES, min_size=1, max_size=4),
    st.lists(st.tuples(NUMBERS, NUMBERS), max_size=4),
    st.lists(st.tuples(NUMBERS, NUMBERS), max_size=2),
    st.lists(NUMBERS, max_size=1),
)
def test_whatever_goes_leaves_every_axis_a_product_of_what_is_left(products, joins, bars, heads):
    said = built(products, joins, bars, heads)
    products = list(said.dependencies.flattened)

    units = said.units()

    every = np.arange(said.dependencies.count)
    for unit in np.unique(units.of[every[units.free(every)]]):
        left = units.of != unit
        for product in products:
            kept = [left[factor] for factor in product.factors]
            assert sum(not all(factor) for factor in kept) <= 1  # one factor at most is cut
            whole = np.ones(1, bool)
            for factor in kept:
                whole = np.logical_and.outer(whole, factor)
            assert np.array_equal(left[product.flat], whole.ravel())
    for product in products:  # nor do two units, one of each factor, go from one product
        free = [bool(units.free(factor).any()) for factor in product.factors]
        assert sum(free) <= 1
