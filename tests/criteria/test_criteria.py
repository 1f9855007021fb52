"""Scores against their literal definitions, and what a criterion may and may not do."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flexrel import Criterion, FlexRel, Magnitude, Relevance, UsageError
from flexrel.core import cost
from flexrel.core.graph import GroupMember, PruningGraph, PruningGroup
from flexrel.criteria import BLENDS, scores_of
from flexrel.relevance import LayerRelevance, RelevanceStats
from reference import scores as slow

# Few distinct values on purpose: ties are where ranks break, zeros where quotients do.
FEW = st.sampled_from([0.0, 0.25, 0.5, 2.0])
# Any float32, however close to the next: an order must survive arithmetic.
ANY = st.floats(0, 2.0**99, width=32)


@dataclass
class Case:
    """Element groups of linear layers, all that is known of them, and the same as numbers."""

    graph: PruningGraph
    tensors: dict
    stats: RelevanceStats

    def scores(self, criterion, unit_costs=cost.unit_parameters):
        costs = unit_costs(self.graph)
        return scores_of(criterion, self.graph, self.tensors, self.stats, costs=costs)

    def layers(self):
        return [
            {
                "magnitude": self.tensors[f"{name}.weight"].abs().flatten().tolist(),
                "relevance": slow.weight_relevance(layer),
            }
            for name, layer in self.stats.items()
        ]


def element_graph(shapes):
    groups = tuple(PruningGroup(name, shape) for name, shape in shapes.items())
    named = {f"{name}.weight": shape for name, shape in shapes.items()}
    return PruningGraph("element", groups, (), named, ())


@st.composite
def drawn_cases(draw, numbers=FEW):
    """Layer name -> weight, and its sums. `built` makes records of them, outside of the drawing."""
    shapes = {
        name: (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
        for name in "abc"[: draw(st.integers(1, 3))]
    }

    def vector(length):
        return torch.tensor([draw(numbers) for _ in range(length)], dtype=torch.float64)

    layers = {}
    for name, (rows, columns) in shapes.items():
        signs = torch.tensor([draw(st.sampled_from([-1.0, 1.0])) for _ in range(rows * columns)])
        weight = (vector(rows * columns).float() * signs).view(rows, columns)
        gains, losses = vector(columns), vector(columns)
        made, lost = vector(rows), vector(rows)
        layers[name] = weight, (gains - losses, made - lost, gains + losses, made + lost)
    return layers


def built(drawn):
    return Case(
        element_graph({name: tuple(weight.shape) for name, (weight, _) in drawn.items()}),
        {f"{name}.weight": weight for name, (weight, _) in drawn.items()},
        stats_of({name: LayerRelevance(*sums) for name, (_, sums) in drawn.items()}),
    )


def stats_of(layers):
    return RelevanceStats(layers, 1.0, "gradient-input", "norm")


def joined(scores):
    return torch.cat([values.flatten() for values in scores.values()])


def order(scores):
    """Each unit's place in the order over the network; equal scores have equal places."""
    return torch.unique(joined(scores), return_inverse=True)[1].tolist()


def assert_scores(found, expected):
    for values, numbers in zip(found.values(), expected, strict=True):
        assert values.dtype == torch.float32
        torch.testing.assert_close(
            values.flatten(), torch.tensor(numbers, dtype=torch.float32), rtol=1e-5, atol=1e-6
        )


# --- definitions --------------------------------------------------------------------------------


DELTAS = st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.9, 1.0])


@settings(max_examples=60)
@given(drawn_cases(), DELTAS)
def test_the_sum_is_what_the_paper_says_min_max_over_the_network(drawn, delta):
    case = built(drawn)
    found = case.scores(FlexRel(delta))

    if delta in {0.0, 1.0}:  # alone, either is taken as it is
        kind = "relevance" if delta else "magnitude"
        assert_scores(found, [layer[kind] for layer in case.layers()])
    else:
        assert_scores(found, slow.sum_blend(case.layers(), delta))


@settings(max_examples=60)
@given(drawn_cases(), DELTAS)
def test_the_product_is_as_defined(drawn, delta):
    case = built(drawn)

    found = case.scores(FlexRel(delta, blend="product"))

    assert_scores(found, slow.product_blend(case.layers(), delta))


@settings(max_examples=40)
@given(drawn_cases())
def test_magnitude_and_relevance_alone_are_as_they_are(drawn):
    case = built(drawn)
    layers = case.layers()

    assert_scores(case.scores(Magnitude()), [layer["magnitude"] for layer in layers])
    assert_scores(case.scores(Relevance()), [layer["relevance"] for layer in layers])


def test_a_blend_by_hand():
    weight = torch.tensor([[4.0, -1.0], [0.0, 2.0]])
    ones = torch.zeros(2, dtype=torch.float64)
    inputs = torch.tensor([3.0, 1.0], dtype=torch.float64)  # R = [[3, 1], [3, 1]], mean 2
    stats = stats_of({"a": LayerRelevance(inputs, ones, inputs, ones)})
    case = Case(element_graph({"a": (2, 2)}), {"a.weight": weight}, stats)

    # M / 4 = [[1, .25], [0, .5]], (R - 1) / 2 = [[1, 0], [1, 0]]
    assert case.scores(FlexRel(0.5))["a"].tolist() == [[1, 0.125], [0.5, 0.25]]
    # the square root of M * R / 2
    product = case.scores(FlexRel(0.5, blend="product"))["a"]
    torch.testing.assert_close(product, torch.tensor([[6.0, 0.5], [0, 1]]).sqrt())


# --- the ends of the blend ----------------------------------------------------------------------


@settings(max_examples=100)
@given(drawn_cases(ANY))
@pytest.mark.parametrize("blend", BLENDS)
def test_delta_0_orders_exactly_as_magnitude(blend, drawn):
    case = built(drawn)

    assert order(case.scores(FlexRel(0.0, blend=blend))) == order(case.scores(Magnitude()))


@settings(max_examples=100)
@given(drawn_cases(ANY))
def test_delta_1_of_the_sum_orders_exactly_as_relevance(drawn):
    case = built(drawn)

    assert order(case.scores(FlexRel(1.0))) == order(case.scores(Relevance()))


@settings(max_examples=100)
@given(drawn_cases(ANY))
def test_delta_1_of_the_product_orders_exactly_as_relevance_over_its_layers_mean(drawn):
    case = built(drawn)
    relative = {
        name: relevance / relevance.mean() if relevance.mean() > 0 else relevance
        for name, relevance in case.scores(Relevance()).items()
    }

    assert order(case.scores(FlexRel(1.0, blend="product"))) == order(relative)


def test_close_magnitudes_are_no_ties():
    # One part in 2^23 apart; subtracting a minimum and dividing would make them equal.
    close = torch.tensor([[1.75, 1.75 + 2**-23, 1.75 + 2**-22, 3.0e3]])
    zeros = torch.zeros(4, dtype=torch.float64)
    stats = stats_of({"a": LayerRelevance(zeros, zeros[:1], zeros, zeros[:1])})
    case = Case(element_graph({"a": (1, 4)}), {"a.weight": close}, stats)

    assert order(case.scores(FlexRel(0.0))) == [0, 1, 2, 3]


# --- never NaN, and nothing changed -------------------------------------------------------------

CRITERIA = [
    Magnitude(),
    Relevance(),
    *(FlexRel(delta, blend) for delta in (0.0, 0.3, 1.0) for blend in BLENDS),
]


def constant_case(weight, relevance):
    shapes = {"a": (2, 3), "b": (1, 1)}
    layers = {}
    for name, (rows, columns) in shapes.items():
        inputs = torch.full((columns,), relevance, dtype=torch.float64)
        outputs = torch.full((rows,), relevance, dtype=torch.float64)
        layers[name] = LayerRelevance(inputs, outputs, inputs.abs(), outputs.abs())
    tensors = {f"{name}.weight": torch.full(shape, weight) for name, shape in shapes.items()}
    return Case(element_graph(shapes), tensors, stats_of(layers))


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
@pytest.mark.parametrize("weight", [0.0, 1.0, -1e-38])
@pytest.mark.parametrize("relevance", [0.0, 1.0, -1.0, 1e-45])
def test_constant_and_zero_signals_make_finite_scores(criterion, weight, relevance):
    scores = constant_case(weight, relevance).scores(criterion)

    assert joined(scores).isfinite().all()


@settings(max_examples=150)
@given(drawn_cases(ANY), st.sampled_from(CRITERIA))
def test_scores_are_never_nan_and_change_nothing(drawn, criterion):
    case = built(drawn)
    weights = {name: tensor.clone() for name, tensor in case.tensors.items()}
    sums = {name: layer.scaled(1.0).sums() for name, layer in case.stats.items()}

    scores = case.scores(criterion)

    assert not joined(scores).isnan().any()
    assert [tuple(values.shape) for values in scores.values()] == [
        group.shape for group in case.graph.groups
    ]
    assert all(torch.equal(case.tensors[name], weights[name]) for name in weights)
    for name, layer in case.stats.items():
        assert all(torch.equal(tensor, sums[name][key]) for key, tensor in layer.sums().items())


def test_weights_of_any_float_are_scored_in_float32():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        case = constant_case(1.0, 1.0)
        case.tensors = {
            name: nn.Parameter(tensor.to(dtype)) for name, tensor in case.tensors.items()
        }
        scores = case.scores(FlexRel(0.5))

        assert all(values.dtype == torch.float32 for values in scores.values())
        assert not any(values.requires_grad for values in scores.values())


# --- channels -----------------------------------------------------------------------------------


def channel_group(name, reader, inner=1):
    """Two channels that a layer makes and another reads, of each `inner` entries in a row."""
    made = GroupMember(f"{name}.weight", 0, torch.arange(2).view(2, 1), "producer")
    read = GroupMember(f"{reader}.weight", 1, torch.arange(2 * inner).view(2, inner), "consumer")
    return PruningGroup(name, (2,), (made, read))


def read_by(**inputs):
    """Statistics of layers with these sums of the relevance of their inputs."""
    ones = torch.ones(1).double()
    return stats_of(
        {
            name: LayerRelevance(torch.tensor(r).double(), ones, torch.tensor(r).double(), ones)
            for name, r in inputs.items()
        }
    )


@pytest.mark.parametrize(
    ("unit_costs", "costs"), [(cost.unit_macs, (16, 4)), (cost.unit_parameters, (4, 2))]
)
def test_channels_are_compared_by_their_layers_mean_magnitude_and_the_root_of_what_they_cost(
    unit_costs, costs
):
    tensors = {
        "a.weight": torch.tensor([[100.0], [300.0]]),  # a norm behind it undoes its size
        "d.weight": torch.tensor([[0.2], [0.1]]),
    }
    groups = (channel_group("a", "c", 3), channel_group("d", "e"))
    shapes = {"a.weight": (2, 1), "c.weight": (1, 6), "d.weight": (2, 1), "e.weight": (1, 2)}
    uses = (("a.weight", 1), ("c.weight", 5), ("d.weight", 2), ("e.weight", 2))
    # of a: 2, 2, and each costs 1 + 3, of which 3 are used 5 times; of d: 30, 10; 1 + 1
    stats = read_by(c=[0.0, 0, 2, 1, 1, 0], e=[30.0, 10])
    case = Case(PruningGraph("channel", groups, (), shapes, uses), tensors, stats)

    def found(criterion):
        scores = case.scores(criterion, unit_costs)
        return torch.tensor([values.tolist() for values in scores.values()])

    magnitude = torch.tensor([[0.5, 1.5], [4 / 3, 2 / 3]])
    relevance = torch.tensor([[2.0, 2.0], [30.0, 10.0]]) / torch.tensor(costs).sqrt()[:, None]
    relevance /= relevance.mean()
    torch.testing.assert_close(found(Magnitude()), magnitude)
    torch.testing.assert_close(found(Relevance()), relevance)
    torch.testing.assert_close(found(FlexRel(0.5)), (magnitude + relevance) / 2)
    product = found(FlexRel(0.5, blend="product"))
    torch.testing.assert_close(product, (magnitude * relevance).sqrt())


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
def test_the_larger_and_more_relevant_channel_scores_higher(criterion):
    shapes = {"a.weight": (2, 1), "c.weight": (1, 6)}
    uses = (("a.weight", 1), ("c.weight", 1))
    graph = PruningGraph("channel", (channel_group("a", "c", 3),), (), shapes, uses)
    tensors = {"a.weight": torch.tensor([[1.0], [2.0]])}

    (scores,) = Case(graph, tensors, read_by(c=[0.0, 1, 2, 3, 4, 5])).scores(criterion).values()

    assert scores[1] > scores[0]


# --- promises that are not kept -----------------------------------------------------------------


class Yields:
    """A criterion that yields what it was given, whatever the groups."""

    name, needs = "yields", frozenset()

    def __init__(self, *made):
        self.made = made

    def scores(self, signals):
        return iter(self.made)


def test_a_plain_object_is_a_criterion_and_others_are_not():
    assert isinstance(Yields(), Criterion)
    assert not isinstance(object(), Criterion)
    assert not isinstance(nn.Linear(1, 1), Criterion)


SIX, ONE = torch.ones(2, 3), torch.ones(1, 1)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ((SIX.T, ONE), r"'yields' scored 'a' with 0 NaN in shape \(3, 2\).*\(2, 3\)"),
        ((SIX.flatten(), ONE), r"shape \(6,\)"),
        ((SIX, torch.tensor(1.0)), r"scored 'b' with 0 NaN in shape \(\)"),
        ((torch.tensor([[1.0, torch.nan, 1]] * 2), ONE), "2 NaN"),
        ((SIX,), "one tensor for each of the 2 groups, but after 1 came NoneType"),
        ((), "but after 0 came NoneType"),
        ((SIX, ONE, ONE), "but after 2 came one too many"),
        ((SIX, 1.0), "but after 1 came float"),
    ],
)
def test_a_criterion_that_breaks_its_promise_is_refused(made, says):
    case = constant_case(1.0, 1.0)

    with pytest.raises(UsageError, match=says) as caught:
        case.scores(Yields(*made))

    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_weights_that_are_nan_are_refused_with_the_groups_name():
    case = constant_case(1.0, 1.0)
    case.tensors["b.weight"][0, 0] = torch.nan

    with pytest.raises(UsageError, match="scored 'b' with 1 NaN"):
        case.scores(Magnitude())


@pytest.mark.parametrize("criterion", [Relevance(), FlexRel(0.0), FlexRel(0.5, "product")])
def test_missing_statistics_are_asked_for(criterion):
    case = constant_case(1.0, 1.0)

    with pytest.raises(UsageError, match=f"{criterion.name!r} needs stats"):
        scores_of(criterion, case.graph, case.tensors, None)


def test_stats_of_another_network_are_refused_with_the_layers_name():
    case = constant_case(1.0, 1.0)
    case.stats = stats_of({"a": case.stats["a"]})

    with pytest.raises(UsageError, match="no relevance of 'b'; calibrate this very model"):
        case.scores(Relevance())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FlexRel(-0.1), "delta is -0.1.*in \\[0, 1\\]"),
        (lambda: FlexRel(1.01), "delta is 1.01"),
        (lambda: FlexRel(float("nan")), "delta is nan"),
        (lambda: FlexRel(blend="mean"), "blend 'mean' is not known; there are: sum, product"),
    ],
)
def test_a_criterion_that_means_nothing_can_not_be_made(make, says, unchecked):
    with pytest.raises(UsageError, match=says) as caught:
        make()

    assert "\n" not in str(caught.value)


def test_names_say_delta_and_blend():
    assert FlexRel(0.5).name == "flexrel:0.5"
    assert FlexRel(1 / 3, blend="product").name == "flexrel:0.333333:product"
    assert (Magnitude().name, Relevance().name) == ("magnitude", "relevance")
    assert not Magnitude().needs
