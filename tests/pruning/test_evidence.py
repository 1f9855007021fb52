"""What a result shows besides its measurements: units' scores, the repair, answers that changed."""

import json

import pytest
import torch
from torch import nn

import flexrel
from flexrel import Accuracy, AccuracyDrop, Magnitude
from flexrel.criteria import Relevance

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(400, 6, generator=DRAW)
CALIBRATION = torch.randn(64, 6, generator=DRAW)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))


@torch.no_grad()
def answers(model, x):
    return model(x).argmax(1)


LABELS = answers(network(), X)
LABELS = torch.where(torch.rand(len(X), generator=DRAW) < 0.05, (LABELS + 1) % 3, LABELS)
BATCHES = list(zip(X.split(100), LABELS.split(100), strict=True))


def prune(evaluate=None, **asked):
    request = {"criterion": Magnitude(), "budgets": ["sparsity=60%"], **asked}
    return flexrel.prune(network(), calibration=[CALIBRATION], evaluate=evaluate, **request)


# --- answers that changed -----------------------------------------------------------------------


def test_answers_that_changed_are_those_that_two_networks_give():
    labels = torch.where(torch.arange(len(X)) % 10 == 3, -1, LABELS)  # left out of the count

    result = prune(Accuracy([(X, labels)]), recover="none")

    dense, pruned, known = answers(network(), X), answers(result.model, X), labels >= 0
    lost = known & (dense == labels) & (pruned != labels)
    won = known & (dense != labels) & (pruned == labels)
    changed = result.evidence.changed
    assert (changed.samples, changed.lost, changed.won) == (360, int(lost.sum()), int(won.sum()))
    assert changed.lost > 12
    first = lost.nonzero().flatten().tolist()[:12]
    assert [one.place for one in changed.shown] == first
    for one in changed.shown:
        at = one.place
        assert (one.label, one.dense, one.pruned) == (labels[at], dense[at], pruned[at])


def test_the_classes_that_lost_most_come_first():
    result = prune(Accuracy(BATCHES), recover="none")

    dense, pruned = (answers(model, X) == LABELS for model in (network(), result.model))
    expected = []
    for label in range(3):
        of = label == LABELS
        counts = int(of.sum()), int((dense & of).sum()), int((pruned & of).sum())
        if counts[2] < counts[1]:
            expected.append((label, *counts))
    expected.sort(key=lambda one: (one[3] - one[2]) / one[1])
    found = result.evidence.changed.classes
    assert [(one.label, one.samples, one.right_dense, one.right) for one in found] == expected
    assert expected


def test_only_samples_that_nothing_was_chosen_on_are_compared_where_some_are_set_aside():
    result = prune(Accuracy(BATCHES), target=AccuracyDrop(0.1), budgets=())

    changed, promise = result.evidence.changed, result.promise
    assert promise.aside
    assert (changed.samples, changed.lost, changed.won) == (200, promise.lost, promise.won)


def one_score():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 1))


@torch.no_grad()
def test_one_score_a_sample_tells_two_classes():
    labels = (one_score()(X)[:, 0] > 0).float()  # as BCEWithLogitsLoss takes them
    request = {"budgets": ["sparsity=75%"], "criterion": "magnitude", "recover": "none"}

    result = flexrel.prune(
        one_score(), calibration=[CALIBRATION], evaluate=[(X, labels)], **request
    )

    now, changed = (result.model(X)[:, 0] > 0).float(), result.evidence.changed
    assert changed.lost == int((now != labels).sum()) > 0
    rows = {one.label: (one.samples, one.right_dense, one.right) for one in changed.classes}
    for label, row in rows.items():
        of = labels == label
        count = int(of.sum())
        assert row == (count, count, int((now[of] == label).sum()))
    assert {*rows} == {label for label in (0, 1) if (now[labels == label] != label).any()}
    for one in changed.shown:
        assert (one.label, one.dense, one.pruned) == (labels[one.place], one.label, now[one.place])


@torch.no_grad()
def test_of_several_labels_a_sample_those_are_told_that_lost_f1():
    metrics = pytest.importorskip("sklearn.metrics")
    truth = (network()(X) > 0.2).long()
    truth[:, 2] = 0  # that no sample has
    model = network()

    result = prune([(X, truth)], budgets=["sparsity=75%"], recover="none")

    changed = result.evidence.changed
    said = [(one(X) > 0).long().numpy() for one in (model, result.model)]
    f1 = [metrics.f1_score(truth, one, average=None, zero_division=0) for one in said]
    assert changed.classes == ()
    assert changed.labels
    falls = [one.f1 - one.f1_dense for one in changed.labels]
    assert falls == sorted(falls)
    for one in changed.labels:
        right = [int((says[:, one.label] == truth[:, one.label].numpy()).sum()) for says in said]
        assert (one.samples, one.having) == (400, int(truth[:, one.label].sum()))
        assert [one.right_dense, one.right] == right
        assert [one.f1_dense, one.f1] == pytest.approx([each[one.label] for each in f1])
    micro = [metrics.f1_score(truth, one, average="micro") for one in said]
    assert changed.f1 == pytest.approx(micro)
    for one in changed.shown:
        told = [truth[one.place].numpy(), *(says[one.place] for says in said)]
        expected = [tuple(row.nonzero()[0].tolist()) for row in told]
        assert [one.label, one.dense, one.pruned] == expected


@torch.no_grad()
def test_labels_that_are_not_known_count_neither_way():
    truth = torch.tensor([[1, -1], [0, 1], [1, 0], [0, 0]] * 100)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 2))

    result = flexrel.prune(
        model,
        calibration=[CALIBRATION],
        evaluate=[(X, truth)],
        budgets=["sparsity=75%"],
        recover="none",
        criterion="magnitude",
    )

    for one in result.evidence.changed.labels:
        known = truth[:, one.label] != -1
        right = (result.model(X)[known, one.label] > 0) == truth[known, one.label].bool()
        assert (one.samples, one.right) == (int(known.sum()), int(right.sum()))


def test_of_a_function_no_answers_are_told():
    assert prune(lambda _: 0.5).evidence.changed is None
    assert prune().evidence.changed is None


# --- before the repair --------------------------------------------------------------------------


def test_the_accuracy_before_the_repair_is_that_of_the_network_as_it_was_cut():
    result = prune(Accuracy(BATCHES))

    cut = flexrel.apply(network(), result.plan)
    told = result.evidence.unrepaired
    assert told == pytest.approx(float((answers(cut, X) == LABELS).float().mean()))
    assert told < result.achieved.accuracy
    assert result.as_json()["achieved"]["accuracy_unrepaired"] == told


@pytest.mark.parametrize(
    ("evaluate", "recover"),
    [(None, "closed-form"), (lambda _: {"loss": 1.0}, "closed-form"), (lambda _: 0.5, "none")],
)
def test_without_a_repair_or_an_accuracy_there_is_none_before_it(evaluate, recover):
    assert prune(evaluate, recover=recover).evidence.unrepaired is None


# --- units' scores ------------------------------------------------------------------------------


def test_units_are_shown_with_the_magnitude_of_their_weights_and_their_relevance():
    result = prune(criterion=Relevance())

    (scores,) = result.evidence.scores
    weight = network()[0].weight.detach()
    assert (scores.name, scores.unit, scores.units) == ("0", "channels", 24)
    assert scores.magnitude == pytest.approx(weight.square().mean(1).sqrt().tolist(), rel=1e-3)
    assert list(scores.kept) == result.plan.masks["0"].tolist()
    # by relevance alone, over parameters alike in one layer, those that stay have the most
    kept, gone = (
        [r for r, stays in zip(scores.relevance, scores.kept, strict=True) if stays is which]
        for which in (True, False)
    )
    assert min(kept) >= max(gone)


def test_of_many_units_400_are_shown_spread_over_the_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 1200), nn.ReLU(), nn.Linear(1200, 3))

    result = flexrel.prune(
        model,
        calibration=[CALIBRATION],
        budgets=["sparsity=60%"],
        criterion=Relevance(),
        recover="none",
    )

    (scores,) = result.evidence.scores
    at = torch.linspace(0, 1199, 400).long()
    assert scores.units == 1200
    assert list(scores.kept) == result.plan.masks["0"][at].tolist()
    rows = model[0].weight.detach().square().mean(1).sqrt()[at]
    assert scores.magnitude == pytest.approx(rows.tolist(), rel=1e-3)


@pytest.mark.parametrize("granularity", ["element", "2:4", "block:2x2"])
def test_scores_of_zeros_are_those_of_their_masks_units(granularity):
    result = prune(criterion=Relevance(), granularity=granularity, budgets=["sparsity=30%"])

    for scores in result.evidence.scores:
        mask = result.plan.masks[scores.name].flatten()
        assert scores.units == len(mask)
        assert list(scores.kept) == mask.tolist()


def test_where_no_relevance_was_measured_no_scores_are_shown():
    assert prune(criterion=Magnitude()).evidence.scores == ()


def test_evidence_is_in_the_record():
    result = prune(Accuracy(BATCHES), criterion=Relevance())

    told = json.loads(json.dumps(result.as_json(), allow_nan=False))

    assert [one["name"] for one in told["layers"]] == ["0", "2", ""]
    assert (told["layers"][0]["width_dense"], told["layers"][0]["width"]) == (24, 9)
    assert len(told["scores"][0]["kept"]) == 24
    assert told["changed"]["samples"] == 400
