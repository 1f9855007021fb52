"""What a cut damages: predicted, and made as large as it is on samples that were held out."""

import copy

import pytest
import torch
from torch import nn

import flexrel
from flexrel import OBS, ModelError, Parameters
from flexrel.core.batches import divided, read_batches
from flexrel.criteria import measure_saliency, scores_of
from flexrel.criteria.kfac import measure_factors, readers_of
from flexrel.criteria.obs import refitted, removal_costs
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


def structure_of(model, batch, granularity="channel"):
    (example,) = read_batches([batch[:2]], model)
    return analyse(model, example, granularity)


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


def test_what_is_held_out_is_not_measured():
    model = network()
    batches = [drawn(12, 3, 6, 6), drawn(8, 3, 6, 6, seed=1)]

    found = measure_factors(model, batches, ["2"], held=0.25)
    other = measure_factors(model, [batches[0][:9], batches[1][:6]], ["2"])

    assert found.samples == 15
    assert torch.allclose(found["2"].inputs.xx, other["2"].inputs.xx)


# --- the refit that is measured -----------------------------------------------------------------


def test_a_refitted_weight_is_that_of_least_squares_on_raw_inputs():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4))
    batch = drawn(5000, 3)
    (group,) = structure_of(model, batch).groups
    curvature = measure_factors(model, [batch], ["2"])
    kept = torch.tensor([True, False, True, True, False, True])
    (part,) = [part for part in group.members if part.reads]

    found = refitted(part, model[2].weight, curvature["2"], kept)

    hidden = model[:2](batch).detach().double()
    goal = hidden @ model[2].weight.detach().double().T
    expected = torch.linalg.lstsq(hidden[:, kept], goal).solution.T
    assert not found[:, ~kept].any()
    assert torch.allclose(found[:, kept].double(), expected, rtol=0.05, atol=0.02)


# --- damage -------------------------------------------------------------------------------------


def test_damage_is_the_predicted_cost_times_a_measured_gain():
    """The slow twin: the cheaper half goes, its readers are refitted, and held-out outputs move."""
    model = network()
    batches = [drawn(64, 3, 6, 6, seed=s) for s in range(2)]
    graph = structure_of(model, batches[0])

    damages, unknown = measure_saliency(model, graph, batches)

    held = 32 / 128
    curvature = measure_factors(model, batches, readers_of(graph), held=held)
    checks = torch.cat([batch[48:] for batch in batches])
    tensors = named_tensors(model)
    assert not unknown
    assert set(damages) == {group.name for group in graph.groups}
    for group in graph.groups:
        costs = removal_costs(group, tensors, curvature) / 96
        gone = costs.argsort()[: group.units // 2]
        kept = torch.ones(group.units, dtype=torch.bool)
        kept[gone] = False
        other = copy.deepcopy(model)
        for part in group.members:
            if part.reads:
                parameter = other.get_parameter(part.tensor)
                of = curvature[part.tensor.removesuffix(".weight")]
                parameter.data = refitted(part, parameter, of, kept)
        with torch.no_grad():
            error = (other(checks) - model(checks)).square().sum() / len(checks)
        assert torch.allclose(damages[group.name], costs * float(error / costs[gone].sum()))


def test_damage_of_a_linear_reader_of_the_outputs_is_what_it_is_predicted_to_be():
    """Nothing lies behind it that could make it larger; only the bias can't move."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 5))
    with torch.no_grad():
        model[0].bias.zero_()  # so that the hidden values have no mean
    batch = drawn(4000, 6)
    graph = structure_of(model, batch)

    damages, _ = measure_saliency(model, graph, [batch])

    costs = removal_costs(
        graph.groups[0], named_tensors(model), measure_factors(model, [batch], ["2"])
    )
    assert torch.allclose(damages["0"], costs / 4000, rtol=0.5)


@pytest.mark.parametrize("unit", [2.0**-30, 2.0**45])
def test_damage_does_not_depend_on_the_unit_of_the_inputs(unit):
    """Without biases the outputs grow with the inputs, and damage with their squares."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(6, 16, bias=False), nn.ReLU(), nn.Linear(16, 8, bias=False), nn.ReLU()),
        nn.Linear(8, 3, bias=False),
    )
    batch = drawn(60, 6)
    graph = structure_of(model, batch)
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
    graph = structure_of(model, batch)

    damages, _ = measure_saliency(model, graph, [batch])

    curvature = measure_factors(model, [batch], readers_of(graph))
    for group in graph.groups:
        costs = removal_costs(group, named_tensors(model), curvature) / 3
        assert torch.allclose(damages[group.name], costs)


def test_a_site_that_held_out_samples_show_no_harm_of_is_not_free():
    """A branch that the held-out samples never open."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    batch = drawn(64, 4).abs()
    batch[48:] = 0.0  # held out: all alike
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.zero_()
        model[2].bias.zero_()
    graph = structure_of(model, batch)

    damages, _ = measure_saliency(model, graph, [batch])

    assert all(bool((damage > 0).any()) for damage in damages.values())


def test_single_weights_have_damages_and_gates_too():
    model = network()
    batch = drawn(16, 3, 6, 6)
    graph = structure_of(model, batch, "element")

    damages, unknown = measure_saliency(model, graph, [batch])

    assert not unknown
    assert {name: tuple(d.shape) for name, d in damages.items()} == {
        "0": (8, 3, 3, 3),
        "2": (6, 8, 3, 3),
        "6": (4, 6),
    }


def test_progress_is_told_and_the_model_left_as_it_was():
    model = network().train()
    batch = drawn(16, 3, 6, 6)
    graph = structure_of(model, batch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    told = []

    measure_saliency(model, graph, [batch], lambda *step: told.append(step))

    assert ("measuring damage", 2, 2) in told
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_sites_whose_readers_are_not_known_are_left_alone_and_named():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 4, 2)
            self.other, self.end = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 2, padding=1)

        def forward(self, x):
            return self.last(self.first(x).relu()) + self.end(self.other(x).relu())

    model = Model()
    batch = drawn(16, 3, 5, 5)
    graph = structure_of(model, batch)

    damages, unknown = measure_saliency(model, graph, [batch])

    assert set(damages) == {"other"}
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
    ("resource", "costs"),  # of a channel: it is made, and read
    [
        ("MACs", {"0": 36 * (27 + 6 * 9), "2": 36 * 8 * 9 + 4}),
        ("parameters", {"0": 27 + 1 + 6 * 9, "2": 8 * 9 + 1 + 4}),
    ],
)
def test_scores_are_damages_over_what_goes_with_a_unit(resource, costs):
    model = network()
    batch = drawn(64, 3, 6, 6)
    graph = structure_of(model, batch)
    damages, _ = measure_saliency(model, graph, [batch])

    scores = scores_of(OBS(), graph, named_tensors(model), None, damages, resource)

    for name, damage in damages.items():
        assert torch.allclose(scores[name].double(), damage / costs[name])
