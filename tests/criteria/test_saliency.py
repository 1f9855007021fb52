"""Saliency: predicted, and made as large as it is on samples that were held out."""

import copy

import pytest
import torch
from torch import nn

import flexrel
from flexrel import OBS, ModelError, Parameters
from flexrel.core import cost
from flexrel.core.batches import read_batches
from flexrel.core.division import divided
from flexrel.criteria import measure_saliency, scores_of
from flexrel.criteria.kfac import measure_factors
from flexrel.criteria.obs import predicted_saliency, refitted
from flexrel.structure import analyse, named_tensors


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network():
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
    return nn.Sequential(
        *(first, nn.ReLU(), second, nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    )


def graph_of(model, batch, granularity="channel"):
    (example,) = read_batches([batch[:2]], model)
    return analyse(model, example, granularity)


def readers(graph):
    """Return the layers whose factors saliency is predicted by."""
    return set().union(*(group.readers for group in graph.groups))


# --- samples are held out -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "held", "expected"),
    [
        ((8, 8), 0.25, ((6, 2), (6, 2))),
        ((10, 3), 0.25, ((8, 2), (2, 1))),
        ((1,) * 5, 0.5, ((1, 0), (0, 1), (1, 0), (0, 1), (1, 0))),
        ((4, 4), 0.0, ((4, 0), (4, 0))),
        ((3,), 0.25, ((3, 0),)),
    ],
)
def test_the_share_is_held_out_over_all_batches(sizes, held, expected):
    model = nn.Linear(2, 1)
    batches = [drawn(size, 2, seed=size) for size in sizes]

    parts = list(divided(batches, model, held))

    assert tuple(tuple(p.samples if p else 0 for p in pair) for pair in parts) == expected
    for raw, pair in zip(batches, parts, strict=True):
        assert torch.equal(torch.cat([p.args[0] for p in pair if p]), raw)


# --- saliency -----------------------------------------------------------------------------------


def test_saliency_is_the_predicted_cost_times_a_measured_gain():
    """The slow twin: the cheaper half goes, its readers are refitted, and held-out outputs move."""
    model = network()
    batches = [drawn(64, 3, 6, 6, seed=s) for s in range(2)]
    graph = graph_of(model, batches[0])

    saliency, unknown = measure_saliency(model, graph, batches)

    held = 32 / 128
    factors = measure_factors(model, batches, readers(graph), held=held)
    checks = torch.cat([batch[48:] for batch in batches])
    tensors = named_tensors(model)
    assert not unknown
    assert set(saliency) == {group.name for group in graph.groups}
    for group in graph.groups:
        costs = predicted_saliency(group, tensors, factors) / 96
        gone = costs.argsort()[: group.units // 2]
        kept = torch.ones(group.units, dtype=torch.bool)
        kept[gone] = False
        other = copy.deepcopy(model)
        for member in group.members:
            if member.reads:
                parameter = other.get_parameter(member.tensor)
                of = factors.layers[member.tensor.removesuffix(".weight")]
                parameter.data = refitted(member, parameter, of, kept)
        with torch.no_grad():
            error = (other(checks) - model(checks)).square().sum() / len(checks)
        assert torch.allclose(saliency[group.name], costs * float(error / costs[gone].sum()))


def test_saliency_of_a_linear_reader_of_the_outputs_is_what_it_is_predicted_to_be():
    """Nothing lies behind it that could make it larger; only the bias can't move."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 5))
    with torch.no_grad():
        model[0].bias.zero_()  # so that the hidden values have no mean
    batch = drawn(4000, 6)
    graph = graph_of(model, batch)

    saliency, _ = measure_saliency(model, graph, [batch])

    costs = predicted_saliency(
        graph.groups[0], named_tensors(model), measure_factors(model, [batch], ["2"])
    )
    assert torch.allclose(saliency["0"], costs / 4000, rtol=0.5)


@pytest.mark.parametrize("unit", [2.0**-30, 2.0**45])
def test_saliency_does_not_depend_on_the_unit_of_the_inputs(unit):
    """Without biases the outputs grow with the inputs, and saliency with their squares."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(6, 16, bias=False), nn.ReLU(), nn.Linear(16, 8, bias=False), nn.ReLU()),
        nn.Linear(8, 3, bias=False),
    )
    batch = drawn(60, 6)
    graph = graph_of(model, batch)
    expected, _ = measure_saliency(model, graph, [batch])

    found, unknown = measure_saliency(model, graph, [unit * batch])

    assert not unknown
    assert set(found) == set(expected)
    assert all(
        torch.allclose(found[name] / unit**2, expected[name], rtol=1e-3, atol=0) for name in found
    )


def test_with_too_few_samples_to_hold_any_out_the_prediction_stands():
    model = network()
    batch = drawn(3, 3, 6, 6)
    graph = graph_of(model, batch)

    saliency, _ = measure_saliency(model, graph, [batch])

    factors = measure_factors(model, [batch], readers(graph))
    for group in graph.groups:
        costs = predicted_saliency(group, named_tensors(model), factors) / 3
        assert torch.allclose(saliency[group.name], costs)


def test_a_group_that_held_out_samples_show_no_harm_of_is_not_free():
    """A branch that the held-out samples never open."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    batch = drawn(64, 4).abs()
    batch[48:] = 0.0  # held out: all alike
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.zero_()
        model[2].bias.zero_()
    graph = graph_of(model, batch)

    saliency, _ = measure_saliency(model, graph, [batch])

    assert all(bool((costs > 0).any()) for costs in saliency.values())


def test_single_weights_have_saliency_too():
    model = network()
    batch = drawn(16, 3, 6, 6)
    graph = graph_of(model, batch, "element")

    saliency, unknown = measure_saliency(model, graph, [batch])

    assert not unknown
    assert {name: tuple(d.shape) for name, d in saliency.items()} == {
        "0": (8, 3, 3, 3),
        "2": (6, 8, 3, 3),
        "6": (4, 6),
    }


def test_progress_is_told_and_the_model_left_as_it_was():
    model = network().train()
    batch = drawn(16, 3, 6, 6)
    graph = graph_of(model, batch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    told = []

    measure_saliency(model, graph, [batch], lambda *step: told.append(step))

    assert ("measuring saliency", 2, 2) in told
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_groups_whose_readers_are_not_known_are_left_alone_and_named():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 4, 2)
            self.other, self.end = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 2, padding=1)

        def forward(self, x):
            return self.last(self.first(x).relu()) + self.end(self.other(x).relu())

    model = Model()
    batch = drawn(16, 3, 5, 5)
    graph = graph_of(model, batch)

    saliency, unknown = measure_saliency(model, graph, [batch])

    assert set(saliency) == {"other"}
    assert [(p.name, p.reason) for p in unknown] == [
        ("first", "what a refit of last can make up for was not measured")
    ]
    result = flexrel.prune(
        model, calibration=[batch], budgets=[Parameters(0.9)], criterion=OBS(), recover="none"
    )
    assert ("first", unknown[0].reason) in [(p.name, p.reason) for p in result.plan.graph.protected]


def test_a_network_of_which_nothing_is_known_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2))

    with pytest.raises(ModelError, match="no layer can be scored: 0: what a refit of 2"):
        flexrel.prune(
            model, calibration=[drawn(8, 3, 5, 5)], budgets=[Parameters(0.9)], criterion=OBS()
        )


# --- the criterion ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit_costs", "costs"),  # of a channel: it is made, and read
    [
        (cost.unit_macs, {"0": 36 * (27 + 6 * 9), "2": 36 * 8 * 9 + 4}),
        (cost.unit_parameters, {"0": 27 + 1 + 6 * 9, "2": 8 * 9 + 1 + 4}),
    ],
)
def test_obs_scores_are_saliency_over_what_goes_with_a_unit(unit_costs, costs):
    model = network()
    batch = drawn(64, 3, 6, 6)
    graph = graph_of(model, batch)
    saliency, _ = measure_saliency(model, graph, [batch])

    scores = scores_of(OBS(), graph, named_tensors(model), None, saliency, unit_costs(graph))

    for name, values in saliency.items():
        assert torch.allclose(scores[name].double(), values / costs[name])
