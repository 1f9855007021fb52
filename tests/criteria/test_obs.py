"""Saliency that knows of the repair, against explicit least squares."""

import numpy as np
import pytest
import torch
from torch import nn

import flexrel
from flexrel import OBS, UsageError
from flexrel.core.batches import read_batches
from flexrel.core.graph import GroupMember, PruningGroup, ResidualBlock
from flexrel.criteria import GroupSignals, scores_of
from flexrel.criteria.kfac import KFACFactors, LayerFactors, measure_factors
from flexrel.criteria.obs import predicted_saliency, refitted
from flexrel.repair import second_moments
from flexrel.structure import analyse, named_tensors

ROWS = 400


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reader(inputs, weight, gradients):
    """Return a group whose units a linear layer reads, one an input, and what is known of it."""
    units = weight.shape[1]
    index = torch.arange(units)[:, None]
    group = PruningGroup("made", (units,), (GroupMember("read.weight", 1, index, "consumer"),))
    layer = LayerFactors(second_moments(inputs[:, None]), gradients[None], torch.zeros(1))
    return group, {"read.weight": weight}, KFACFactors({"read": layer}, 1)


def refit_error(inputs, weight, gradients, gone):
    """Return what is left of the outputs, weighted by the gradients, once `gone` are refitted."""
    kept = [unit for unit in range(weight.shape[1]) if unit not in gone]
    x = (inputs - inputs.mean(0)).numpy()
    goal = x @ weight.numpy().T
    found = np.linalg.lstsq(x[:, kept], goal, rcond=None)[0]
    apart = goal - x[:, kept] @ found
    return float(np.einsum("no,op,np->", apart, gradients.numpy(), apart) / len(x))


def test_units_go_as_explicit_refits_say_one_after_the_other():
    inputs = drawn(ROWS, 6) @ drawn(6, 6, seed=1)
    weight, root = drawn(4, 6, seed=2), drawn(4, 4, seed=3)
    gradients = root @ root.T

    given = weight.clone()
    scores = predicted_saliency(*reader(inputs, weight, gradients))

    assert torch.equal(weight, given)
    gone, errors = [], [0.0]
    for _ in range(5):
        left = [unit for unit in range(6) if unit not in gone]
        error, unit = min((refit_error(inputs, weight, gradients, [*gone, u]), u) for u in left)
        gone.append(unit)
        errors.append(error)
    assert scores.argsort().tolist()[:5] == gone
    steps = np.maximum.accumulate(np.diff(errors))
    assert np.allclose(scores[gone].numpy(), steps, rtol=0.02, atol=0.02)  # it has a small ridge


def test_a_unit_that_others_make_up_for_goes_before_one_of_no_size():
    inputs = drawn(ROWS, 4)
    inputs[:, 3] = inputs[:, 0] + inputs[:, 1]
    weight = torch.tensor([[1.0, 1.0, 0.3, 5.0]], dtype=torch.float64)

    scores = predicted_saliency(*reader(inputs, weight, torch.eye(1, dtype=torch.float64)))

    assert scores.argmin() != 2


def test_constant_and_equal_inputs_are_scored():
    inputs = drawn(ROWS, 4)
    inputs[:, 1], inputs[:, 2] = 3.0, inputs[:, 0]

    scores = predicted_saliency(*reader(inputs, drawn(2, 4, seed=5), drawn(2, 2, seed=6) ** 2))

    assert scores.isfinite().all()
    assert 1 in scores.argsort()[:2]  # its refit is the bias; of the equal two, one can go


def test_of_fewer_samples_than_inputs_no_unit_is_free():
    """Independent inputs can't make up for each other, whatever a few samples look like."""
    model = nn.Sequential(nn.Linear(60, 60), nn.Identity(), nn.Linear(60, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(60))
        model[0].bias.zero_()
        model[2].weight.copy_(1.1 ** torch.arange(60.0))
    batches = [drawn(20, 60).float()]
    (example,) = read_batches([batches[0][:2]], model)
    graph = analyse(model, example, "channel")
    (group,) = graph.groups
    factors = measure_factors(model, batches, group.readers)

    scores = predicted_saliency(group, named_tensors(model), factors)

    expected = (1.1 ** torch.arange(60.0)).square()
    assert np.corrcoef(scores.log(), expected.log())[0, 1] > 0.95


def test_gradients_of_fewer_samples_than_outputs_are_taken():
    low = drawn(3, 200).float()
    gradients = (low.T @ low).double() * 1e6

    scores = predicted_saliency(*reader(drawn(ROWS, 5), drawn(200, 5, seed=1), gradients))

    assert scores.isfinite().all()


def test_weights_are_scored_by_what_their_removal_costs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4))
    batches = [
        torch.randn(5_000, 5) @ (torch.eye(5) + 0.3 * torch.randn(5, 5))
    ]  # so many that none of it is noise
    (example,) = read_batches([batches[0][:2]], model)
    graph = analyse(model, example, "element")
    (group,) = graph.groups
    factors = measure_factors(model, batches, group.readers)

    scores = predicted_saliency(group, named_tensors(model), factors)

    x = batches[0].double() - batches[0].double().mean(0)
    inverse = torch.linalg.inv(x.T @ x / 5_000)
    known = factors.layers["0"].outputs[0].diagonal()
    expected = model[0].weight.double().square() / inverse.diagonal() * known[:, None]
    assert torch.allclose(scores.double(), expected, rtol=0.02)


def test_a_refitted_weight_is_that_of_least_squares_on_raw_inputs():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4))
    batch = drawn(5000, 3).float()
    (example,) = read_batches([batch[:2]], model)
    (group,) = analyse(model, example, "channel").groups
    factors = measure_factors(model, [batch], ["2"])
    kept = torch.tensor([True, False, True, True, False, True])
    (reader,) = [member for member in group.members if member.reads]

    found = refitted(reader, model[2].weight, factors.layers["2"], kept)

    hidden = model[:2](batch).detach().double()
    goal = hidden @ model[2].weight.detach().double().T
    expected = torch.linalg.lstsq(hidden[:, kept], goal).solution.T
    assert not found[:, ~kept].any()
    assert torch.allclose(found[:, kept].double(), expected, rtol=0.05, atol=0.02)


def test_what_was_not_measured_is_asked_for():
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    (example,) = read_batches([torch.randn(2, 5)], model)
    graph = analyse(model, example, "channel")

    with pytest.raises(UsageError, match="the saliency of '0' was not measured"):
        scores_of(OBS(), graph, named_tensors(model), None)


def test_residual_blocks_are_refused():
    block = ResidualBlock("0", ("0.weight",), ("0",), 1, None)
    signals = GroupSignals(PruningGroup("blocks", (1,), blocks=(block,)), {}, None)

    with pytest.raises(UsageError, match="'obs' can't score residual blocks"):
        list(OBS().scores([signals]))


def test_a_wide_reader_of_a_flattened_unit_is_scored():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    result = flexrel.prune(
        model,
        calibration=[torch.randn(64, 2, 4, 4)],
        budgets=[flexrel.MACs(0.6)],
        criterion=OBS(),
    )

    assert result.criterion == OBS()
    assert result.achieved.macs <= 0.6 * result.dense.macs
