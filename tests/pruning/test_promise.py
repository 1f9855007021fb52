"""What is promised of accuracy: by samples that nothing was chosen on, and only where it holds."""

import json
import re

import pytest
import torch
from torch import nn

import flexrel
from flexrel import Accuracy, AccuracyDrop, MACs, Magnitude, UsageError
from flexrel.core.paired import drop_bound
from flexrel.pruning.annotation import unnoted
from flexrel.pruning.promise import Promise

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(1600, 6, generator=DRAW)
CALIBRATION = torch.randn(64, 6, generator=DRAW)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))


@torch.no_grad()
def answers(model, x):
    return model(x).argmax(1)


LABELS = answers(network(), X)
LABELS = torch.where(torch.rand(len(X), generator=DRAW) < 0.05, (LABELS + 1) % 3, LABELS)


def in_batches(size):
    return list(zip(X.split(size), LABELS.split(size), strict=True))


def prune(evaluate, **asked):
    request = {"criterion": Magnitude(), "recover": "none", **asked}
    return flexrel.prune(network(), calibration=[CALIBRATION], evaluate=evaluate, **request)


def counted(result, samples):
    """Return how many of some samples are lost and won, and the dense accuracy on them."""
    truth = LABELS[samples]
    dense = answers(network(), X[samples]) == truth
    pruned = answers(result.model, X[samples]) == truth
    return int((dense & ~pruned).sum()), int((pruned & ~dense).sum()), float(dense.float().mean())


@pytest.mark.parametrize(
    ("size", "untouched"),
    [
        (1600, torch.arange(1, 1600, 2)),  # few batches: every other sample
        (100, torch.cat([torch.arange(at, at + 100) for at in range(100, 1600, 200)])),
    ],
)
def test_half_of_the_samples_choose_nothing_and_test_the_choice(size, untouched):
    searched = torch.tensor([at for at in range(1600) if at not in set(untouched.tolist())])

    result = prune(Accuracy(in_batches(size)), target=AccuracyDrop(0.05))

    promise = result.promise
    lost, won, dense = counted(result, untouched)
    assert (promise.samples, promise.lost, promise.won) == (800, lost, won)
    assert promise.accuracy_dense == pytest.approx(dense)
    assert promise.accuracy == pytest.approx(dense - (lost - won) / 800)
    assert promise.drop == drop_bound(lost, won, 800)
    assert promise.aside
    assert promise.asked == pytest.approx(0.05)
    lost, won, dense = counted(result, searched)
    assert result.dense.accuracy == pytest.approx(dense)
    assert result.achieved.accuracy == pytest.approx(dense - (lost - won) / 800)
    assert result.achieved.accuracy >= dense - 0.05 - 1e-9
    assert result.samples == 800


def test_an_assured_search_keeps_the_margin_and_its_promise():
    evaluate, options = Accuracy([(X, LABELS)]), flexrel.PruneOptions(assured=True)
    asked = {"target": AccuracyDrop(0.05), "criterion": ["magnitude", "relevance", "flexrel:0.5"]}

    result = prune(evaluate, options=options, **asked)

    lost, won, _ = counted(result, torch.arange(0, 1600, 2))
    assert drop_bound(lost, won, 800, 0.999) <= 0.05
    assert result.promise.kept
    assert result.promise.aside
    plain = prune(evaluate, **asked)
    assert 0 < result.achieved.removed < plain.achieved.removed
    compared = flexrel.compare(result, network(), calibration=[CALIBRATION], evaluate=evaluate)
    bare = len(unnoted(result.packed, {}))
    assert all(one.bytes >= bare for one in compared.rivals)
    json.dumps(result.as_json())
    assert result.report()


def test_too_few_samples_for_a_margin_are_told():
    """The dense network itself is within 3.4 / 300 samples only: 0.999 of draws of no loss."""
    evaluate = Accuracy([(X[:300], LABELS[:300])])

    result = prune(evaluate, target=AccuracyDrop(0.045), options=flexrel.PruneOptions(assured=True))

    assert result.samples == 150
    assert any("no margin is kept for the promise" in line for line in result.warnings)


def test_the_promise_is_in_every_record():
    result = prune(Accuracy(in_batches(200)), target=AccuracyDrop(0.05))

    told = str(result.promise)
    assert re.search(r"drop ≤ \d+\.\d\d points with 95% confidence, on 800 samples", told)
    assert result.as_json()["promise"]["told"] == told
    assert result.as_json()["promise"]["kept"] is result.promise.kept
    assert json.loads(json.dumps(result.as_json()))["promise"]["samples"] == 800
    assert told in result.report()


def test_too_few_samples_set_nothing_aside_and_how_many_would_do_is_said():
    """Half of 12 / 0.005 = 2,400 samples may show a drop of 0.5 points at all."""
    result = prune(Accuracy(in_batches(200)), target=AccuracyDrop(0.005))

    assert result.samples == 1600
    assert result.promise.drop is None
    assert not result.promise.kept
    assert result.promise.needed == 2400
    assert "about 2,400 evaluation samples would do" in str(result.promise)


def test_a_floor_that_half_of_the_samples_miss_sets_nothing_aside_and_that_is_said():
    """Of 1,600 answers 80 are wrong, all of them in the half that would be searched with."""
    labels = answers(network(), X)
    labels[:160:2] = (labels[:160:2] + 1) % 3

    result = prune(Accuracy([(X, labels)]), target="accuracy>=92%")

    assert result.dense.accuracy == pytest.approx(0.95)
    assert result.samples == 1600
    assert result.promise is None
    assert any("accuracy is 0.9, below the 0.92 asked" in line for line in result.warnings)


def test_with_budgets_alone_nothing_is_chosen_on_any_sample():
    result = prune(Accuracy(in_batches(200)), budgets=[MACs(0.8)])

    lost, won, _ = counted(result, torch.arange(1600))
    assert (result.promise.samples, result.promise.lost, result.promise.won) == (1600, lost, won)
    assert result.promise.drop == drop_bound(lost, won, 1600)
    assert result.promise.asked is None
    assert result.samples == 1600
    assert "points with 95% confidence, on 1,600 samples" in str(result.promise)


def test_a_function_of_ones_own_and_nothing_at_all_promise_nothing():
    assert prune(lambda _: 0.9, target=AccuracyDrop(0.1)).promise is None
    assert prune(None, budgets=[MACs(0.8)]).promise is None


def test_rivals_are_searched_with_on_the_same_samples():
    evaluate = Accuracy(in_batches(200))
    criteria = ["magnitude", "relevance", "flexrel:0.5"]
    result = prune(evaluate, target=AccuracyDrop(0.05), criterion=criteria)

    compared = flexrel.compare(result, network(), calibration=[CALIBRATION], evaluate=evaluate)

    assert compared.rivals
    assert all(one.accuracy >= result.requested["accuracy"] - 1e-9 for one in compared.rivals)
    bare = len(unnoted(result.packed, {}))
    assert all(one.bytes >= bare for one in compared.rivals)


class Shuffling:
    """A loader that gives its samples in another order each time."""

    def __init__(self):
        self.draw = torch.Generator().manual_seed(0)

    def __iter__(self):
        order = torch.randperm(len(X), generator=self.draw)
        return iter(zip(X[order].split(100), LABELS[order].split(100), strict=True))


def test_samples_in_another_order_each_time_are_not_paired_and_that_is_said():
    result = prune(Accuracy(Shuffling()), target=AccuracyDrop(0.05))

    assert result.promise is None
    assert result.samples == 1600
    assert any("pass a loader with shuffle=False" in line for line in result.warnings)


SEEN = "on 800 samples that nothing was chosen on (8 lost, 1 won)"


@pytest.mark.parametrize(
    ("promise", "says"),
    [
        (
            Promise(0.0083, 0.01, 800, 8, 1),
            f"drop ≤ 0.83 points with 95% confidence, {SEEN}; asked was drop ≤ 1.00 points",
        ),
        (
            Promise(0.01271, 0.01, 800, 8, 1, needed=3400),
            (
                f"drop ≤ 1.28 points with 95% confidence, {SEEN}; too few samples to say drop "
                "≤ 1.00 points: about 3,400 evaluation samples would do"
            ),
        ),
        (
            Promise(0.0127, 0.008, 800, 8, 1),
            (
                f"drop ≤ 1.27 points with 95% confidence, {SEEN}; asked was drop ≤ 0.80 points, "
                "and on these it is 0.88"
            ),
        ),
        (Promise(0.0127, None, 800, 8, 1), f"drop ≤ 1.27 points with 95% confidence, {SEEN}"),
        (
            Promise(None, 0.01, needed=1200),
            (
                "drop ≤ 1.00 points can't be promised with 95% confidence: too few evaluation "
                "samples to set some aside: about 1,200 evaluation samples would do"
            ),
        ),
        (
            Promise(None, 0.0),
            "drop ≤ 0.00 points can't be promised with 95% confidence: no samples would do",
        ),
    ],
)
def test_a_promise_says_what_holds_and_what_would_be_needed(promise, says):
    assert str(promise) == says
    assert promise.kept is ("asked was drop ≤ 1.00" in says)


# --- an evaluation that is random ---------------------------------------------------------------


def test_a_random_evaluation_is_told_with_its_spread():
    """Five calls say 0.90 ... 0.94; their standard deviation is sqrt(2.5) hundredths."""
    said = iter([0.90, 0.91, 0.92, 0.93, 0.94, *[0.9] * 50])

    result = prune(lambda _: next(said), target=AccuracyDrop(0.05))

    (line,) = result.warnings
    assert "of the same network it says accuracy from 0.9 to 0.94 in 5 calls" in line
    assert "standard deviation 0.016" in line


def test_one_that_varies_by_more_than_the_target_allows_is_refused():
    said = iter([0.90, 0.91, 0.92, 0.93, 0.94])

    with pytest.raises(UsageError, match=r"and the target allows a change of 0\.01; give it a fi"):
        prune(lambda _: next(said), target=AccuracyDrop(0.01))


class Noisy:
    """Data that come with other noise each time."""

    def __init__(self):
        self.draw = torch.Generator().manual_seed(0)

    def __iter__(self):
        noise = torch.randn(X.shape, generator=self.draw)
        return iter([(X + noise, LABELS)])


def test_data_that_change_from_pass_to_pass_are_told_too():
    result = prune(Accuracy(Noisy()), budgets=[MACs(0.8)])

    assert any("evaluate is random" in line for line in result.warnings)
    assert result.promise is None
