"""Saliency counts what is chosen of a network's outputs, as relevance does."""

import pytest
import torch
from tests.networks import batch
from torch import nn

import flexrel
from flexrel import OBS, Parameters, UsageError
from flexrel.criteria import measure_saliency
from flexrel.pruning import criteria_of
from flexrel.relevance import Attribution
from flexrel.structure import analyse

X = torch.randn(64, 5, generator=torch.Generator().manual_seed(1))


class Heads(nn.Module):
    """Hidden neurons 0 to 3 make "logits", 4 to 7 "depth"."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(5, 8)
        self.heads = nn.Linear(8, 5)
        with torch.no_grad():
            self.heads.weight[:3, 4:] = 0
            self.heads.weight[3:, :4] = 0
        self.form = form

    def forward(self, x):
        made = self.heads(self.trunk(x).relu())
        return self.form(made[:, :3], made[:, 3:])


def as_dict(logits, depth):
    return {"logits": logits, "depth": depth}


def saliency_of(model, data, **how):
    graph = analyse(model, batch(X[:2]), "channel")
    (saliency,) = measure_saliency(model, graph, data, **how)[0].values()
    return saliency


def depth(result, labels):
    assert labels is None or len(labels) == len(result["depth"])
    return result["depth"].square().sum(1)


@pytest.mark.parametrize(
    ("output", "idle"),
    [("auto", slice(4, 8)), ("norm", slice(4, 8)), ("predicted", slice(4, 8)), (depth, slice(4))],
)
def test_units_that_make_none_of_the_outputs_chosen_are_worth_nothing(output, idle):
    found = saliency_of(Heads(as_dict), [X], output=output)

    assert found[idle].max() < 1e-6 * found.max()
    worth = torch.ones(8, dtype=torch.bool)
    worth[idle] = False
    assert found[worth].min() > 1e-4 * found.max()


def test_a_criterion_says_which_outputs_count():
    request = {"calibration": [X], "budgets": [Parameters(0.6)], "recover": "none"}

    by_logits = flexrel.prune(Heads(as_dict), criterion=OBS(), **request)
    by_depth = flexrel.prune(Heads(as_dict), criterion=OBS(output=depth), **request)
    both = flexrel.prune(Heads(as_dict), criterion=[OBS(), OBS(output=depth)], **request)

    assert int(by_logits.plan.masks["trunk"][:4].sum()) == 4
    assert int(by_depth.plan.masks["trunk"][4:].sum()) == 4
    assert both.criterion in (OBS(), OBS(output=depth))


class OneOf(nn.Module):
    """One score alone of a classifier."""

    def __init__(self, classifier, at):
        super().__init__()
        self.trunk, self.head = classifier[0], nn.Linear(8, 1)
        with torch.no_grad():
            self.head.weight.copy_(classifier[2].weight[at : at + 1])
            self.head.bias.copy_(classifier[2].bias[at : at + 1])

    def forward(self, x):
        return self.head(self.trunk(x).relu())


@pytest.mark.parametrize(("output", "at"), [("label", 1), ("predicted", 2)])
def test_the_score_chosen_of_a_classifier_is_that_of_a_network_with_no_other(output, at):
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        classifier[2].bias[2] += 50  # always predicted
    data = [(X, torch.full((64,), at))]

    found = saliency_of(classifier, data, output=output)

    assert torch.allclose(found, saliency_of(OneOf(classifier, at), data), rtol=1e-4)
    assert not torch.allclose(found, saliency_of(classifier, data), rtol=0.1)


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_of_several_outputs_each_is_weighed_by_its_own_size(unit):
    expected = saliency_of(Heads(lambda one, two: (one, two)), [X])
    found = saliency_of(Heads(lambda one, two: (one, unit * two)), [X])
    assert torch.allclose(found, expected, rtol=1e-3)


def test_labels_are_asked_for_where_they_count():
    with pytest.raises(UsageError, match="output='label' needs labels, but batch 0"):
        flexrel.prune(
            Heads(as_dict), calibration=[X], budgets=[Parameters(0.6)], criterion=OBS("label")
        )


def test_an_output_that_there_is_none_of_is_refused():
    with pytest.raises(UsageError, match="output 'largest' is not known"):
        OBS("largest")


def test_obs_by_name_takes_the_output_that_is_asked_for():
    attribution = Attribution(output="predicted")
    (named,) = criteria_of("obs", "channel", "closed-form", attribution)
    assert named == OBS(output="predicted")
    assert OBS(output="predicted") in criteria_of("auto", "channel", "closed-form", attribution)
