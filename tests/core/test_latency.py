"""What a budget on latency says, and what is expected of a network's time."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flexrel import Budget, Latency, UsageError
from flexrel.core.budgets import budget_of
from flexrel.core.latency import Timing
from flexrel.core.latency_model import LatencyModel, LayerKind, LayerWork, WidthTable
from flexrel.structure import analyse
from networks import batch, unchecked


def made(**asked):
    """Make a budget as users do, without the type checks of tests."""
    budget = object.__new__(Latency)
    unchecked(Latency.__init__)(budget, **asked)
    return budget


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("latency=5ms", Latency("5ms")),
        ("latency=5 ms@onnxruntime", Latency("5 ms", "onnxruntime")),
        ("latency=50%@openvino", Latency("50%", "openvino")),
        ("latency=50%@torch,batch=8,threads=2", Latency("50%", "torch", 8, 2)),
        ("latency=1s@torch,threads=4,cache=a/b", Latency("1s", threads=4, cache="a/b")),
    ],
)
def test_a_text_asks_for_the_same_latency_as_the_object(text, budget):
    assert budget_of(text) == budget
    assert isinstance(budget, Budget)
    assert pickle.loads(pickle.dumps(budget)) == budget


@pytest.mark.parametrize(
    ("amount", "expected"),
    [("5 ms", 5.0), ("0.25 s", 250.0), ("800 us", 0.8), ("50%", 6.0), (0.5, 6.0), (1.0, 12.0)],
)
def test_an_amount_is_a_time_or_a_share_of_the_dense_networks(amount, expected):
    assert Latency(amount).limit(12.0) == expected


@pytest.mark.parametrize("amount", ["5", 5, "5 parsecs", "0 ms", "-1 ms", "", 0.0, 1.5, None])
def test_an_amount_that_means_nothing_is_refused_in_a_line(amount):
    with pytest.raises(UsageError, match="write a time like '5 ms'") as caught:
        made(amount=amount)

    assert repr(amount) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_runtime_that_is_not_known_is_refused_with_those_there_are():
    with pytest.raises(
        UsageError, match=r"'tensorflow' is not known; .* torch, onnxruntime, openv"
    ):
        Latency("5 ms", "tensorflow")


@pytest.mark.parametrize(
    "option", [{"batch": 0}, {"threads": -1}, {"batch": 1.5}, {"threads": True}]
)
def test_a_call_of_no_samples_or_threads_is_refused(option):
    with pytest.raises(UsageError, match="is a whole number from 1"):
        made(amount="5 ms", **option)


@pytest.mark.parametrize(
    "text",
    [
        "latency=",
        "latency=5@torch",
        "latency=5ms@torch,batch=none",
        "latency=5ms@torch,batch=0",
        "latency=5ms@torch,batch=1,batch=2",
        "latency=5ms@torch,cores=2",
        "latency=5ms@torch,batch",
    ],
)
def test_a_text_that_means_nothing_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="latency=5ms@onnxruntime") as caught:
        budget_of(text)

    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_measurement_is_held_against_a_time_or_the_dense_networks():
    timing = Timing("torch", "2", 1, 1, milliseconds=4.0, dense=10.0, predicted=0.4)

    assert timing.share == 0.4
    assert timing.meets(Latency("4 ms"))
    assert timing.meets(Latency("40%"))
    assert not timing.meets(Latency("3.9 ms"))
    assert not timing.meets(Latency("39%"))


# --- tables -----------------------------------------------------------------------------------

TABLE = WidthTable.of((8, 16), (4, 12), [[1.0, 2.0], [3.0, 6.0]])


@pytest.mark.parametrize(
    ("outputs", "inputs", "expected"),
    [
        (8, 4, 1.0),
        (16, 12, 6.0),
        (12, 4, 2.0),
        (8, 6, 1.25),
        (12, 8, 3.0),  # the mean of all four
        (1, 1, 1.0),  # narrower than was measured: as that
    ],
)
def test_a_time_lies_between_those_of_the_widths_around_it(outputs, inputs, expected):
    assert TABLE.at(outputs, inputs) == pytest.approx(expected)


def test_a_width_that_does_not_shrink_has_one_time():
    table = WidthTable.of((4, 8), (3,), [[1.0], [2.0]])

    assert [table.at(out, 3) for out in (2, 4, 6, 8)] == pytest.approx([1.0, 1.0, 1.5, 2.0])


@given(
    times=st.lists(st.lists(st.floats(0.1, 9), min_size=3, max_size=3), min_size=3, max_size=3),
    widths=st.tuples(*[st.integers(1, 12)] * 4),
)
def test_a_narrower_layer_never_takes_longer_and_none_less_than_measured(times, widths):
    table = WidthTable.of((2, 5, 12), (1, 6, 12), times)
    out, into, more, wider = widths

    assert table.at(out, into) <= table.at(max(out, more), max(into, wider)) + 1e-9
    for row, outputs in zip(times, (2, 5, 12), strict=True):
        for time, inputs in zip(row, (1, 6, 12), strict=True):
            assert table.at(outputs, inputs) >= time


# --- the whole network ------------------------------------------------------------------------


def network():
    """Two layers of 10 units between 4 inputs and 2 outputs, and how long its layers take."""
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    graph = analyse(model, batch(torch.rand(2, 4)), "channel")
    first = WidthTable.of((5, 10), (4,), [[1.0], [3.0]])
    last = WidthTable.of((2,), (5, 10), [[0.5, 1.0]])
    kind = LayerKind()
    layers = ((LayerWork("0.weight", kind), first), (LayerWork("2.weight", kind), last))
    (group,) = graph.groups
    return graph, group, LatencyModel(8.0, layers)


def kept(group, count):
    return {group.name: torch.arange(10) < count}


def test_before_a_cut_is_measured_the_whole_shrinks_as_its_layers_do():
    graph, group, model = network()

    assert model.milliseconds(graph, kept(group, 10)) == 8.0
    assert model.milliseconds(graph, kept(group, 5)) == pytest.approx(8.0 * 1.5 / 4.0)


def test_a_cut_that_was_measured_is_known_and_others_lie_on_lines():
    graph, group, model = network()

    model = model.corrected(graph, kept(group, 5), 6.0)

    assert model.milliseconds(graph, kept(group, 5)) == pytest.approx(6.0)
    half_way = 8.0 - 2.0 * 0.4  # 8 of 10 units: a saving of 1.0 where 5 of 10 save 2.5
    assert model.milliseconds(graph, kept(group, 8)) == pytest.approx(half_way)


def test_a_cut_that_saves_more_is_not_expected_to_take_longer():
    graph, group, model = network()

    model = model.corrected(graph, kept(group, 5), 6.0).corrected(graph, kept(group, 8), 5.0)

    assert model.milliseconds(graph, kept(group, 8)) == pytest.approx(6.0)


def test_units_cost_what_the_tables_say_that_they_save():
    graph, group, model = network()

    # without half of them 2.5 of 4 milliseconds less
    assert model.unit_costs(graph) == {group.name: pytest.approx(2.5 / 5 * 1e6)}


def test_on_a_machine_that_is_busier_all_takes_as_much_longer():
    graph, group, model = network()

    model = model.corrected(graph, kept(group, 5), 6.0).scaled(1.5)

    assert model.milliseconds(graph, kept(group, 5)) == pytest.approx(9.0)
    assert model.milliseconds(graph, kept(group, 10)) == 12.0
