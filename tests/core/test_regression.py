"""Errors of a regression: as scikit-learn has them, from data or by `flexrel.Regression`."""

import numpy as np
import pytest
import torch
from torch import nn

import flexrel
from flexrel import Accuracy, Regression
from flexrel.core.evaluate import evaluate_of
from flexrel.errors import UsageError

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(90, 4, generator=DRAW)
Y = X[:, :2] * 3 + torch.randn(90, 2, generator=DRAW)
BATCHES = list(zip(X.split(40), Y.split(40), strict=True))


def network(outputs=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, outputs))


@torch.no_grad()
def test_errors_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    said = network()(X).numpy()

    found = Regression(BATCHES)(network())

    assert found["mse"] == pytest.approx(metrics.mean_squared_error(Y, said), rel=1e-5)
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(Y, said), rel=1e-5)
    assert found["r2"] == pytest.approx(metrics.r2_score(Y, said), rel=1e-4)


@torch.no_grad()
def test_labels_that_are_not_known_are_left_out():
    labels = Y[:, :1].clone()
    labels[::3] = torch.nan
    known = np.arange(90) % 3 != 0
    said = network(1)(X)[:, 0].numpy()[known]
    truth = Y[:, 0].numpy()[known]

    found = Regression([(X, labels[:, 0])])(network(1))

    assert found["mse"] == pytest.approx(float(np.square(said - truth).mean()), rel=1e-5)
    share = np.square(said - truth).sum() / np.square(truth - truth.mean()).sum()
    assert found["r2"] == pytest.approx(float(1 - share), rel=1e-4)


@pytest.mark.parametrize(
    ("labels", "outputs", "kind"),
    [
        (Y, "auto", Regression),
        (Y.round(), "auto", Accuracy),
        (Y.round(), "values", Regression),
        (Y.argmax(1), "auto", Accuracy),
        (Y.softmax(1), "auto", Accuracy),  # probabilities of classes
    ],
)
def test_data_are_measured_as_they_are_labelled(labels, outputs, kind):
    assert type(evaluate_of([(X, labels)], outputs)) is kind


def test_prune_measures_a_regression_and_keeps_to_a_target_on_it():
    result = flexrel.prune(
        network(), calibration=[X], evaluate=BATCHES, target="mse+50%", criterion="magnitude"
    )

    dense, now = Regression(BATCHES)(network()), Regression(BATCHES)(result.model)
    assert result.outputs == "values"
    assert result.dense.metrics == pytest.approx(dense)
    assert result.achieved.metrics == pytest.approx(now)
    assert now["mse"] <= 1.5 * dense["mse"]
    assert result.achieved.parameters < result.dense.parameters


@pytest.mark.parametrize(
    ("batches", "says"),
    [
        ([], "is empty"),
        ([X], "has no labels"),
        ([(X, Y[:, 0])], r"have the shape \[90\], the network's values \[90, 2\]"),
        ([(X, torch.full((90, 2), torch.nan))], "no label of the evaluation set is a number"),
    ],
)
def test_data_that_say_nothing_of_values_are_refused(batches, says):
    with pytest.raises(UsageError, match=says):
        Regression(batches)(network())


def test_an_iterator_is_refused():
    with pytest.raises(UsageError, match="gone after one use"):
        Regression(iter(BATCHES))
