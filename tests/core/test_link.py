"""A budget on the time that a packed file takes over a link."""

import pickle

import pytest

from flexrel import Budget, Link, UsageError
from flexrel.core.budgets import budget_of
from flexrel.core.resources import Candidate
from networks import unchecked


def made(amount, rate):
    """Make a budget as users do, without the type checks of tests."""
    budget = object.__new__(Link)
    unchecked(Link.__init__)(budget, amount, rate)
    return budget


def seconds(budget, size):
    """Return what a budget counts of a packed file of so many bytes."""

    class File(Candidate):
        packed = bytes(size)

    return budget.resource.count(object.__new__(File))


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        ("1 Mbit/s", 8.0),  # 1,000,000 bytes are 8,000,000 bits
        ("1Mbit/s", 8.0),
        ("8000 bit/s", 1000.0),
        ("250 kbit/s", 32.0),
        ("2 Gbit/s", 0.004),
        ("500000 B/s", 2.0),
        ("125 kB/s", 8.0),
        ("0.5 MB/s", 2.0),
    ],
)
def test_a_file_takes_its_bits_over_the_rate(rate, expected):
    assert seconds(Link("8 s", rate), 1_000_000) == expected


@pytest.mark.parametrize(
    ("amount", "expected"),
    [("8 s", 8.0), ("8s", 8.0), ("500 ms", 0.5), ("2 min", 120.0), ("0.25 s", 0.25)],
)
def test_a_time_is_read_as_written_whatever_the_dense_network_takes(amount, expected):
    assert Link(amount, "1 Mbit/s").limit(1.0) == expected


@pytest.mark.parametrize("amount", ["50%", "0.5", 0.5])
def test_a_share_is_one_of_the_dense_networks_time(amount):
    assert Link(amount, "1 Mbit/s").limit(3.0) == 1.5


@pytest.mark.parametrize(
    "amount", ["8", 8, "8 parsecs", "8 S", "0 s", "-1 s", "", "s", "8 s 1", 0.0, 1.5, "150%", None]
)
def test_a_time_that_means_nothing_is_refused_in_a_line(amount):
    with pytest.raises(UsageError, match=r"write a time like '8 s', '500 ms' or '2 min'") as caught:
        made(amount, "1 Mbit/s")

    assert repr(amount) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "rate", ["1", "1 Mb", "1 mbit/s", "0 Mbit/s", "Mbit/s", "1 MB", "", "1 Mbit / s", 125, None]
)
def test_a_rate_that_means_nothing_is_refused_in_a_line(rate):
    with pytest.raises(UsageError, match=r"write it like '1 Mbit/s'") as caught:
        made("8 s", rate)

    assert repr(rate) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("link=8s@1Mbit/s", Link("8s", "1Mbit/s")),
        ("link=8 s@1 Mbit/s", Link("8 s", "1 Mbit/s")),
        ("link=50%@125kB/s", Link("50%", "125kB/s")),
    ],
)
def test_a_text_asks_for_the_same_link_as_the_object(text, budget):
    assert budget_of(text) == budget
    assert isinstance(budget, Budget)
    assert pickle.loads(pickle.dumps(budget)) == budget
    assert budget.resource == pickle.loads(pickle.dumps(budget.resource))


@pytest.mark.parametrize("text", ["link=8s", "link=8@1Mbit/s", "link=8s@fast", "link="])
def test_a_text_that_lacks_a_part_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="link=8s@1Mbit/s") as caught:
        budget_of(text)

    assert repr(text) in str(caught.value)


def test_who_asks_for_flops_is_asked_for_macs():
    with pytest.raises(UsageError, match=r"did you mean macs=50%\?"):
        budget_of("flops=50%")
