"""Which networks of a sweep no other beats, and what is written down of them."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexrel import SweepPoint, SweepResult
from flexrel.pruning import Reached
from flexrel.pruning.frontier import unbeaten

FEW = st.sampled_from([0.0, 1.0, 2.0, 3.0])  # ties are where such code breaks
LOSSES = st.sampled_from([-1.0, 0.0, 0.5, math.inf])


def unbeaten_slowly(pairs):
    """The docstring of `unbeaten`, read aloud."""

    def beats(one, other):
        return one[0] <= other[0] and one[1] <= other[1] and one != other

    return [
        math.isfinite(pair[1]) and not any(beats(other, pair) for other in pairs) for pair in pairs
    ]


@given(pairs=st.lists(st.tuples(FEW, LOSSES), max_size=12))
def test_the_front_is_exact(pairs):
    assert unbeaten(pairs) == unbeaten_slowly(pairs)


def point(budget, macs, size, accuracy):
    reached = Reached({"macs": macs, "bytes": size}, {"accuracy": accuracy}, 0.01)
    return SweepPoint(budget, "auto", "channel", "float32", "prune(...)", reached)


POINTS = (
    point("a", macs=50, size=500, accuracy=0.8),
    point("b", macs=40, size=600, accuracy=0.7),  # small in MACs alone
    SweepPoint("c", "auto", "channel", "float32", "prune(...)", refused="too small"),
    point("d", macs=90, size=900, accuracy=0.95),  # better than the dense network
    point("e", macs=95, size=950, accuracy=0.9),
)


def frontier(points=POINTS, **asked):
    dense = Reached({"macs": 100, "bytes": 1000}, {"accuracy": 0.9, "loss": 0.3}, 0.01)
    usual = {"resource": "macs", "metric": "accuracy", "lower_is_better": False}
    return SweepResult(**{**usual, **asked}, dense=dense, points=points)


def test_each_resource_has_a_front_of_its_own_and_the_smallest_comes_first():
    assert [one.budget for one in frontier().front()] == ["b", "a", "d"]
    assert [one.budget for one in frontier().front("bytes")] == ["a", "d"]


def test_no_point_that_the_dense_network_beats_is_on_the_front():
    large = point("large", macs=100, size=1000, accuracy=0.89)

    assert frontier((large,)).front() == ()


def test_of_a_metric_of_which_less_is_better_the_least_are_on_the_front():
    reached = [
        Reached({"macs": macs, "bytes": 1}, {"loss": loss})
        for macs, loss in ((50, 0.2), (40, 0.5), (30, 0.4), (20, math.nan))
    ]
    points = tuple(
        SweepPoint(str(at), "obs", "channel", "int8", "", one) for at, one in enumerate(reached)
    )

    found = frontier(points, metric="loss", lower_is_better=True)

    assert [one.budget for one in found.front()] == ["2", "0"]


def test_what_is_written_has_every_point_and_the_resources_it_is_on_the_front_for(tmp_path):
    frontier().save(tmp_path / "frontier.json")

    told = json.loads((tmp_path / "frontier.json").read_text())
    assert [one["front"] for one in told["points"]] == [
        ["macs", "bytes"], ["macs"], [], ["macs", "bytes"], [],
    ]  # fmt: skip
    assert told["points"][2]["refused"] == "too small"
    assert told["dense"]["metrics"] == {"accuracy": 0.9, "loss": 0.3}


@pytest.mark.parametrize("one", POINTS)
def test_a_point_comes_back_from_its_text(one):
    assert SweepPoint.decode(one.encode()) == one
