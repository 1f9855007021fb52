"""Weights that bring means to given ones: as a hand calculation has them, and never too few."""

import pytest
import torch

from flexrel.core.balancing import _RIDGES, _tilted, balanced

EVER = 1e300  # samples that the means are over


def test_two_kinds_of_samples_are_mixed_as_the_means_say():
    kind = torch.tensor([1.0, 0.0]).repeat(100)

    found = balanced(kind[:, None], torch.tensor([0.8]), EVER)

    # each of the hundred ones counts 0.8 / 0.5, each of the others 0.2 / 0.5
    torch.testing.assert_close(
        found.weights, torch.where(kind == 1, 1.6, 0.4).double(), rtol=1e-3, atol=0
    )
    # before: 0.3 off, of a scale of sqrt(0.25 + 0.09); worth 200^2 / (100 * 1.6^2 + 100 * 0.4^2)
    assert found.before == pytest.approx(0.09 / 0.34)
    assert found.after < 1e-6
    assert found.worth == pytest.approx(40_000 / 272, rel=1e-3)


def test_means_that_are_those_of_all_samples_leave_them_even():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(50, 8, generator=draw)

    found = balanced(features, features.mean(0), EVER)

    torch.testing.assert_close(found.weights, torch.ones(50, dtype=torch.float64))
    assert (found.before, found.worth) == (pytest.approx(0), pytest.approx(50))


def test_few_samples_move_the_weights_less():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(200, 5, generator=draw)
    means = features[:60].mean(0)

    worth = [balanced(features, means, seen).worth for seen in (1, 100, EVER)]

    assert worth[0] == pytest.approx(200)
    assert worth[0] > worth[1] > worth[2]


def test_means_that_no_mix_comes_to_leave_at_least_32_samples_worth():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(300, 6, generator=draw)
    features[:, 5] = 0  # and one that nothing moves

    found = balanced(features, torch.full((6,), 9.0), EVER)

    assert found.worth >= 32
    assert found.after > 0.5 * found.before
    assert bool(found.weights.isfinite().all())


def test_of_few_samples_a_quarter_is_enough():
    kind = torch.tensor([1.0, 0.0]).repeat(10)

    found = balanced(kind[:, None], torch.tensor([0.99]), EVER)

    assert 5 <= found.worth <= 12  # the ten ones
    assert float(found.weights[kind == 1].sum()) > 0.9 * 20


@pytest.mark.parametrize("ridge", [_RIDGES[0], _RIDGES[4], _RIDGES[-1]])
def test_the_tilt_is_where_autograd_finds_no_slope(ridge):
    draw = torch.Generator().manual_seed(1)
    off = torch.randn(80, 10, generator=draw, dtype=torch.float64) + 0.5

    tilt = _tilted(off, ridge, torch.zeros(10, dtype=torch.float64)).requires_grad_()
    (torch.logsumexp(off @ tilt, 0) + ridge / 2 * tilt.square().sum()).backward()

    assert float(tilt.grad.abs().max()) < 1e-5
