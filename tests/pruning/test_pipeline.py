"""The spine: what was asked for is met, from below, and written down; the model is not touched."""

import copy
import json
import math
import random
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import flexrel
from flexrel import (
    Accuracy,
    AccuracyDrop,
    BudgetError,
    Bytes,
    FlexRel,
    MACs,
    Magnitude,
    ModelError,
    Parameters,
    Relevance,
    Sparsity,
    UsageError,
)
from flexrel.core import cost
from flexrel.core.distance import Divergence
from flexrel.core.division import fitted_and_judged
from flexrel.core.plan import Plan
from flexrel.criteria import UnitRanking, scores_of
from flexrel.io import encode
from flexrel.pruning.annotation import unnoted
from flexrel.structure import analyse, apply
from networks import (
    Call,
    attributes_are_true,
    batch,
    bits,
    images,
    macs_by_hooks,
    networks,
    random_,
    same_bits,
)

CLASSES = 3
GRANULARITIES = ("element", "channel")


# --- two tiny networks that have learned something ----------------------------------------------


def points(count, seed):
    """Three clouds of points, well apart."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    centres = 2 * functional.one_hot(labels, 6).float()
    return centres + 0.4 * torch.randn(count, 6, generator=draw), labels


def bars(count, seed):
    """Pictures of 6 x 6 with one of three bars lit."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    lit = functional.one_hot(labels, CLASSES).float().repeat_interleave(2, 1)
    noise = torch.randn(count, 1, 6, 6, generator=draw)
    return lit[:, None, :, None] * 1.5 + 0.5 * noise, labels


def trained(model, data, seed):
    torch.manual_seed(seed)
    random_(model, seed)
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        inputs, labels = data
        optimiser.zero_grad()
        functional.cross_entropy(model.train()(inputs), labels).backward()
        optimiser.step()
    for parameter in model.parameters():
        parameter.grad = None
    return model.eval()


@pytest.fixture(scope="module")
def perceptron():
    layers = (nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, CLASSES))
    return trained(nn.Sequential(*layers), points(150, 0), 0)


@pytest.fixture(scope="module")
def pictures():
    layers = (
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 10, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(90, CLASSES),
    )
    return trained(nn.Sequential(*layers), bars(90, 0), 0)


CALIBRATION = [points(30, 1), points(20, 2)]
EVALUATION = [points(60, 3), points(30, 4)]
PICTURES = [bars(30, 1)]


def right_share(model, batches):
    """Accuracy, counted one input at a time."""
    right = [
        int(model(x[None])[0].argmax()) == int(y)
        for inputs, labels in batches
        for x, y in zip(inputs, labels, strict=True)
    ]
    return sum(right) / len(right)


def prune(model, **options):
    return flexrel.prune(model, **{"calibration": CALIBRATION, **options})


# --- the target ---------------------------------------------------------------------------------


def test_the_tiny_networks_have_learned_their_task(perceptron, pictures):
    assert right_share(perceptron, EVALUATION) > 0.9
    assert right_share(pictures, [bars(60, 9)]) > 0.9


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_target_alone_removes_much_and_is_met(perceptron, granularity):
    result = prune(
        perceptron,
        evaluate=Accuracy(EVALUATION),
        target=AccuracyDrop(0.02),
        granularity=granularity,
    )

    floor = right_share(perceptron, EVALUATION) - 0.02
    assert right_share(result.model, EVALUATION) >= floor
    assert result.achieved.accuracy == right_share(result.model, EVALUATION)
    assert result.dense.accuracy == right_share(perceptron, EVALUATION)
    assert result.requested["accuracy"] == pytest.approx(floor)
    assert result.samples == 90
    assert result.achieved.removed > 0.2
    assert result.achieved.bytes < result.dense.bytes


def test_a_target_on_pictures_is_met_by_a_network_that_is_really_smaller(pictures):
    result = flexrel.prune(
        pictures,
        calibration=PICTURES,
        evaluate=Accuracy([bars(60, 9)]),
        target=AccuracyDrop(0.05),
    )

    assert right_share(result.model, [bars(60, 9)]) >= right_share(pictures, [bars(60, 9)]) - 0.05
    inputs = PICTURES[0][0]
    assert macs_by_hooks(result.model, inputs) == result.achieved.macs < result.dense.macs
    attributes_are_true(result.model)


def test_a_target_goes_beyond_the_budgets_and_keeps_to_them(perceptron):
    evaluate = Accuracy(EVALUATION)
    budget = [Parameters(0.9)]
    alone = prune(perceptron, budgets=budget, criterion=Magnitude())

    both = prune(
        perceptron,
        evaluate=evaluate,
        target=AccuracyDrop(0.05),
        budgets=budget,
        criterion=Magnitude(),
    )

    assert both.achieved.parameters <= 0.9 * both.dense.parameters
    assert both.plan.removed >= alone.plan.removed
    assert both.achieved.accuracy >= both.dense.accuracy - 0.05


def test_a_target_that_the_budgets_rule_out_says_the_accuracy_they_leave(perceptron):
    with pytest.raises(BudgetError, match="accuracy") as caught:
        prune(
            perceptron,
            evaluate=Accuracy(EVALUATION),
            target=AccuracyDrop(0.0),
            budgets=[Sparsity(0.92)],
            criterion=Magnitude(),
        )

    error = caught.value
    budgets = prune(perceptron, budgets=[Sparsity(0.92)], criterion=Magnitude())
    assert (error.resource, error.exit_code) == ("accuracy", 3)
    assert error.limit == right_share(perceptron, EVALUATION)
    assert error.closest == right_share(budgets.model, EVALUATION) < error.limit


def test_a_drop_of_everything_removes_all_that_can_go(perceptron):
    result = prune(
        perceptron, evaluate=lambda _: 0.5, target=AccuracyDrop(1), criterion=Magnitude()
    )

    kept = {name: int(mask.sum()) for name, mask in result.plan.masks.items()}
    assert kept == {"0": 1, "2": 1}
    assert result.requested["accuracy"] == 0
    assert result.samples is None  # a function does not tell


# --- budgets ------------------------------------------------------------------------------------

RESOURCES = {
    "parameters": (Parameters, cost.parameters),
    "MACs": (MACs, cost.macs),
}


def removal_of(model, plan):
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    return UnitRanking(plan.graph, scores_of(Magnitude(), plan.graph, tensors, None))


def least_possible(model, granularity, count):
    """Return the cost of the network that keeps one unit of every group."""
    graph = analyse(model, batch(images()), granularity)
    masks = {group.name: torch.zeros(group.shape, dtype=torch.bool) for group in graph.groups}
    for mask in masks.values():
        mask.view(-1)[0] = True
    smallest = apply(model, Plan(graph, masks))
    if count is cost.macs:
        return macs_by_hooks(smallest, images())
    zeros = sum(int((~mask).sum()) for mask in masks.values()) if granularity == "element" else 0
    return sum(p.numel() for p in smallest.parameters()) - zeros


def requested(model, budget, granularity):
    """Prune by magnitude to one budget; None if the network can't be cut."""
    try:
        return flexrel.prune(
            model,
            calibration=[images(3)],
            budgets=[budget],
            criterion=Magnitude(),
            granularity=granularity,
        )
    except ModelError as error:
        assert "can be pruned" in str(error)  # noqa: PT017 - other errors are bugs
        return None


@pytest.mark.parametrize("budget", [MACs(0.6), Parameters(0.6), Sparsity(0.4)])
def test_widths_are_rounded_up_on_request_and_the_budget_is_still_met(budget):
    model = random_(nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 21), nn.Linear(21, 2)))

    result = flexrel.prune(
        model,
        calibration=[torch.randn(4, 6)],
        budgets=[budget],
        criterion=Magnitude(),
        options=flexrel.PruneOptions(multiple_of=8),
    )

    widths = [result.model[0].out_features, result.model[2].out_features]
    assert widths[0] in (8, 16, 24)
    assert widths[1] in (8, 16, 21)  # a width that was no multiple can only stay
    achieved, dense = result.achieved, result.dense
    assert achieved.macs <= 0.6 * dense.macs or not isinstance(budget, MACs)
    assert achieved.parameters <= 0.6 * dense.parameters or not isinstance(budget, Parameters)
    assert achieved.removed >= 0.4 or not isinstance(budget, Sparsity)


@pytest.mark.parametrize(("granularity", "multiple_of"), [("element", 8), ("channel", 0)])
def test_widths_that_can_not_be_rounded_are_a_usage_error(granularity, multiple_of):
    with pytest.raises(UsageError, match=f"multiple_of={multiple_of} of granularity"):
        flexrel.prune(
            nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)),
            calibration=[torch.randn(4, 6)],
            budgets=[MACs(0.6)],
            granularity=granularity,
            options=flexrel.PruneOptions(multiple_of=multiple_of),
        )


@settings(max_examples=60, derandomize=True)
@given(
    model=networks(),
    share=st.floats(0.05, 1.0),
    resource=st.sampled_from(sorted(RESOURCES)),
    granularity=st.sampled_from(GRANULARITIES),
)
def test_budgets_are_met_from_below_with_nothing_removed_in_vain(
    model, share, resource, granularity
):
    make, count = RESOURCES[resource]
    try:
        result = requested(model, make(share), granularity)
    except BudgetError as error:
        assert error.resource == resource  # noqa: PT017
        assert error.closest == least_possible(model, granularity, count)  # noqa: PT017
        assert error.limit < error.closest  # noqa: PT017
        return
    if result is None:
        return

    plan = result.plan
    limit = share * count(plan.graph)
    assert count(plan.graph, plan.masks) <= limit
    if granularity == "channel":
        assert result.achieved.parameters == sum(p.numel() for p in result.model.parameters())
        assert result.achieved.macs == macs_by_hooks(result.model, images())
    if plan.removed:
        one_less = removal_of(model, plan).plan(plan.removed - 1)
        assert math.floor(limit) < count(plan.graph, one_less.masks)


@settings(max_examples=30, derandomize=True)
@given(model=networks(), amount=st.floats(0, 0.95), granularity=st.sampled_from(GRANULARITIES))
def test_a_sparsity_is_reached_with_nothing_removed_in_vain(model, amount, granularity):
    try:
        result = requested(model, Sparsity(amount), granularity)
    except BudgetError as error:
        assert error.closest < amount  # noqa: PT017
        return
    if result is None:
        return

    units, removed = result.plan.graph.units, result.plan.removed
    assert result.achieved.removed == removed / units >= amount
    assert removed == 0 or (removed - 1) / units < amount


def test_a_sparsity_of_two_decimals_removes_just_that_share():
    model = nn.Sequential(nn.Linear(5, 100), nn.ReLU(), nn.Linear(100, 2))

    result = flexrel.prune(
        model, calibration=[torch.ones(2, 5)], budgets=[Sparsity(0.07)], criterion=Magnitude()
    )

    assert result.plan.removed == 7


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("share", [0.45, 0.6, 0.8])
def test_a_byte_budget_is_met_from_below_and_nearly_used(granularity, share):
    model = nn.Sequential(nn.Linear(20, 60), nn.ReLU(), nn.Linear(60, 40), nn.Linear(40, 5))

    result = flexrel.prune(
        random_(model),
        calibration=[torch.ones(2, 20)],
        budgets=[Bytes(share)],
        criterion=Magnitude(),
        granularity=granularity,
    )

    dense, limit = len(encode(model)), int(share * len(encode(model)))
    assert result.requested["bytes"] == limit
    assert len(encode(result.model)) <= len(result.packed) == result.achieved.bytes <= limit
    one_channel = dense / 60
    assert result.achieved.bytes > limit - one_channel - 0.002 * dense


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_what_is_repaired_for_a_byte_budget_is_repaired_seldom(share):
    torch.manual_seed(0)
    layers = nn.Linear(60, 200), nn.ReLU(), nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 10)
    model = nn.Sequential(*layers)
    data = [torch.randn(64, 60) @ torch.randn(60, 60) for _ in range(6)]

    def repairs(*criteria):
        """Return how many networks are repaired, and the share of the budget that is used."""
        begun = []
        result = flexrel.prune(
            model,
            calibration=data,
            budgets=[Bytes(share)],
            criterion=criteria,
            granularity="element",
            options=flexrel.PruneOptions(
                progress=lambda what, done, _: begun.append((what, done) == ("repairing", 1))
            ),
        )
        return sum(begun), result.achieved.bytes / result.requested["bytes"]

    alone, used = repairs(Magnitude())
    assert 0.99 <= used <= 1
    both, again = repairs(Magnitude(), Relevance())  # of weights relevance alone is worse
    assert again == used
    assert both <= alone + 4  # a sketch of each, and of the two in full if these are close
    _, used = repairs(Relevance(), Magnitude(), FlexRel())
    assert 0.99 <= used <= 1


class Costs:
    """Notes what units are weighed against, and scores by size."""

    name, needs = "costs", frozenset()

    def __init__(self):
        self.seen = {}

    def scores(self, signals):
        for group in signals:
            self.seen[group.group.name] = group.cost
            yield group.magnitude()


@pytest.mark.parametrize(
    ("budgets", "unit_costs"),
    [
        ([MACs(0.6)], cost.unit_macs),
        ([MACs(0.6), Bytes(0.9)], cost.unit_macs),
        ([Bytes(0.6), MACs(0.9)], cost.unit_parameters),
        ([Parameters(0.6)], cost.unit_parameters),
        ([Sparsity(0.2)], cost.unit_parameters),
    ],
)
def test_units_are_weighed_against_what_the_first_budget_is_on(pictures, budgets, unit_costs):
    costs = Costs()
    options = {"budgets": budgets, "criterion": costs, "recover": "none"}
    result = prune(pictures, calibration=PICTURES, **options)

    assert costs.seen == unit_costs(result.plan.graph)


def test_several_budgets_are_all_met(perceptron):
    result = prune(
        perceptron, budgets=[Parameters(0.7), MACs(200), Sparsity(0.1)], criterion=Magnitude()
    )

    assert result.achieved.parameters <= 0.7 * result.dense.parameters
    assert result.achieved.macs <= 200
    assert result.achieved.removed >= 0.1
    assert result.requested == {
        "accuracy": None,
        "sparsity": 0.1,
        "parameters": 7 * (6 * 16 + 16 + 16 * 12 + 12 + 12 * 3 + 3) // 10,
        "macs": 200,
        "bytes": None,
    }


def smallest(granularity):
    """6 -> 16 -> 12 -> 3: the least parameters, multiply-adds and sparsity, by hand."""
    if granularity == "channel":  # 6 -> 1 -> 1 -> 3
        return {
            "parameters": (6 + 1) + (1 + 1) + (3 + 3),
            "MACs": 6 + 1 + 3,
            "sparsity": (15 + 11) / (16 + 12),
        }
    weights = 6 * 16 + 16 * 12 + 12 * 3
    return {
        "parameters": 3 + 16 + 12 + 3,  # one weight of each layer, all biases
        "MACs": weights,
        "sparsity": (weights - 3) / weights,
    }


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("resource", ["parameters", "MACs", "sparsity"])
def test_an_impossible_budget_says_the_closest_that_is_possible(perceptron, granularity, resource):
    closest = smallest(granularity)[resource]
    budget = {"parameters": Parameters(5), "MACs": MACs(5), "sparsity": Sparsity(0.9999)}[resource]

    with pytest.raises(BudgetError) as caught:
        prune(perceptron, budgets=[budget], granularity=granularity, criterion=Magnitude())

    error = caught.value
    assert (error.resource, error.closest, error.exit_code) == (resource, closest, 3)
    assert error.limit == budget.amount
    if (granularity, resource) == ("element", "MACs"):
        assert "granularity='channel'" in error.advice
        return
    possible = {"parameters": Parameters, "MACs": MACs, "sparsity": Sparsity}[resource](closest)
    result = prune(perceptron, budgets=[possible], granularity=granularity, criterion=Magnitude())
    assert result.plan.removed == result.plan.graph.units - len(result.plan.graph.groups)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_an_impossible_byte_budget_says_about_the_smallest_file_and_that_is_possible(
    perceptron, granularity
):
    with pytest.raises(BudgetError) as caught:
        prune(perceptron, budgets=[Bytes(10)], granularity=granularity, criterion=Magnitude())

    most = prune(
        perceptron,
        budgets=[Sparsity(smallest(granularity)["sparsity"])],
        granularity=granularity,
        criterion=Magnitude(),
    )
    closest = caught.value.closest
    assert len(encode(most.model)) <= closest <= 1.05 * len(encode(most.model)) + 1
    possible = prune(
        perceptron, budgets=[Bytes(int(closest))], granularity=granularity, criterion=Magnitude()
    )
    assert possible.achieved.bytes <= closest


# --- the model is not changed, the same request gives the same plan ------------------------------


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_model_is_not_changed(pictures, granularity):
    model = copy.deepcopy(pictures).train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    model[2].register_forward_hook(lambda *_: None)
    before, state = bits(model), torch.get_rng_state()

    result = flexrel.prune(
        model,
        calibration=PICTURES,
        evaluate=Accuracy(PICTURES),
        target=AccuracyDrop(0.1),
        granularity=granularity,
    )

    assert same_bits(bits(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in result.model.parameters()}
    assert [m.training for m in result.model.modules()] == before[1]


def test_the_model_is_put_back_when_evaluation_fails_in_the_middle(perceptron):
    before = bits(perceptron)
    calls = []

    def evaluate(model):
        calls.append(model)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return 0.9

    with pytest.raises(KeyboardInterrupt):
        prune(perceptron, evaluate=evaluate, target=AccuracyDrop(0.1))

    assert same_bits(bits(perceptron), before)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_same_seed_gives_the_same_plan_whatever_was_drawn_before(perceptron, granularity):
    plans = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        random.seed(noise)
        result = prune(perceptron, budgets=[Parameters(0.5)], granularity=granularity, seed=7)
        plans.append((result.criterion, result.plan.masks, result.achieved))
        assert result.request.seed == 7

    assert plans[0][0] == plans[1][0]
    assert plans[0][2] == plans[1][2]
    assert all(torch.equal(plans[0][1][name], plans[1][1][name]) for name in plans[0][1])


# --- criteria and options -----------------------------------------------------------------------


class Latest:
    """A user's own criterion: a unit is worth its place."""

    name = "latest"
    needs = frozenset()

    def scores(self, signals):
        for known in signals:
            yield torch.arange(known.group.units, dtype=torch.float32).view(known.group.shape)


def test_a_users_own_criterion_works_as_it_is(perceptron):
    result = prune(perceptron, budgets=[Sparsity(0.5)], criterion=Latest())

    # Units 0 ... 15 and 0 ... 11 compared with each other: the 14 lowest are 0 ... 6 of both.
    assert (~result.plan.masks["0"]).nonzero().squeeze(1).tolist() == list(range(7))
    assert (~result.plan.masks["2"]).nonzero().squeeze(1).tolist() == list(range(7))
    assert result.as_json()["criterion"] == "latest"
    assert result.delta is None


@pytest.mark.parametrize(
    ("criterion", "delta"), [(Magnitude(), 0.0), (Relevance(), 1.0), (FlexRel(0.3), 0.3)]
)
def test_delta_is_the_share_of_relevance(perceptron, criterion, delta):
    result = prune(perceptron, budgets=[Sparsity(0.3)], criterion=criterion)

    assert result.criterion == criterion
    assert result.delta == delta


def test_the_criterion_chosen_diverges_least_of_those_offered(perceptron):
    result = prune(perceptron, budgets=[Parameters(0.5)])

    each = [
        prune(perceptron, budgets=[Parameters(0.5)], criterion=c).achieved.divergence
        for c in (Magnitude(), Relevance(), FlexRel(0.5))
    ]
    assert result.achieved.divergence <= min(each) + 1e-9


@pytest.mark.parametrize(
    ("granularity", "tried"),
    [
        ("channel", ["obs", "flexrel:0.5", "magnitude", "relevance"]),
        ("element", ["magnitude", "flexrel:0.333333:product", "flexrel:0.1", "obs"]),
        ("block:2x2", ["magnitude", "flexrel:0.333333:product", "flexrel:0.1"]),
    ],
)
def test_few_scores_are_tried_where_each_network_is_repaired(perceptron, granularity, tried):
    def tried_with(recover):
        how = {"budgets": [Sparsity(0.5)], "granularity": granularity, "recover": recover}
        return prune(perceptron, **how).options["chosen_from"]

    assert tried_with("closed-form") == tried
    assert len(tried_with("none")) > 2 * len(tried)


def test_the_allocation_per_layer_takes_the_same_share_of_each(perceptron):
    result = prune(
        perceptron,
        budgets=[Sparsity(0.5)],
        criterion=Magnitude(),
        options=flexrel.PruneOptions(allocation="per-layer"),
    )

    kept = {name: int(mask.sum()) for name, mask in result.plan.masks.items()}
    assert kept == {"0": 8, "2": 6}
    assert result.as_json()["options"]["allocation"] == "per-layer"


def test_kept_layers_are_not_cut(perceptron):
    result = prune(perceptron, budgets=[Sparsity(0.5)], criterion=Magnitude(), keep=["0"])

    assert list(result.plan.masks) == ["2"]
    assert result.model[0].out_features == 16
    assert "kept on request" in [p.reason for p in result.plan.graph.protected]


def test_float16_files_hold_more_for_the_same_bytes(perceptron):
    sizes = {}
    for values in ("float32", "float16"):
        result = prune(perceptron, budgets=[Sparsity(0.3)], criterion=Magnitude(), values=values)
        sizes[values] = result.achieved.bytes
        assert unnoted(result.packed) == encode(result.model, values)

    assert sizes["float16"] < sizes["float32"]


def test_compare_measures_the_rivals_and_the_curves(perceptron):
    result = prune(
        perceptron,
        evaluate=Accuracy(EVALUATION),
        budgets=[Parameters(0.6)],
        criterion=FlexRel(0.3),
    )
    result = flexrel.compare(
        result, perceptron, calibration=CALIBRATION, evaluate=Accuracy(EVALUATION)
    )

    assert [m.criterion for m in result.rivals] == ["magnitude", "relevance"]
    assert all(m.parameters <= 0.6 * result.dense.parameters for m in result.rivals)
    names = [m.criterion for m in result.curves]
    assert set(names) == {"magnitude", "relevance", "flexrel:0.3"}
    for name in set(names):
        curve = [m for m in result.curves if m.criterion == name]
        assert [curve[0].removed, curve[0].accuracy] == [0, result.dense.accuracy]
        assert len(curve) == 10
        assert [m.parameters for m in curve] == sorted((m.parameters for m in curve), reverse=True)
        assert all(m.accuracy is not None for m in curve)
    assert result.measurements == (result.dense, *result.rivals, result.achieved)


def test_without_compare_there_are_no_rivals(perceptron):
    result = prune(perceptron, budgets=[Sparsity(0.3)], criterion=Magnitude())

    assert (result.rivals, result.curves) == ((), ())
    assert result.measurements == (result.dense, result.achieved)
    assert result.achieved.accuracy is None


def test_progress_is_told_of_each_stage(perceptron):
    told = []

    result = prune(
        perceptron,
        evaluate=lambda _: 1.0,
        target=AccuracyDrop(0.1),
        options=flexrel.PruneOptions(
            progress=lambda stage, done, total: told.append((stage, done, total))
        ),
    )

    without_steps = {"reading the data", "tracing the network", "finishing"}
    assert {stage.split(" with ")[0] for stage, _, _ in told} == without_steps | {
        "calibrating",
        "measuring K-FAC factors",
        "refitting readers",
        "measuring saliency",
        "measuring dense",
        "repairing",
        "choosing a criterion",
        "searching",
        f"measuring {result.criterion.name}",
    }
    assert all(done >= 0 and (total is None or done <= total) for _, done, total in told)
    last = {stage: (done, total) for stage, done, total in told if stage not in without_steps}
    assert all(done >= 1 and total in (done, None) for done, total in last.values())


# --- what is fitted, and what judges --------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "judged"),
    [((40,), 10), ((20, 20), 10), ((3,), 0), ((1,) * 8, 2), ((600, 400), 128)],
)
def test_a_part_of_the_calibration_samples_judges_and_fits_nothing(perceptron, sizes, judged):
    inputs = points(sum(sizes), seed=3)[0]
    batches = list(inputs.split(sizes))

    fitted, others = fitted_and_judged(batches, perceptron)

    used = torch.cat([batch.args[0] for batch in fitted])
    held = torch.cat([batch.args[0] for batch in others])
    assert len(used) == len(inputs) - judged
    assert len(held) == (judged or len(inputs))  # of too few all do both
    if judged:
        together = torch.cat([used, held])
        assert torch.equal(together.sort(0).values, inputs.sort(0).values)


@pytest.mark.parametrize(("samples", "judged"), [(3, 3), (512, 512), (600, 512), (2000, 512)])
def test_where_nothing_is_fitted_all_samples_score_and_some_judge(perceptron, samples, judged):
    inputs = points(samples, seed=3)[0]

    seen, others = fitted_and_judged(list(inputs.split(100)), perceptron, fits=False)

    assert torch.equal(torch.cat(seen), inputs)
    held = torch.cat([getattr(batch, "args", [batch])[0] for batch in others])
    assert abs(len(held) - judged) <= len(inputs) / 100  # whole samples of every batch
    assert len(held.unique(dim=0)) == len(held)
    assert all(bool((inputs == row).all(1).any()) for row in held[:20])


@pytest.mark.parametrize(("recover", "seen"), [("closed-form", 30), ("none", 40)])
def test_scores_see_the_one_part_and_the_divergence_the_other(perceptron, recover, seen):
    """Where nothing is fitted, both see all."""
    inputs = points(40, seed=3)[0]

    result = prune(
        perceptron,
        calibration=[inputs],
        budgets=[Sparsity(0.5)],
        criterion=Relevance(),
        recover=recover,
    )

    stats = flexrel.calibrate(perceptron, [inputs[:seen]])
    scores = scores_of(Relevance(), result.plan.graph, dict(perceptron.named_parameters()), stats)
    expected = UnitRanking(result.plan.graph, scores).plan(result.plan.graph.units // 2)
    assert all(torch.equal(expected.masks[n], mask) for n, mask in result.plan.masks.items())
    judged = inputs[seen:] if seen < len(inputs) else inputs
    found = Divergence(perceptron, [judged])(result.model)
    assert result.achieved.divergence == pytest.approx(found)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("said", [math.nan, 1.2, -0.1, "x", None])
def test_an_evaluation_that_is_no_share_is_refused(perceptron, said):
    with pytest.raises(UsageError, match="evaluate returned") as caught:
        prune(perceptron, evaluate=lambda _: said, target=AccuracyDrop(0.1))

    assert caught.value.exit_code == 2


def test_a_target_needs_an_evaluation(perceptron):
    with pytest.raises(UsageError, match="needs evaluate="):
        prune(perceptron, target=AccuracyDrop(0.1))


def test_a_request_for_nothing_is_refused(perceptron):
    with pytest.raises(UsageError, match="nothing to prune to"):
        prune(perceptron)


def test_an_empty_calibration_set_is_refused(perceptron):
    with pytest.raises(UsageError, match="calibration set is empty"):
        prune(perceptron, calibration=[], budgets=[Sparsity(0.5)])


UNKNOWN = {
    "allocation": "there are: global, per-layer",
    "recover": "'other' is not known",
    "granularity": "there are: element, channel",
    "values": "there are: auto, float32, bfloat16, float16",
    "form": "there are: auto, module, exported",
    "budgets": "budget 'other' is not known; write it like",
    "target": "target 'other' is not known; write it like",
}
SCRIPT = """
import json, torch, flexrel
model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 2))
said = {}
for option in json.loads(input()):
    asked = {"budgets": [flexrel.Sparsity(0.5)], option: "other"}
    if option == "budgets":
        asked["budgets"] = ["other"]
    if option in ("allocation", "form"):
        asked["options"] = flexrel.PruneOptions(**{option: asked.pop(option)})
    try:
        flexrel.prune(model, calibration=[torch.ones(2, 2)], **asked)
    except flexrel.UsageError as error:
        said[option] = str(error)
print(json.dumps(said))
"""


def test_unknown_options_are_refused_with_those_that_are_known():
    """In a process of its own: here, the type checks of tests would refuse them first."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        input=json.dumps(list(UNKNOWN)),
        capture_output=True,
        text=True,
        check=True,
    )

    said = json.loads(done.stdout)
    assert said.keys() == UNKNOWN.keys()
    for option, message in UNKNOWN.items():
        assert message in said[option]


def test_a_model_that_can_not_be_cut_is_a_model_error():
    with pytest.raises(ModelError, match="no layer of the network can be pruned") as caught:
        prune(nn.Linear(6, 3), budgets=[Sparsity(0.5)])

    assert caught.value.exit_code == 4


def test_a_network_whose_python_knows_its_sizes_is_pruned_elsewhere():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        Call(lambda x: x.view(-1, 24)),  # 6 channels of 2 x 2
        nn.Linear(24, 3),
    )

    result = flexrel.prune(
        random_(model), calibration=PICTURES, budgets=[Sparsity(0.5)], criterion=Magnitude()
    )

    assert list(result.plan.masks) == ["0"]
    assert result.model(PICTURES[0][0]).shape == (30, 3)


# --- what users do that we did not think of -------------------------------------------------------


def test_a_model_of_several_outputs_is_pruned(perceptron):
    inputs = [x for x, _ in CALIBRATION]
    model = nn.Sequential(copy.deepcopy(perceptron), Call(lambda x: {"scores": x, "twice": 2 * x}))

    result = flexrel.prune(
        model,
        calibration=inputs,
        budgets=[MACs(0.6)],
        criterion=Relevance(output=lambda out, _: out["scores"].amax(1)),
    )

    assert 0 < result.achieved.divergence < math.inf
    assert result.model(inputs[0])["twice"].shape == (30, CLASSES)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, on compiling
def test_a_compiled_model_is_pruned_as_what_is_inside():
    model = random_(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    request = {"calibration": [torch.randn(9, 6)], "budgets": [Sparsity(0.5)]}

    results = [flexrel.prune(m, **request) for m in (torch.compile(model), model)]

    for name, mask in results[1].plan.masks.items():
        assert torch.equal(results[0].plan.masks[name], mask)


class Silent(nn.Module):
    """Lets no gradient back through one of its layers, so no relevance comes to it."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.second, self.silent = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        seen = self.last(functional.relu(self.first(x)))
        return seen + self.silent(functional.relu(self.second(x))).detach()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_layer_whose_relevance_was_not_measured_is_left_alone_and_named(granularity):
    result = flexrel.prune(
        random_(Silent()),
        calibration=[torch.randn(9, 6)],
        budgets=[Sparsity(0.3)],
        granularity=granularity,
        criterion=FlexRel(),
    )

    reasons = {p.name: p.reason for p in result.plan.graph.protected}
    assert any("not measured" in reason for reason in reasons.values())


class Still(nn.Module):
    """A layer's inputs that vary so little, beside others that do."""

    def __init__(self, share):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.still = nn.Linear(6, 40), nn.Linear(40, 30)
        self.beside, self.last = nn.Linear(6, 30), nn.Linear(30, 5)
        with torch.no_grad():
            self.first.weight.mul_(share)
            self.first.bias.uniform_(0.1, 3)

    def forward(self, x):
        hidden = self.still(self.first(x).relu()) + self.beside(x)
        return self.last(hidden.relu())


@pytest.mark.parametrize("share", [0.0, 1e-8, 1e-6, 1e-4, 1e-2])
@pytest.mark.parametrize(
    "asked",
    [
        {"budgets": [MACs(0.6)]},
        {"granularity": "element", "budgets": [Sparsity(0.5)], "criterion": flexrel.OBS()},
        {"granularity": "element", "budgets": [Sparsity(0.5)], "values": "int8"},
    ],
)
def test_a_network_with_a_layer_whose_inputs_hardly_vary_is_pruned(share, asked):
    batches = [points(100, seed)[0] for seed in range(4)]

    result = flexrel.prune(Still(share).eval(), calibration=batches, **asked)

    assert result.achieved.divergence < 1e-2
    assert all(bool(t.abs().max() < 1e4) for t in result.model.parameters())  # float16 holds them


def test_magnitude_alone_needs_no_gradient_to_its_input():
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 2))
    tokens = torch.arange(7).remainder(7).repeat(4, 1)

    result = flexrel.prune(
        model, calibration=[tokens], budgets=[Sparsity(0.5)], criterion=Magnitude()
    )

    assert result.options["output"] is None
    assert result.achieved.removed >= 0.5


@pytest.mark.parametrize("budgets", [0.5, [0.5], [("macs", 0.5)]])
def test_what_is_no_list_of_budgets_is_refused(unchecked, perceptron, budgets):
    with pytest.raises(UsageError, match="budget"):
        prune(perceptron, budgets=budgets)


def test_of_two_budgets_on_one_resource_the_tighter_is_requested(perceptron):
    dense = prune(perceptron, budgets=[MACs(1.0)], criterion=Magnitude()).dense

    result = prune(
        perceptron,
        budgets=[MACs(0.5), MACs(0.8), Sparsity(0.3), Sparsity(0.1)],
        criterion=Magnitude(),
    )

    assert result.requested["macs"] == math.floor(dense.macs / 2) >= result.achieved.macs
    assert result.requested["sparsity"] == 0.3


def test_one_tensor_is_no_calibration_set(perceptron):
    with pytest.raises(UsageError, match="one tensor of shape"):
        flexrel.prune(perceptron, calibration=torch.ones(4, 6), budgets=[MACs(0.5)])


def test_an_evaluation_may_do_to_the_network_what_it_likes(pictures):
    def careless(model):
        model.train()
        model(PICTURES[0][0])  # moves the norm's statistics
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        return 0.9

    model = copy.deepcopy(pictures)
    before = bits(model)

    result = flexrel.prune(
        model, calibration=PICTURES, evaluate=careless, budgets=[MACs(0.6)], criterion=Magnitude()
    )

    assert same_bits(bits(model), before)
    assert any(bool(p.abs().sum() > 0) for p in result.model.parameters())
    assert len(unnoted(result.packed)) == len(encode(result.model))


def test_accuracy_is_that_of_the_file_also_where_it_rounds(perceptron, tmp_path):
    fragile = copy.deepcopy(perceptron)
    with torch.no_grad():  # what float16 can't tell from zero, and the largest score does not mind
        for layer in (fragile[2], fragile[4]):
            layer.weight.mul_(1e-5)
            layer.bias.mul_(1e-5)
    evaluate = Accuracy([points(60, 3)])

    result = flexrel.prune(
        fragile,
        calibration=CALIBRATION,
        evaluate=evaluate,
        budgets=[Sparsity(0.1)],
        criterion=Magnitude(),
        keep=["0"],
        values="float16",
    )
    result.save(tmp_path / "out")

    loaded = flexrel.load(tmp_path / "out" / "model.flexrel", into=copy.deepcopy(fragile))
    assert result.achieved.accuracy == evaluate(loaded) == evaluate(result.model)
    state = result.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_zeros_are_plain_zeros_and_cost_no_bytes(perceptron, granularity):
    result = prune(
        perceptron, budgets=[Sparsity(0.5)], granularity=granularity, criterion=Magnitude()
    )

    for tensor in result.model.state_dict().values():
        assert not bool(((tensor == 0) & tensor.signbit()).any())


def test_a_drop_to_the_dot_is_allowed():
    """0.995 - 0.01 is a little more than 0.985 in floats, and 2/3 - 0.01 than 197/300."""
    model = nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 2))
    for dense, low in ((0.995, 0.985), (200 / 300, 197 / 300)):
        said = iter([dense, *[low] * 50])

        result = flexrel.prune(
            model,
            calibration=[torch.ones(2, 3)],
            evaluate=lambda _, said=said: next(said),
            target=AccuracyDrop(0.01),
            criterion=Magnitude(),
        )

        assert result.achieved.accuracy == low


def test_bytes_that_rise_as_units_go_still_keep_to_the_budget():
    """Weights of few values pack better whole than with gaps."""
    draw = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(1, 3, parameter.shape, generator=draw) / 2)
    budgets = [Bytes(1.0), Sparsity(0.2)]

    result = flexrel.prune(
        model,
        calibration=[torch.randn(8, 64, generator=draw)],
        budgets=budgets,
        granularity="element",
        criterion=Relevance(),
    )

    assert result.achieved.bytes <= result.dense.bytes
    assert result.achieved.removed >= 0.2
