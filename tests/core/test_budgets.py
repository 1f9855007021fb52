"""What a budget says, what it allows, and what is refused."""

import math
import pickle
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexrel import AccuracyDrop, Budget, Bytes, MACs, Parameters, PeakMemory, Sparsity, UsageError
from flexrel.core.budgets import budget_of, target_of
from networks import unchecked

COUNTED = (Parameters, MACs, Bytes)


def make(budget, amount):
    """Make a budget as users do, without the type checks of tests."""
    made = object.__new__(budget)
    unchecked(budget.__init__)(made, amount)
    return made


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500", 500),
        ("500B", 500),
        ("500 kB", 500_000),
        ("500kB", 500_000),
        ("500 KB", 500_000),
        (" 0.5 MB ", 500_000),
        ("2 GB", 2_000_000_000),
        ("1 KiB", 1024),
        ("1 kiB", 1024),
        ("1.5 MiB", 3 * 2**19),
        ("1 GiB", 2**30),
        ("8.12 kB", 8120),  # 8.12 * 1000 is less in floats
        ("1.0005 kB", 1000),  # down to whole bytes
    ],
)
def test_bytes_are_read_as_written(text, expected):
    assert Bytes(text).limit(10**9) == expected


@pytest.mark.parametrize(
    "text",
    ["", "kB", "-1 kB", "0 kB", "0", "500 kb", "500 mB", "5 iB", "1e3", "1,5 MB", "5 kB x", "1 TB"],
)
def test_bytes_written_another_way_are_refused_with_examples(text):
    with pytest.raises(UsageError, match=r'write it like "500 kB", "1\.5 MiB" or 500000') as caught:
        Bytes(text)

    assert repr(text) in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("budget", COUNTED)
@pytest.mark.parametrize("amount", [0, -1, 0.0, 1.5, -0.5, math.nan, math.inf, True])
def test_an_amount_that_is_no_share_and_no_count_is_refused(budget, amount):
    with pytest.raises(UsageError, match=r"a share of the dense network in \(0, 1\]") as caught:
        budget(amount)

    assert str(caught.value).startswith(f"{budget.resource.name} budget is {amount!r}")


@pytest.mark.parametrize("budget", COUNTED)
def test_an_int_is_a_count_and_a_float_a_share(budget):
    assert budget(1).limit(1000) == 1
    assert budget(500_000).limit(1000) == 500_000
    assert budget(1.0).limit(1000) == 1000
    assert budget(0.5).limit(1001) == 500  # met from below


@given(percent=st.integers(1, 100), hundreds=st.integers(1, 10**7), more=st.integers(0, 2))
def test_a_share_is_rounded_down_and_never_by_more_than_its_decimals_say(percent, hundreds, more):
    """0.29 * 100 is 28.999999999999996 in floats; 29 of 100 is 29 percent."""
    dense = 100 * hundreds + more

    expected = Fraction(percent, 100) * dense // 1

    assert Parameters(percent / 100).limit(dense) == expected
    assert MACs(0.29).limit(100) == 29


@pytest.mark.parametrize("amount", [-0.1, 1.0, 2, math.nan, True, "half", None])
def test_a_sparsity_outside_its_range_is_refused(amount):
    with pytest.raises(UsageError, match=r"the fraction removed, in \[0, 1\)"):
        make(Sparsity, amount)


@pytest.mark.parametrize("amount", [-0.01, 1.01, math.nan, math.inf, True, "1%", None])
def test_an_accuracy_drop_outside_its_range_is_refused(amount):
    with pytest.raises(UsageError, match=r"0\.01 is one point"):
        make(AccuracyDrop, amount)


@pytest.mark.parametrize("amount", [0, 0.0, 0.01, 1, 1.0])
def test_an_accuracy_drop_in_its_range_is_kept(amount):
    assert AccuracyDrop(amount).amount == amount


def test_a_sparsity_does_not_depend_on_the_dense_network():
    assert Sparsity(0.7).limit(1.0) == Sparsity(0.7).limit(10**9) == 0.7
    assert Sparsity(0).limit(1.0) == 0


def test_budgets_fit_their_protocol_and_name_their_resource():
    budgets = [Sparsity(0.5), Parameters(0.5), MACs(0.5), Bytes(0.5)]

    assert [b.resource.name for b in budgets] == ["sparsity", "parameters", "MACs", "bytes"]
    assert all(isinstance(b, Budget) for b in budgets)
    assert not isinstance(AccuracyDrop(0.01), Budget)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("macs=50%", MACs(0.5)),
        ("macs=0.5", MACs(0.5)),
        ("macs=20.5M", MACs(20_500_000)),
        ("parameters=120k", Parameters(120_000)),
        ("parameters=7", Parameters(7)),
        ("bytes=500kB", Bytes("500kB")),
        ("bytes=50%", Bytes(0.5)),
        ("bytes=5000", Bytes(5000)),
        ("sparsity=80%", Sparsity(0.8)),
        ("memory=2MB", PeakMemory("2MB")),
        ("memory=50%", PeakMemory(0.5)),
    ],
)
def test_a_text_asks_for_the_same_budget_as_the_object(text, budget):
    assert budget_of(text) == budget
    assert budget_of(budget) is budget


@pytest.mark.parametrize(
    ("budget", "twin"),
    [
        (MACs("50%"), MACs(0.5)),
        (Parameters("120k"), Parameters(120_000)),
        (Bytes("50%"), Bytes(0.5)),
        (Sparsity("80%"), Sparsity(0.8)),
    ],
)
def test_an_amount_as_text_is_the_same_limit(budget, twin):
    assert budget.limit(1001) == twin.limit(1001)


def test_a_target_is_read_from_text_too():
    assert target_of("accuracy-drop=1%") == target_of("accuracy-drop=0.01") == AccuracyDrop(0.01)
    assert target_of("1%") == target_of("0.01") == AccuracyDrop(0.01)
    assert target_of(AccuracyDrop(0.3)) == AccuracyDrop(0.3)


def test_budgets_are_values():
    budgets = [Sparsity(0.5), Parameters(7), MACs(0.5), Bytes("1 kB"), AccuracyDrop(0.01)]

    assert pickle.loads(pickle.dumps(budgets)) == budgets
    assert len({*budgets, *budgets}) == 5
