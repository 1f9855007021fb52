"""Stationary traffic moves no plan but by chance, and says so; drifting traffic does."""

import numpy as np
import pytest
import torch
from torch import nn

from flexrel import FlexRel, Magnitude, Plan, Relevance, UsageError, calibrate
from flexrel.core.running import fingerprint
from flexrel.criteria import drift
from flexrel.criteria.drift import removed_otherwise, shuffled
from flexrel.relevance import LayerRelevance, RelevanceStats
from flexrel.structure import analyse
from networks import batch, random_

HIDDEN = 12
BLOCKS = 8


def network(seed=0):
    return random_(
        nn.Sequential(nn.Linear(8, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3)), seed
    ).eval()


def plan_of(model, removed, granularity="channel"):
    """Return a plan in use that removes the first units of the first group."""
    graph = analyse(model, batch(torch.ones(2, 8)), granularity)
    masks = {group.name: torch.ones(group.shape, dtype=torch.bool) for group in graph.groups}
    masks[graph.groups[0].name].view(-1)[:removed] = False
    return Plan(graph, masks)


def block(model, means, draw, samples=32):
    """Return stats of so many samples whose hidden units matter as `means` says, with noise."""
    terms = means + torch.randn(samples, HIDDEN, generator=draw, dtype=torch.float64)
    sums, absolute = terms.sum(0), terms.abs().sum(0)
    ones = {n: torch.ones(n, dtype=torch.float64) for n in (3, 8)}
    layers = {
        "0": LayerRelevance(ones[8], sums, ones[8], absolute),
        "2": LayerRelevance(sums, ones[3], absolute, ones[3]),
    }
    rule = ("gradient-input", "predicted")
    return RelevanceStats(layers, float(samples), *rule, fingerprint(model))


def means(*, reverse=False):
    found = torch.linspace(0.8, 1.6, HIDDEN, dtype=torch.float64)
    return found.flip(0) if reverse else found


def traffic(model, seed, *, reverse=False):
    draw = torch.Generator().manual_seed(seed)
    return [block(model, means(reverse=reverse), draw) for _ in range(BLOCKS)]


@pytest.mark.parametrize("spread", [1.0, 5.0])  # of blocks of then; those of now have 1
def test_false_alarms_are_as_rare_as_the_level_says(spread):
    draw, alarms, runs = np.random.default_rng(0), 0, 1000
    for seed in range(runs):
        values = draw.normal(size=16) * np.repeat([spread, 1.0], 8)

        def apart(one, other, values=values):
            return abs(values[one].mean() - values[other].mean())

        value, chance = shuffled(apart, 8, 8, shuffles=19, seed=seed)
        assert value == apart(range(8), range(8, 16))
        alarms += chance <= 0.1

    # 100 are expected, with a standard error of 9.5
    assert 60 <= alarms <= 130


def test_stationary_traffic_triggers_nothing():
    model = network()
    plan = plan_of(model, 6)
    for seed in range(3):
        then, now = traffic(model, seed), traffic(model, 1000 + seed)

        assert not drift(model, plan, Relevance(), then, now, shuffles=19).significant(0.05)


def test_drifting_traffic_is_noticed_at_one_in_a_hundred():
    model = network()
    then, now = traffic(model, 0), traffic(model, 1000, reverse=True)
    found = drift(model, plan_of(model, 6), Relevance(), then, now, shuffles=99)

    assert found.significant()
    assert found.chance == 1 / 100


def test_distances_are_those_of_the_plans_that_were_made_by_hand():
    model = network()
    draw = torch.Generator().manual_seed(0)
    quiet = means() * 1000  # against which the noise is nothing
    then = [block(model, quiet, draw) for _ in range(BLOCKS)]
    now = [block(model, quiet.flip(0), draw) for _ in range(BLOCKS)]
    # in use the first 4 units are gone; then these mattered least, today the last 4 do
    found = drift(model, plan_of(model, 4), Relevance(), then, now, shuffles=9)

    assert (found.distance, found.noise) == (1.0, 0.0)
    # scores are over their mean, 1.2, and go by steps of 0.8 / 11: each plan keeps the best 8 in
    # its own order, so loses 8 steps with each of 4 units
    assert found.loss == pytest.approx(2 * 4 * 8 * (0.8 / 11) / 1.2, rel=1e-2)
    # of 8 units that go 4 are the same
    assert drift(model, plan_of(model, 8), Relevance(), then, now, shuffles=9).distance == 0.5


def test_plans_are_compared_by_what_one_removes_and_the_other_keeps():
    model = network()
    one, other = plan_of(model, 6), plan_of(model, 3)

    assert removed_otherwise(one, other) == 0.5
    assert removed_otherwise(other, one) == 0.0
    assert removed_otherwise(plan_of(model, 0), one) == 0.0


@pytest.mark.parametrize("granularity", ["channel", "element", "2:4"])
def test_real_relevance_of_other_inputs_moves_the_plan_at_every_granularity(granularity):
    model = network(seed=3)
    draw = torch.Generator().manual_seed(2)

    def measured(first, last):
        mask = torch.zeros(8)
        mask[first:last] = 1  # which inputs there are in use
        inputs = [torch.randn(32, 8, generator=draw) * mask for _ in range(BLOCKS)]
        return [calibrate(model, [x]) for x in inputs]

    then, same, other = measured(0, 3), measured(0, 3), measured(5, 8)
    plan = plan_of(model, 6, granularity)  # of 2:4 one of the two layers
    criterion = Relevance() if granularity == "channel" else FlexRel(0.5)

    assert not drift(model, plan, criterion, then, same, shuffles=19).significant(0.05)
    assert drift(model, plan, criterion, then, other, shuffles=19).significant(0.05)


def test_what_can_tell_nothing_is_refused():
    model = network()
    plan, blocks = plan_of(model, 6), traffic(model, 0)

    with pytest.raises(UsageError, match="'magnitude' does not look at relevance"):
        drift(model, plan, Magnitude(), blocks, blocks)
    with pytest.raises(UsageError, match="3 blocks of then and 3 of now can be divided in 20 ways"):
        drift(model, plan, Relevance(), blocks[:3], blocks[:3])
    other = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    stranger = [calibrate(other, [torch.ones(2, 8)])] * BLOCKS
    with pytest.raises(UsageError, match="stats of the network of fingerprint"):
        drift(model, plan, Relevance(), blocks, stranger)
    with pytest.raises(UsageError, match="a block of stats has no samples"):
        drift(model, plan, Relevance(), blocks, [one.scaled(0.0) for one in blocks])
