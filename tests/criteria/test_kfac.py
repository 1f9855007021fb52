"""Kronecker factors: what a layer takes in, how noisy that is, and what an error in it does."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from flexrel.criteria.kfac import measure_factors
from networks import random_


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("mean", [0.0, 10.0])
def test_products_of_independent_inputs_are_as_noisy_as_their_variance_says(mean):
    """Products of two standard normal inputs vary by 1 a row, and sums of `n` rows by `n`."""
    model = nn.Sequential(nn.Linear(6, 2))
    found = [
        measure_factors(model, [mean + drawn(n, 6, seed=n * s).float() for n in (40, 8)], ["0"])
        for s in range(30)
    ]

    noise = torch.stack([one.layers["0"].noise[0] for one in found]).mean()

    assert float(noise) == pytest.approx(48 * 6 * 5, rel=0.1)


def test_rows_of_one_sample_that_are_alike_count_as_one():
    """Sums over `p` equal positions vary `p` times as much as those over `p` samples would."""
    model = nn.Sequential(nn.Conv2d(4, 2, 1))
    images = [drawn(32, 4, 1, 1, seed=s).float().expand(-1, -1, 3, 5) for s in range(30)]

    noise = [measure_factors(model, [x], ["0"]).layers["0"].noise[0] for x in images]

    assert float(torch.stack(noise).mean()) == pytest.approx(15**2 * 32 * 4 * 3, rel=0.15)


def test_of_one_sample_all_is_noise():
    model = nn.Sequential(nn.Conv2d(3, 2, 1))

    found = measure_factors(model, [drawn(1, 3, 4, 4).float()], ["0"]).layers["0"].covariance()[0]

    assert torch.equal(found, found.diagonal().diag())
    assert (found.diagonal() > 0).all()


def test_covariances_of_few_samples_come_closer_to_the_truth_and_of_many_stay():
    model = nn.Sequential(nn.Linear(30, 2))
    root = drawn(30, 30, seed=1)
    truth = root @ root.T
    few, many = (drawn(n, 30, seed=2) @ root.T for n in (25, 20_000))

    def off(x):
        layer = measure_factors(model, [x.float()], ["0"]).layers["0"]
        apart = [known - truth for known in (layer.covariance()[0], layer.inputs.centred().xx[0])]
        return [float(a.square().sum() / truth.square().sum()) for a in apart]

    shrunk, plain = off(few)
    assert shrunk < 0.9 * plain
    shrunk, plain = off(many)
    assert shrunk == pytest.approx(plain, abs=1e-3)


def test_the_gradients_are_those_of_the_outputs_whatever_the_class():
    """The mean of `g g'` over probes is the sum of squared Jacobians."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten())
    model.append(nn.Linear(48, 4))
    x = torch.randn(1, 2, 4, 4)

    found = [
        measure_factors(model, [x], ["0"], seed=seed).layers["0"].outputs for seed in range(300)
    ]

    hidden = functional.conv2d(x, model[0].weight, model[0].bias, padding=1).detach()
    rest = model[1:]
    jacobian = torch.autograd.functional.jacobian(lambda h: rest(h.clone()), hidden)
    rows = jacobian[0, :, 0].permute(0, 2, 3, 1).reshape(-1, 3).double()
    assert torch.allclose(torch.cat(found).mean(0), rows.T @ rows, rtol=0.3, atol=0.05)


def test_gradients_of_many_positions_are_those_of_some_times_as_many():
    """Of outputs that are the network's, each of 160,000 positions adds 1 to its own square."""
    model = nn.Sequential(nn.Conv2d(1, 3, 1))

    found = measure_factors(model, [torch.randn(1, 1, 400, 400)], ["0"]).layers["0"].outputs[0]

    assert torch.allclose(found / 160_000, torch.eye(3, dtype=torch.float64), atol=0.02)


def test_factors_of_batches_add_up_to_those_of_all():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    batches = [torch.randn(6, 5), torch.randn(3, 5)]

    whole = measure_factors(model, batches, ["0", "2"])
    parts = [measure_factors(model, [batch], ["0", "2"]) for batch in batches]
    total = parts[0] + parts[1]

    assert total.samples == whole.samples == 9
    for layer in ("0", "2"):
        assert torch.allclose(total.layers[layer].inputs.xx, whole.layers[layer].inputs.xx)
        assert total.layers[layer].inputs.rows == whole.layers[layer].inputs.rows == 9


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

    assert set(found.layers) == {"1", "3"}
    assert found.layers["1"].inputs.rows == 18


def test_what_is_held_out_is_not_measured():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1))
    batches = [drawn(12, 3, 6, 6).float(), drawn(8, 3, 6, 6, seed=1).float()]

    found = measure_factors(model, batches, ["2"], held=0.25)
    other = measure_factors(model, [batches[0][:9], batches[1][:6]], ["2"])

    assert found.samples == 15
    assert torch.allclose(found.layers["2"].inputs.xx, other.layers["2"].inputs.xx)


def test_of_a_weight_that_is_used_both_ways_round_there_are_no_factors():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.weight = nn.Linear(4, 4), nn.Parameter(torch.ones(6, 4))

        def forward(self, x):
            return self.last((x @ self.weight.T).relu() @ self.weight)

    factors = measure_factors(random_(Tied()), [torch.randn(8, 4)], {"weight", "last"})

    assert set(factors.layers) == {"last"}  # what comes in has 4 entries once and 6 the other time
