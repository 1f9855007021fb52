"""The score that knows of the repair, against explicit least squares."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import flexrel
from flexrel import OBS, UsageError
from flexrel.core.batches import read_batches
from flexrel.core.graph import GroupMember, PruningGroup
from flexrel.criteria import scores_of
from flexrel.criteria.kfac import KFACFactors, LayerFactors, measure_factors, readers_of
from flexrel.criteria.obs import removal_costs
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
    curvature = LayerFactors(second_moments(inputs[:, None]), gradients[None], torch.zeros(1))
    return group, {"read.weight": weight}, KFACFactors({"read": curvature}, 1)


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
    scores = removal_costs(*reader(inputs, weight, gradients))

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

    scores = removal_costs(*reader(inputs, weight, torch.eye(1, dtype=torch.float64)))

    assert scores.argmin() != 2


def test_constant_and_equal_inputs_are_scored():
    inputs = drawn(ROWS, 4)
    inputs[:, 1], inputs[:, 2] = 3.0, inputs[:, 0]

    scores = removal_costs(*reader(inputs, drawn(2, 4, seed=5), drawn(2, 2, seed=6) ** 2))

    assert scores.isfinite().all()
    assert 1 in scores.argsort()[:2]  # its refit is the bias; of the equal two, one can go


@pytest.mark.parametrize("mean", [0.0, 10.0])
def test_products_of_independent_inputs_are_as_noisy_as_their_variance_says(mean):
    """Products of two standard normal inputs vary by 1 a row, and sums of `n` rows by `n`."""
    model = nn.Sequential(nn.Linear(6, 2))
    found = [
        measure_factors(model, [mean + drawn(n, 6, seed=n * s).float() for n in (40, 8)], ["0"])
        for s in range(30)
    ]

    noise = torch.stack([one["0"].noise[0] for one in found]).mean()

    assert float(noise) == pytest.approx(48 * 6 * 5, rel=0.1)


def test_rows_of_one_sample_that_are_alike_count_as_one():
    """Sums over `p` equal positions vary `p` times as much as those over `p` samples would."""
    model = nn.Sequential(nn.Conv2d(4, 2, 1))
    images = [drawn(32, 4, 1, 1, seed=s).float().expand(-1, -1, 3, 5) for s in range(30)]

    noise = [measure_factors(model, [x], ["0"])["0"].noise[0] for x in images]

    assert float(torch.stack(noise).mean()) == pytest.approx(15**2 * 32 * 4 * 3, rel=0.15)


def test_of_one_sample_all_is_noise():
    model = nn.Sequential(nn.Conv2d(3, 2, 1))

    found = measure_factors(model, [drawn(1, 3, 4, 4).float()], ["0"])["0"].covariance()[0]

    assert torch.equal(found, found.diagonal().diag())
    assert (found.diagonal() > 0).all()


def test_covariances_of_few_samples_come_closer_to_the_truth_and_of_many_stay():
    model = nn.Sequential(nn.Linear(30, 2))
    root = drawn(30, 30, seed=1)
    truth = root @ root.T
    few, many = (drawn(n, 30, seed=2) @ root.T for n in (25, 20_000))

    def off(x):
        layer = measure_factors(model, [x.float()], ["0"])["0"]
        apart = [known - truth for known in (layer.covariance()[0], layer.inputs.centred().xx[0])]
        return [float(a.square().sum() / truth.square().sum()) for a in apart]

    shrunk, plain = off(few)
    assert shrunk < 0.9 * plain
    shrunk, plain = off(many)
    assert shrunk == pytest.approx(plain, abs=1e-3)


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
    curvature = measure_factors(model, batches, readers_of(graph))

    (group,) = graph.groups
    scores = removal_costs(group, named_tensors(model), curvature)

    expected = (1.1 ** torch.arange(60.0)).square()
    assert np.corrcoef(scores.log(), expected.log())[0, 1] > 0.95


def test_gradients_of_fewer_samples_than_outputs_are_taken():
    low = drawn(3, 200).float()
    gradients = (low.T @ low).double() * 1e6

    scores = removal_costs(*reader(drawn(ROWS, 5), drawn(200, 5, seed=1), gradients))

    assert scores.isfinite().all()


def test_weights_are_scored_by_what_their_removal_costs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4))
    batches = [
        torch.randn(20_000, 5) @ (torch.eye(5) + 0.3 * torch.randn(5, 5))
    ]  # so many that none of it is noise
    (example,) = read_batches([batches[0][:2]], model)
    graph = analyse(model, example, "element")
    curvature = measure_factors(model, batches, readers_of(graph))

    (group,) = graph.groups
    scores = removal_costs(group, named_tensors(model), curvature)

    x = batches[0].double() - batches[0].double().mean(0)
    inverse = torch.linalg.inv(x.T @ x / 20_000)
    known = curvature["0"].outputs[0].diagonal()
    expected = model[0].weight.double().square() / inverse.diagonal() * known[:, None]
    assert torch.allclose(scores.double(), expected, rtol=0.02)


def test_the_gradients_are_those_of_the_outputs_whatever_the_class():
    """The mean of `g g'` over probes is the sum of squared Jacobians."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten())
    model.append(nn.Linear(48, 4))
    x = torch.randn(1, 2, 4, 4)

    found = [measure_factors(model, [x], ["0"], seed=seed)["0"].outputs for seed in range(300)]

    hidden = functional.conv2d(x, model[0].weight, model[0].bias, padding=1).detach()
    rest = model[1:]
    jacobian = torch.autograd.functional.jacobian(lambda h: rest(h.clone()), hidden)
    rows = jacobian[0, :, 0].permute(0, 2, 3, 1).reshape(-1, 3).double()
    assert torch.allclose(torch.cat(found).mean(0), rows.T @ rows, rtol=0.3, atol=0.05)


def test_gradients_of_many_positions_are_those_of_some_times_as_many():
    """Of outputs that are the network's, each of 160,000 positions adds 1 to its own square."""
    model = nn.Sequential(nn.Conv2d(1, 3, 1))

    found = measure_factors(model, [torch.randn(1, 1, 400, 400)], ["0"])["0"].outputs[0]

    assert torch.allclose(found / 160_000, torch.eye(3, dtype=torch.float64), atol=0.02)


def test_curvature_of_batches_adds_up_to_that_of_all():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    batches = [torch.randn(6, 5), torch.randn(3, 5)]

    whole = measure_factors(model, batches, ["0", "2"])
    parts = [measure_factors(model, [batch], ["0", "2"]) for batch in batches]
    total = parts[0] + parts[1]

    assert total.samples == whole.samples == 9
    for layer in ("0", "2"):
        assert torch.allclose(total[layer].inputs.xx, whole[layer].inputs.xx)
        assert total[layer].inputs.rows == whole[layer].inputs.rows == 9


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(), nn.Linear(4, 3)).train()
    model[0].weight.requires_grad_(requires_grad=False)
    weights = [p.clone() for p in model.parameters()]
    x = torch.randn(4, 5)
    state = torch.get_rng_state()

    measure_factors(model, [x], ["0", "2"])

    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert all(not m._forward_hooks for m in model.modules())
    assert all(map(torch.equal, weights, model.parameters()))
    assert torch.equal(state, torch.get_rng_state())


def test_integer_inputs_are_followed_from_their_embedding_on():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))

    found = measure_factors(model, [torch.randint(0, 7, (3, 6))], ["1", "3"])

    assert set(found) == {"1", "3"}
    assert found["1"].inputs.rows == 18


def test_a_request_is_refused_without_curvature_and_for_blocks():
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    (example,) = read_batches([torch.randn(2, 5)], model)
    graph = analyse(model, example, "channel")

    with pytest.raises(UsageError, match="the removal of '0' damages was not measured"):
        scores_of(OBS(), graph, named_tensors(model), None)


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
