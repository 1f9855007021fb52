"""What a tracker averages over training is what was there, and what prune then goes by."""

import io

import pytest
import torch
from torch import nn
from torch.nn import functional

import flexrel
from flexrel import FlexRel, Magnitude, ModelError, PackError, PruneOptions, UsageError, calibrate
from flexrel.training import Tracker
from networks import random_


def network(width=6):
    return random_(nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3)))


def batches(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 1, 2, 0, 1])
    return [(torch.randn(5, 4, generator=draw), labels) for _ in range(count)]


def trained(model, data, tracker, seen=None):
    """Train, and note in `seen` what weights were after each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for inputs, labels in data:
        loss = functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if seen is not None:
            seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        tracker.step((inputs, labels))
    return optimizer


def test_magnitudes_are_the_mean_over_the_steps_that_were_looked_at():
    model, seen = network(), []
    tracker = Tracker(model, every=3)
    trained(model, batches(10), tracker, seen)

    history = tracker.history()

    assert history.measurements == 3
    assert set(history.magnitudes) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    for name, average in history.magnitudes.items():
        expected = torch.stack([seen[at][name].double().abs() for at in (2, 5, 8)]).mean(0)
        torch.testing.assert_close(average, expected.float())


def test_with_a_half_life_older_looks_count_less():
    model, seen = network(), []
    tracker = Tracker(model, every=2, half_life=4)
    trained(model, batches(6), tracker, seen)

    factors = (1 / 2, 2**-0.5, 1.0)  # looked at 4, 2 and 0 steps before the last look
    for name, average in tracker.history().magnitudes.items():
        parts = [
            factor * seen[at][name].double().abs()
            for factor, at in zip(factors, (1, 3, 5), strict=True)
        ]
        torch.testing.assert_close(average, (sum(parts) / sum(factors)).float())


@pytest.mark.parametrize("half_life", [None, 2])
def test_relevance_is_the_sum_of_what_each_look_would_have_measured(half_life):
    model, data = network(), batches(4)
    tracker = Tracker(model, every=2, half_life=half_life, output="label")
    expected = None
    for number, batch in enumerate(data, start=1):
        with torch.no_grad():
            model[0].weight.mul_(1.1)
        tracker.step(batch)
        if number % 2 == 0:
            found = calibrate(model, [batch], output="label")
            older = 1.0 if half_life is None else 0.5
            expected = found if expected is None else expected.scaled(older) + found

    found = tracker.history().relevance
    assert found.samples == expected.samples
    for name in expected:
        for field, tensor in expected[name].sums().items():
            assert torch.equal(found[name].sums()[field], tensor)


@pytest.mark.parametrize("stopped", [1, 4, 5])
def test_a_resumed_tracker_has_the_history_of_one_that_was_not_stopped_to_the_bit(stopped):
    data, model = batches(9), network()
    whole = Tracker(model, every=2, half_life=5)
    trained(model, data, whole)

    model = network()
    first = Tracker(model, every=2, half_life=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)

    def steps(some, tracker):
        for inputs, labels in some:
            loss = functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            tracker.step((inputs, labels))

    steps(data[:stopped], first)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = Tracker(model, every=2, half_life=5)
    second.load_state_dict(torch.load(file, weights_only=True))
    steps(data[stopped:], second)

    one, other = whole.history(), second.history()
    assert all(torch.equal(one.magnitudes[name], other.magnitudes[name]) for name in one.magnitudes)
    assert one.relevance.encode() == other.relevance.encode()
    assert one.measurements == other.measurements


def test_a_state_is_a_copy_that_training_does_not_move():
    model = network()
    tracker = Tracker(model, every=1)
    tracker.step()
    state = tracker.state_dict()
    before = state["magnitudes"]["0.weight"].clone()
    with torch.no_grad():
        model[0].weight.zero_()
    tracker.step()

    assert torch.equal(state["magnitudes"]["0.weight"], before)


def test_training_goes_as_without_a_tracker():
    class Silent:
        def step(self, batch):
            pass

    model, other = network(), network()
    torch.manual_seed(0)
    trained(model, batches(5), Tracker(model, every=1))
    after = torch.rand(3)
    torch.manual_seed(0)
    trained(other, batches(5), Silent())

    assert torch.equal(after, torch.rand(3))
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("granularity", ["element", "channel"])
def test_prune_goes_by_the_history_as_by_a_network_of_those_magnitudes(granularity):
    model = network()
    tracker = Tracker(model, every=1)
    draw = torch.Generator().manual_seed(5)
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
        tracker.step()
    averaged = network()
    with torch.no_grad():
        for name, parameter in averaged.named_parameters():
            parameter.copy_(tracker.history().magnitudes[name])

    def plan(network, **options):
        asked = {"budgets": ["parameters=60%"], "granularity": granularity, "recover": "none"}
        data = [x for x, _ in batches(2)]
        options = PruneOptions(**options)
        criterion = Magnitude()
        return flexrel.prune(
            network, calibration=data, criterion=criterion, options=options, **asked
        ).plan.masks

    found = plan(model, history=tracker.history())
    wanted, last = plan(averaged), plan(model)

    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert any(not torch.equal(found[name], last[name]) for name in last)


def test_tracked_relevance_is_taken_for_relevance_unless_stats_are_given():
    model, data = network(), batches(3)
    tracker = Tracker(model, every=1)
    tracker.step(data[0])
    history = tracker.history()
    other = calibrate(model, [-data[1][0]])

    def stats(**options):
        return flexrel.prune(
            model,
            calibration=[x for x, _ in data],
            budgets=["macs=60%"],
            criterion=FlexRel(0.5),
            recover="none",
            options=PruneOptions(**options),
        ).stats

    assert stats(history=history) is history.relevance
    assert stats(history=history, stats=other) is other


def test_what_makes_no_sense_is_refused(unchecked):
    model = network()
    with pytest.raises(UsageError, match="every=0"):
        Tracker(model, every=0)
    with pytest.raises(UsageError, match="half_life=0"):
        Tracker(model, half_life=0)
    tracker = Tracker(model, every=2)
    tracker.step()
    with pytest.raises(
        UsageError, match=r"looked at every 2 steps, and step\(\) was called 1 times"
    ):
        tracker.history()
    with pytest.raises(ModelError, match="does not run on batch 0"):
        tracker.step(torch.ones(2, 9))
    tracker.step()
    tracker.step((torch.ones(2, 4), None))
    other = network(width=7)
    with pytest.raises(UsageError, match=r"0.weight is \[6, 4\] there, \[7, 4\] here"):
        Tracker(other).load_state_dict(tracker.state_dict())
    with pytest.raises(UsageError, match="history= is of another network"):
        flexrel.prune(
            other,
            calibration=[torch.ones(4, 4)],
            budgets=["macs=60%"],
            options=PruneOptions(history=tracker.history()),
        )
    state = tracker.state_dict()
    state["relevance"][40] ^= 1
    with pytest.raises(PackError, match="the tracker's state: is"):
        Tracker(model).load_state_dict(state)
