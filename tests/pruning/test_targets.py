"""Networks are pruned to targets on any metric, counted here by hand from the network returned."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional

import flexrel
from flexrel import (
    AccuracyDrop,
    BudgetError,
    Ceiling,
    MACs,
    Magnitude,
    PruneOptions,
    UsageError,
    Worsening,
)

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(120, 6, generator=DRAW)


def network():
    """A network that is sure of its answers, which are the labels below."""
    torch.manual_seed(0)
    last = nn.Linear(16, 3)
    layers = [nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), last]
    with torch.no_grad():
        last.weight *= 20
    return nn.Sequential(*layers)


with torch.no_grad():
    LABELS = network()(X).argmax(1)


@torch.no_grad()
def loss_of(model):
    return functional.cross_entropy(model(X), LABELS)


@torch.no_grad()
def numbers_of(model):
    loss = float(loss_of(model))
    right = float((model(X).argmax(1) == LABELS).float().mean())
    return {"accuracy": right, "loss": loss, "mAP": 100 * right}


def prune(evaluate, **asked):
    request = {"criterion": Magnitude(), "recover": "none", **asked}
    return flexrel.prune(network(), calibration=[X], evaluate=evaluate, **request)


@pytest.mark.parametrize(
    ("target", "most"),
    [
        (Worsening("loss", 0.1, lower_is_better=True), lambda dense: dense + 0.1),
        ("loss+20%", lambda dense: 1.2 * dense),
        ("loss<=0.5", lambda dense: 0.5),
    ],
)
def test_a_loss_alone_is_kept_to_and_more_would_break_it(target, most):
    dense = float(loss_of(network()))

    result = prune(loss_of, target=target)

    assert result.achieved.metrics == {"loss": pytest.approx(float(loss_of(result.model)))}
    assert dense < 1.0
    assert result.achieved.metrics["loss"] <= most(dense)
    assert 0 < result.achieved.removed < 0.9
    assert result.achieved.accuracy is None
    (told,) = result.as_json()["targets"]
    assert told == {
        "metric": "loss",
        "lower_is_better": True,
        "limit": pytest.approx(most(dense)),
        "dense": pytest.approx(dense),
        "achieved": pytest.approx(float(loss_of(result.model))),
    }
    json.dumps(result.as_json())
    assert "loss" in result.report()


def test_several_targets_are_all_kept_to():
    asked = ["accuracy-drop=10%", "loss<=0.6", "mAP-30"]

    result = prune(numbers_of, target=asked)

    found = numbers_of(result.model)
    dense = numbers_of(network())
    assert result.achieved.metrics == pytest.approx(found)
    assert result.dense.metrics == pytest.approx(dense)
    assert found["accuracy"] >= dense["accuracy"] - 0.1
    assert found["loss"] <= 0.6
    assert found["mAP"] >= dense["mAP"] - 30
    alone = [prune(numbers_of, target=one).achieved.removed for one in asked]
    assert result.achieved.removed == min(alone)


def test_what_the_budgets_leave_of_a_metric_is_told_where_it_is_too_little():
    with pytest.raises(BudgetError, match=r"asked for at most .* loss, but the closest") as caught:
        prune(loss_of, target=Ceiling("loss", 0.45), budgets=[MACs(0.1)])

    assert caught.value.resource == "loss"
    assert caught.value.closest > 0.45
    assert not caught.value.at_least


@pytest.mark.parametrize(
    ("evaluate", "target", "says"),
    [
        (lambda _: {"accuracy": 0.9}, "loss<=0.3", "target on 'loss', but evaluate tells accuracy"),
        (lambda _: 0.9, "loss<=1,accuracy-drop=1%", "evaluate returned a number"),
        (lambda _: {"accuracy": 0.88}, "accuracy>=90%", r"at least 0\.9, .* came has 0\.88"),
        (flexrel.Accuracy([(X, LABELS)]), "loss<=0.3", "evaluate tells accuracy"),
        (None, "loss<=0.3", "a target on loss needs evaluate="),
    ],
)
def test_targets_that_make_no_sense_with_the_evaluation_are_refused(evaluate, target, says):
    with pytest.raises(UsageError, match=says):
        prune(evaluate, target=target)


def test_what_is_to_be_least_may_be_multiply_adds():
    asked = {"target": AccuracyDrop(0.1), "criterion": ["magnitude", "relevance", "flexrel:0.5"]}
    options = PruneOptions(minimise="macs")

    result = prune(numbers_of, options=options, **asked)

    alone = [
        prune(numbers_of, options=options, **{**asked, "criterion": one}).achieved.macs
        for one in asked["criterion"]
    ]
    assert result.achieved.macs == min(alone)
    assert result.options["minimise"] == "MACs"
    assert prune(
        numbers_of, options=PruneOptions(minimise=MACs.resource), **asked
    ).achieved.macs == (result.achieved.macs)


@pytest.mark.parametrize(
    ("minimise", "says"),
    [("flops", "there are: bytes, macs, parameters"), (flexrel.Sparsity.resource, "at least")],
)
def test_what_cant_be_least_is_refused(minimise, says):
    with pytest.raises(UsageError, match=says):
        prune(numbers_of, target=AccuracyDrop(0.1), options=PruneOptions(minimise=minimise))


def test_packing_keeps_to_any_metric(tmp_path):
    dense = float(loss_of(network()))

    report = flexrel.pack(network(), tmp_path / "m", "auto", evaluate=loss_of, target="loss+1%")

    back = flexrel.load(tmp_path / "m", into=network())
    assert report.metrics_before == {"loss": pytest.approx(dense)}
    assert report.metrics == {"loss": pytest.approx(float(loss_of(back)))}
    assert float(loss_of(back)) <= 1.01 * dense
    assert report.values != "float32"
    assert report.accuracy is None


def test_a_target_that_is_missed_is_told_with_the_samples_it_was_measured_on():
    evaluate = flexrel.Accuracy([(X, LABELS)])

    with pytest.raises(BudgetError, match="That is what the budgets leave on 120 samples; raise"):
        prune(evaluate, target=AccuracyDrop(0.01), budgets=[MACs(0.1)])
