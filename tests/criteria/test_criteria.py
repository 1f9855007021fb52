"""Scores against their literal definitions, and what a criterion may and may not do."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flexrel import Criterion, FlexRel, GroupSignals, Magnitude, Relevance, UsageError, calibrate
from flexrel.core.graph import GroupMember, PruningGraph, PruningGroup
from flexrel.criteria import BLENDS, scores_of
from flexrel.criteria.scales import SCALES
from flexrel.relevance import PARTS, LayerRelevance, RelevanceStats
from reference import scores as slow

UNSIGNED = ("positive", "absolute", "sample")
# Few distinct values on purpose: ties are where ranks break, zeros where quotients do.
FEW = st.sampled_from([0.0, 0.25, 0.5, 2.0])
# Any float32, however close to the next: an order must survive arithmetic.
ANY = st.floats(0, 2.0**99, width=32)


@dataclass
class Case:
    """Element groups of linear layers, all that is known of them, and the same as numbers."""

    graph: PruningGraph
    tensors: dict
    statistics: RelevanceStats

    def scores(self, criterion, **resource):
        evidence = (self.tensors, self.statistics)
        return scores_of(criterion, self.graph, *evidence, **resource)

    def layers(self, part):
        return [
            {
                "magnitude": self.tensors[f"{name}.weight"].abs().flatten().tolist(),
                "relevance": slow.weight_relevance(group, part),
            }
            for name, group in self.statistics.items()
        ]


def element_structure(shapes):
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
        element_structure({name: tuple(weight.shape) for name, (weight, _) in drawn.items()}),
        {f"{name}.weight": weight for name, (weight, _) in drawn.items()},
        statistics_of({name: LayerRelevance(*sums) for name, (_, sums) in drawn.items()}),
    )


def statistics_of(groups):
    return RelevanceStats(groups, 1.0, "gradient-input", "norm")


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


@settings(max_examples=60)
@given(drawn_cases(), st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.9, 1.0]), st.sampled_from(PARTS))
@pytest.mark.parametrize("scale", SCALES)
def test_the_sum_is_what_the_paper_says_on_every_scale(scale, drawn, delta, part):
    case = built(drawn)
    found = case.scores(FlexRel(delta, part=part, scale=scale))

    layers = case.layers(part)
    if scale == "network" and delta in {0.0, 1.0}:  # alone, either is taken as it is
        kind = "relevance" if delta else "magnitude"
        assert_scores(found, [layer[kind] for layer in layers])
    else:
        assert_scores(found, slow.sum_blend(layers, delta, scale))


@settings(max_examples=60)
@given(drawn_cases(), st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.9, 1.0]), st.sampled_from(UNSIGNED))
def test_the_product_is_as_defined(drawn, delta, part):
    case = built(drawn)
    found = case.scores(FlexRel(delta, blend="product", part=part))

    assert_scores(found, slow.product_blend(case.layers(part), delta))


@settings(max_examples=40)
@given(drawn_cases(), st.sampled_from(PARTS))
def test_magnitude_and_relevance_alone_are_as_they_are(drawn, part):
    case = built(drawn)
    layers = case.layers(part)

    assert_scores(case.scores(Magnitude()), [layer["magnitude"] for layer in layers])
    assert_scores(case.scores(Relevance(part)), [layer["relevance"] for layer in layers])


@settings(max_examples=40)
@given(drawn_cases(), st.sampled_from(PARTS), st.sampled_from(["layer", "mean", "rank"]))
def test_signals_are_brought_to_a_common_scale_on_request(drawn, part, scale):
    case = built(drawn)
    layers = case.layers(part)

    relevance = slow.brought([layer["relevance"] for layer in layers], scale)
    assert_scores(case.scores(Relevance(part, scale)), relevance)
    magnitude = slow.brought([layer["magnitude"] for layer in layers], scale)
    assert_scores(case.scores(Magnitude(scale)), magnitude)


def test_a_blend_by_hand():
    weight = torch.tensor([[4.0, -1.0], [0.0, 2.0]])
    ones = torch.zeros(2, dtype=torch.float64)
    inputs = torch.tensor([3.0, 1.0], dtype=torch.float64)  # R = [[3, 1], [3, 1]], mean 2
    statistics = statistics_of({"a": LayerRelevance(inputs, ones, inputs, ones)})
    case = Case(element_structure({"a": (2, 2)}), {"a.weight": weight}, statistics)

    # M / 4 = [[1, .25], [0, .5]], (R - 1) / 2 = [[1, 0], [1, 0]]
    assert case.scores(FlexRel(0.5))["a"].tolist() == [[1, 0.125], [0.5, 0.25]]
    # ranks of M: [[1, 1/3], [0, 2/3]]
    ranks = case.scores(FlexRel(0.5, scale="rank"))["a"]
    torch.testing.assert_close(ranks, torch.tensor([[1, 1 / 6], [0.5, 1 / 3]]))
    # the square root of M * R / 2
    product = case.scores(FlexRel(0.5, blend="product"))["a"]
    torch.testing.assert_close(product, torch.tensor([[6.0, 0.5], [0, 1]]).sqrt())


# --- the ends of the blend ----------------------------------------------------------------------


@settings(max_examples=100)
@given(drawn_cases(ANY), st.sampled_from(UNSIGNED))
@pytest.mark.parametrize("blend", BLENDS)
def test_delta_0_orders_exactly_as_magnitude(blend, drawn, part):
    case = built(drawn)
    blended = case.scores(FlexRel(0.0, blend=blend, part=part))

    assert order(blended) == order(case.scores(Magnitude()))


@settings(max_examples=100)
@given(drawn_cases(ANY), st.sampled_from(PARTS), st.sampled_from(SCALES))
def test_delta_0_orders_exactly_as_magnitude_on_every_scale(drawn, part, scale):
    case = built(drawn)
    blended = case.scores(FlexRel(0.0, part=part, scale=scale))

    assert order(blended) == order(case.scores(Magnitude(scale)))


@settings(max_examples=100)
@given(drawn_cases(ANY), st.sampled_from(PARTS), st.sampled_from(SCALES))
def test_delta_1_of_the_sum_orders_exactly_as_relevance(drawn, part, scale):
    case = built(drawn)
    blended = case.scores(FlexRel(1.0, part=part, scale=scale))

    assert order(blended) == order(case.scores(Relevance(part, scale)))


@settings(max_examples=100)
@given(drawn_cases(ANY), st.sampled_from(UNSIGNED))
def test_delta_1_of_the_product_orders_exactly_as_relevance_over_its_layers_mean(drawn, part):
    case = built(drawn)
    relative = {
        name: relevance / relevance.mean() if relevance.mean() > 0 else relevance
        for name, relevance in case.scores(Relevance(part)).items()
    }

    assert order(case.scores(FlexRel(1.0, blend="product", part=part))) == order(relative)


def test_close_magnitudes_are_no_ties():
    # One part in 2^23 apart; subtracting a minimum and dividing would make them equal.
    close = torch.tensor([[1.75, 1.75 + 2**-23, 1.75 + 2**-22, 3.0e3]])
    zeros = torch.zeros(4, dtype=torch.float64)
    statistics = statistics_of({"a": LayerRelevance(zeros, zeros[:1], zeros, zeros[:1])})
    case = Case(element_structure({"a": (1, 4)}), {"a.weight": close}, statistics)

    assert order(case.scores(FlexRel(0.0))) == [0, 1, 2, 3]


# --- never NaN, and nothing changed -------------------------------------------------------------

CRITERIA = [
    *(Magnitude(scale) for scale in SCALES),
    *(Relevance(part, scale) for part in PARTS for scale in SCALES),
    *(FlexRel(0.3, part=part, scale=scale) for part in PARTS for scale in SCALES),
    *(FlexRel(delta, "product", part) for delta in (0.0, 0.3, 1.0) for part in UNSIGNED),
]


def constant_case(weight, relevance):
    shapes = {"a": (2, 3), "b": (1, 1)}
    groups = {}
    for name, (rows, columns) in shapes.items():
        inputs = torch.full((columns,), relevance, dtype=torch.float64)
        outputs = torch.full((rows,), relevance, dtype=torch.float64)
        groups[name] = LayerRelevance(inputs, outputs, inputs.abs(), outputs.abs())
    tensors = {f"{name}.weight": torch.full(shape, weight) for name, shape in shapes.items()}
    return Case(element_structure(shapes), tensors, statistics_of(groups))


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
@pytest.mark.parametrize("weight", [0.0, 1.0, -1e-38])
@pytest.mark.parametrize("relevance", [0.0, 1.0, -1.0, 1e-45])
def test_constant_and_zero_evidence_makes_finite_scores(criterion, weight, relevance):
    scores = constant_case(weight, relevance).scores(criterion)

    assert joined(scores).isfinite().all()


@settings(max_examples=150)
@given(drawn_cases(ANY), st.sampled_from(CRITERIA))
def test_scores_are_never_nan_and_change_nothing(drawn, criterion):
    case = built(drawn)
    weights = {name: tensor.clone() for name, tensor in case.tensors.items()}
    vectors = {name: group.scaled(1.0) for name, group in case.statistics.items()}

    scores = case.scores(criterion)

    assert not joined(scores).isnan().any()
    assert [tuple(values.shape) for values in scores.values()] == [
        group.shape for group in case.graph.groups
    ]
    assert all(torch.equal(case.tensors[name], weights[name]) for name in weights)
    for name, group in case.statistics.items():
        for part in PARTS:
            assert all(map(torch.equal, group.vectors(part), vectors[name].vectors(part)))


def test_the_positive_part_of_real_statistics_is_never_negative():
    # A root of -1e-20 would be NaN: rounding must not make one, in whatever order sums are made.
    draw = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    )
    batches = [torch.randn(5, 2, 4, 4, generator=draw) * 10.0**k for k in range(-3, 4)]

    statistics = calibrate(model, batches) + calibrate(model, batches[2:]).scaled(0.1)

    for group in statistics.values():
        assert all((vector >= 0).all() for vector in group.vectors("positive"))
        assert all((vector >= 0).all() for vector in group.vectors("absolute"))


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


def stripes(tensor, axis, inner, role, units):
    """The part of a tensor in which each unit has `inner` entries in a row."""
    return GroupMember(tensor, axis, torch.arange(units * inner).view(units, inner), role)


def channels(units, *members, name="a"):
    return PruningGroup(name, (units,), tuple(stripes(*part, units) for part in members))


def channel_evidence(group, tensors=None, sums=None):
    groups = {
        name: LayerRelevance(inputs, torch.ones(1).double(), inputs.abs(), torch.ones(1).double())
        for name, inputs in (sums or {}).items()
    }
    return GroupSignals(group, tensors or {}, statistics_of(groups))


PRODUCER, BIAS = ("a.weight", 0, 1, "producer"), ("a.bias", 0, 1, "follower")
CONV, LINEAR = ("b.weight", 1, 1, "consumer"), ("c.weight", 1, 3, "consumer")


def test_a_channels_magnitude_is_the_root_mean_square_of_the_weights_that_make_it():
    weight = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]], [[-1.0, 7.0]]])  # [3 out, 1 in, 2 wide]
    tensors = {"a.weight": weight, "a.bias": torch.full((3,), 1e6), "b.weight": torch.ones(9, 3)}
    group = channels(3, PRODUCER, BIAS, CONV)

    magnitude = channel_evidence(group, tensors).magnitude()

    torch.testing.assert_close(magnitude, torch.tensor([12.5, 0, 25]).sqrt())


def test_mean_squares_of_several_makers_add_up():
    tensors = {
        "a.weight": torch.tensor([[3.0], [0.0]]),  # mean squares 9, 0
        "d.weight": torch.tensor([[4.0, 4.0], [2.0, 0.0]]),  # 16, 2
    }
    group = channels(2, PRODUCER, ("d.weight", 0, 1, "producer"))

    magnitude = channel_evidence(group, tensors).magnitude()

    torch.testing.assert_close(magnitude, torch.tensor([25.0, 2]).sqrt())


def test_a_channel_read_by_a_convolution_has_the_mean_over_kernel_positions():
    inputs = torch.tensor([[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [0.0, -8.0]]]).double()

    evidence = channel_evidence(channels(2, PRODUCER, CONV), sums={"b": inputs})

    assert evidence.relevance("sum").tolist() == [3, -2]
    assert evidence.relevance("positive").tolist() == [3, 0]
    assert evidence.relevance("absolute").tolist() == [3, 2]


def test_a_channel_read_by_a_linear_layer_has_the_sum_over_its_stripe():
    inputs = torch.tensor([1.0, 2, 4, 8, -16, 32]).double()  # stripes of three features

    evidence = channel_evidence(channels(2, PRODUCER, LINEAR), sums={"c": inputs})

    assert evidence.relevance("sum").tolist() == [1 + 2 + 4, 8 - 16 + 32]
    assert evidence.relevance("positive").tolist() == [7, 40]
    assert evidence.relevance("absolute").tolist() == [7, 56]


def test_a_channel_with_two_readers_has_the_larger_relevance():
    sums = {
        "b": torch.tensor([[2.0, 4.0], [1.0, 1.0]]).double(),  # means 3, 1
        "c": torch.tensor([1.0, 1, 1, 5, 5, 5]).double(),  # stripes 3, 15
    }

    evidence = channel_evidence(channels(2, PRODUCER, BIAS, CONV, LINEAR), sums=sums)

    assert evidence.relevance("sum").tolist() == [3, 15]


def test_a_channels_entries_may_lie_anywhere():
    weight = torch.tensor([[3.0], [1.0], [4.0], [1.0]])
    where = torch.tensor([[0, 2], [3, 1]])
    group = PruningGroup("a", (2,), (GroupMember("a.weight", 0, where, "producer"),))
    read = PruningGroup("a", (2,), (GroupMember("c.weight", 1, where, "consumer"),))

    magnitude = channel_evidence(group, {"a.weight": weight}).magnitude()
    relevance = channel_evidence(read, sums={"c": torch.tensor([1.0, 2, 4, 8]).double()})

    torch.testing.assert_close(magnitude, torch.tensor([12.5, 1.0]).sqrt())
    assert relevance.relevance("sum").tolist() == [5, 10]


def test_a_channels_relevance_is_that_of_its_activations_where_each_is_read_once():
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)
    ).double()
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, 5, 5, generator=draw, dtype=torch.float64)
    first = model[:2](x)  # what the 1 x 1 convolution reads
    second = model[2:4](first)  # what the linear layer reads, flattened
    top = model[4:](second).amax(1).sum()
    by_hand = [
        (a * g).sum((0, 2, 3))
        for a, g in zip((first, second), torch.autograd.grad(top, (first, second)), strict=True)
    ]
    statistics = calibrate(model, [x], output="predicted")
    groups = [
        channels(3, ("2.weight", 1, 1, "consumer"), name="0"),
        channels(4, ("5.weight", 1, 9, "consumer"), name="2"),
    ]

    for group, expected in zip(groups, by_hand, strict=True):
        found = GroupSignals(group, {}, statistics).relevance("sum")
        torch.testing.assert_close(found, expected.detach().float())


@pytest.mark.parametrize(("resource", "costs"), [("MACs", (16, 4)), ("parameters", (4, 2))])
def test_channels_are_compared_by_their_layers_mean_magnitude_and_the_root_of_what_they_cost(
    resource, costs
):
    tensors = {
        "a.weight": torch.tensor([[100.0], [300.0]]),  # a norm behind it undoes its size
        "d.weight": torch.tensor([[0.2], [0.1]]),
    }
    groups = (
        channels(2, PRODUCER, LINEAR),
        channels(2, ("d.weight", 0, 1, "producer"), ("e.weight", 1, 1, "consumer"), name="d"),
    )
    shapes = {"a.weight": (2, 1), "c.weight": (1, 6), "d.weight": (2, 1), "e.weight": (1, 2)}
    uses = (("a.weight", 1), ("c.weight", 5), ("d.weight", 2), ("e.weight", 2))
    sums = {  # of a: 2, 2, and each costs 1 + 3, of which 3 are used 5 times; of d: 30, 10; 1 + 1
        "c": torch.tensor([0.0, 0, 2, 1, 1, 0]).double(),
        "e": torch.tensor([30.0, 10]).double(),
    }
    statistics = channel_evidence(groups[0], sums=sums).statistics
    case = Case(PruningGraph("channel", groups, (), shapes, uses), tensors, statistics)

    def found(criterion):
        scores = case.scores(criterion, resource=resource)
        return torch.tensor([values.tolist() for values in scores.values()])

    magnitude = torch.tensor([[0.5, 1.5], [4 / 3, 2 / 3]])
    relevance = torch.tensor([[2.0, 2.0], [30.0, 10.0]]) / torch.tensor(costs).sqrt()[:, None]
    relevance /= relevance.mean()
    torch.testing.assert_close(found(Magnitude()), magnitude)
    torch.testing.assert_close(found(Relevance()), relevance)
    torch.testing.assert_close(found(FlexRel(0.5)), (magnitude + relevance) / 2)
    product = found(FlexRel(0.5, blend="product"))
    torch.testing.assert_close(product, (magnitude * relevance).sqrt())


def test_channels_are_scored_by_every_criterion():
    case = Case(
        PruningGraph(
            "channel",
            (channels(2, PRODUCER, LINEAR),),
            (),
            {"a.weight": (2, 1), "c.weight": (1, 6)},
            (("a.weight", 1), ("c.weight", 1)),
        ),
        {"a.weight": torch.tensor([[1.0], [2.0]])},
        channel_evidence(channels(2, PRODUCER), sums={"c": torch.arange(6).double()}).statistics,
    )

    for criterion in CRITERIA:
        (scores,) = case.scores(criterion).values()
        assert scores.argmax() == 1, criterion  # the second is larger and more relevant


# --- criteria of one's own ----------------------------------------------------------------------


class Squared:
    """A user's criterion: nothing inherited, nothing registered."""

    name = "squared"
    needs = frozenset()

    def scores(self, evidence):
        for group in evidence:
            yield group.magnitude() ** 2


class Yields(Squared):
    """Yields what it was given, whatever the groups."""

    def __init__(self, *made):
        self.made = made

    def scores(self, evidence):
        return iter(self.made)


def test_a_plain_class_is_a_criterion():
    case = constant_case(3.0, 1.0)
    mine = Squared()

    assert isinstance(mine, Criterion)
    assert joined(scores_of(mine, case.graph, case.tensors, None)).tolist() == [9] * 7


def test_our_own_criteria_are_criteria_and_other_objects_are_not():
    assert all(isinstance(criterion, Criterion) for criterion in CRITERIA)
    assert not isinstance(object(), Criterion)
    assert not isinstance(nn.Linear(1, 1), Criterion)


SIX, ONE = torch.ones(2, 3), torch.ones(1, 1)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ((SIX.T, ONE), r"'squared' scored 'a' with 0 NaN in shape \(3, 2\).*\(2, 3\)"),
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


def test_weights_that_are_nan_are_refused_with_the_sites_name():
    case = constant_case(1.0, 1.0)
    case.tensors["b.weight"][0, 0] = torch.nan

    with pytest.raises(UsageError, match="scored 'b' with 1 NaN"):
        case.scores(Magnitude())


@pytest.mark.parametrize("criterion", [Relevance(), FlexRel(0.0), FlexRel(0.5, "product")])
def test_missing_statistics_are_asked_for(criterion):
    case = constant_case(1.0, 1.0)

    with pytest.raises(UsageError, match=f"{criterion.name!r} needs statistics"):
        scores_of(criterion, case.graph, case.tensors, None)


def test_statistics_of_another_network_are_refused_with_the_layers_name():
    case = constant_case(1.0, 1.0)
    case.statistics = statistics_of({"a": case.statistics["a"]})

    with pytest.raises(UsageError, match="no relevance of 'b'; calibrate this very model"):
        case.scores(Relevance())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FlexRel(-0.1), "delta is -0.1.*in \\[0, 1\\]"),
        (lambda: FlexRel(1.01), "delta is 1.01"),
        (lambda: FlexRel(float("nan")), "delta is nan"),
        (lambda: FlexRel(blend="mean"), "blend 'mean' is not known; there are: sum, product"),
        (lambda: FlexRel(part="negative"), "part 'negative' .*: sum, positive, absolute"),
        (lambda: FlexRel(scale="log"), "scale 'log' .*: network, layer, mean, rank"),
        (lambda: FlexRel(blend="product", part="sum"), "needs relevance without a sign"),
        (lambda: Relevance("negative"), "part 'negative' is not known"),
        (lambda: Relevance(scale="log"), "scale 'log' is not known"),
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
