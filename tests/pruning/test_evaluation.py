"""What an evaluation can't tell is refused or said, with the numbers; counted by hand."""

import json
import re

import pytest
import torch
from torch import nn

import flexrel
from flexrel import Accuracy, AccuracyDrop, Magnitude, Parameters, UsageError
from flexrel.pruning.evaluation import evaluation_data

CLASSES = 3
DRAW = torch.Generator().manual_seed(0)
X = torch.randn(90, 6, generator=DRAW)


def network():
    """A network of 3 class scores, the answers of which are the labels below."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def binary():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1, bias=False))


@torch.no_grad()
def answers(x):
    return network()(x).argmax(1)


def with_wrong(labels, count):
    """Return labels of which the first so many are another class."""
    return torch.cat([(labels[:count] + 1) % CLASSES, labels[count:]])


def prune(model, evaluate, **asked):
    request = {"criterion": Magnitude(), "recover": "none", **asked}
    return flexrel.prune(model, calibration=[X], evaluate=evaluate, **request)


def test_a_right_network_with_one_score_keeps_to_its_target():
    model = binary()
    with torch.no_grad():
        labels = (model(X) > 0).long().flatten()

    result = prune(model, Accuracy([(X, labels)]), target="accuracy-drop=5%")

    with torch.no_grad():
        right = float(((result.model(X) > 0).long().flatten() == labels).float().mean())
    assert result.dense.accuracy == 1.0
    assert result.achieved.accuracy == pytest.approx(right)
    assert right >= 0.95


@pytest.mark.parametrize("labels", [torch.full((90,), 99), torch.arange(90)])
@pytest.mark.parametrize("asked", [{"target": AccuracyDrop(0.01)}, {"budgets": [Parameters(0.8)]}])
def test_labels_that_cant_occur_are_refused(labels, asked):
    low, high = int(labels.min()), int(labels.max())

    with pytest.raises(
        UsageError, match=f"labels go from {low} to {high}, the network gives 3 classes"
    ):
        prune(network(), Accuracy([(X, labels)]), **asked)


def test_an_accuracy_no_better_than_chance_is_refused_where_a_target_is_on_it():
    """Of 90 labels 50 are 1, and 40 answers are right: 0.4444 is below 0.5556."""
    labels = torch.tensor([1] * 50 + [2] * 40)
    said = torch.cat([torch.zeros(50), torch.full((40,), 2)]).long()
    x = nn.functional.one_hot(said, 6).float()
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.bias.zero_()
            layer.weight.copy_(torch.eye(*layer.weight.shape))
    evaluate = Accuracy([(x, labels)])

    says = r"accuracy is 0\.4444, no better than the 0\.5556 .* of 2 labels, on 90 samples \(labels"
    with pytest.raises(UsageError, match=says) as caught:
        prune(model, evaluate, target=AccuracyDrop(0.1))
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match=says):
        flexrel.pack(model, "never", "auto", evaluate=evaluate, target=AccuracyDrop(0.1))

    (warning,) = prune(model, evaluate, budgets=[Parameters(0.8)]).warnings

    assert "no better than" in warning


@pytest.mark.parametrize(("accuracy", "drop"), [(0.0, 0.01), (0.3, 0.3), (0.02, 0.05), (0.0, 0.0)])
def test_an_accuracy_that_may_drop_to_nothing_is_refused(accuracy, drop, tmp_path):
    says = f"accuracy is {accuracy:.4g} and may drop by {drop:.4g}"

    with pytest.raises(UsageError, match=says):
        prune(network(), lambda _: accuracy, target=AccuracyDrop(drop))
    with pytest.raises(UsageError, match=says):
        flexrel.pack(
            network(),
            tmp_path / "m",
            "auto",
            evaluate=lambda _: accuracy,
            target=AccuracyDrop(drop),
        )
    assert not (tmp_path / "m").exists()


def test_samples_of_one_class_are_warned_of():
    x = X[answers(X) == 0]

    result = prune(network(), Accuracy([(x, [0] * len(x))]), target=AccuracyDrop(0.2))

    assert f"all {len(x)} evaluation samples that count have the same label" in result.warnings[0]
    assert result.as_json()["warnings"] == list(result.warnings)
    json.dumps(result.as_json())
    assert "have the same label" in result.report()


@pytest.mark.parametrize(
    ("samples", "wrong", "drop", "says"),
    [
        # sqrt(0.9 * 0.1 / 50) = 0.0424; 0.9 * 0.1 / 0.01**2 = 900
        (50, 5, 0.01, r"1 points is less .* 50 samples, 4\.24 points; 900 samples would do"),
        # no error at all: 0.99 * 0.01 / 0.01**2 = 99, and sqrt(0.99 * 0.01 / 50) = 0.0141
        (50, 0, 0.01, r"50 samples, 1\.41 points; 99 samples would do"),
        # sqrt(0.8 * 0.2 / 90) = 0.0422; 0.8 * 0.2 / 0.005**2 = 6400
        (90, 18, 0.005, r"0\.5 points is less .* 4\.22 points; 6,400 samples would do"),
        (90, 18, 0.0, "no number of samples tells"),
        (90, 18, 0.05, None),
        (50, 0, 0.05, None),
    ],
)
def test_a_target_finer_than_one_standard_error_is_warned_of(samples, wrong, drop, says):
    x = X[:samples]
    evaluate = Accuracy([(x, with_wrong(answers(x), wrong))])

    warnings = evaluation_data(evaluate, network(), (AccuracyDrop(drop),)).warnings

    assert len(warnings) == (says is not None)
    assert says is None or re.search(says, warnings[0])


def test_ignored_samples_do_not_count_as_measured():
    labels = answers(X)
    labels[:60] = -100

    result = prune(network(), Accuracy([(X, labels)]), target=AccuracyDrop(0.01))

    assert result.samples == 30
    assert result.warnings[0].startswith("60 of 90 evaluation samples are labelled -1 or -100")
    assert "measured on 30 samples" in result.warnings[1]


def test_a_function_of_ones_own_tells_nothing_to_warn_of():
    result = prune(network(), lambda _: 0.9, target=AccuracyDrop(0.001))

    assert (result.samples, result.warnings) == (None, ())
