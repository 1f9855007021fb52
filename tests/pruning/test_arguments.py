"""Texts among the arguments of `prune` ask for what the objects do; what is no argument is said."""

import pytest
import torch
from torch import nn

import flexrel
from flexrel import OBS, FlexRel, Magnitude, Relevance, UsageError
from flexrel.pruning import criteria_of
from flexrel.pruning.arguments import candidates
from flexrel.relevance import Attribution

DATA = [torch.randn(8, 6, generator=torch.Generator().manual_seed(0))]
GAMMA = Attribution("gamma", "norm")


def prune(**asked):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    return flexrel.prune(model, calibration=DATA, **{"budgets": ["macs=60%"], **asked})


def named(given, attribution=GAMMA):
    return criteria_of(given, "channel", "closed-form", attribution)


def test_criteria_are_named_as_plans_name_them():
    for made in (Magnitude(), OBS("norm"), Relevance("gamma", "norm")):
        assert named(made.name) == named([made.name]) == (made,)
    for delta, blend in ((0.25, "sum"), (0.5, "product")):
        made = FlexRel(delta, blend=blend, rule="gamma", output="norm")
        assert named(made.name) == (made,)
    assert named(["obs", Magnitude()]) == (OBS("norm"), Magnitude())


def test_without_a_criterion_the_candidates_stand_in():
    for nothing in (None, [], (), "auto"):
        assert named(nothing) == candidates("channel", "closed-form", GAMMA)


@pytest.mark.parametrize(
    "given", ["flexrel:50%", "obs:1k", "obs:", "obs:1:2", "flexrel:-1", "best", "flexrel:1:max", 3]
)
def test_a_criterion_that_is_none_is_refused_with_those_that_there_are(given, unchecked):
    with pytest.raises(UsageError, match="is not known; there are: auto, "):
        named([given])


def test_relevance_by_two_attributions_is_refused():
    class Greedy:
        name = "greedy"
        needs = frozenset({Attribution(), GAMMA})

        def scores(self, signals):
            yield from ()

    with pytest.raises(UsageError, match="'greedy' needs relevance by two attributions"):
        named(Greedy())


def test_prune_takes_texts_for_objects():
    by_text = prune(criterion="flexrel:0.3", budgets=["macs=60%", "sparsity=10%"])
    by_object = prune(criterion=FlexRel(0.3), budgets=[flexrel.MACs(0.6), flexrel.Sparsity(0.1)])

    assert by_text.packed == by_object.packed
    assert by_text.requested == by_object.requested


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"keep": "0"}, r"keep is the text '0'; pass a list"),
        (
            {"keep": [nn.Linear(1, 1)]},
            "keep has a Linear; pass names of layers, as model.named_mod",
        ),
        ({"options": {"multiple_of": 8}}, "options is a dict; pass a flexrel.PruneOptions"),
        ({"budgets": 7}, "budgets is a int; pass a list"),
        ({"budgets": [7]}, "7 is no budget that can be counted"),
        ({"target": "accuracy-drop=x", "evaluate": len}, "write it like accuracy-drop=1%"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_said_before_the_work(asked, said, unchecked):
    with pytest.raises(UsageError, match=said):
        prune(**asked)


# --- statistics that were made before -------------------------------------------------------------


def with_stats(stats, criterion):
    return prune(criterion=criterion, options=flexrel.PruneOptions(stats=stats))


def test_stats_that_are_given_are_not_measured_again():
    told = []
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    stats = flexrel.calibrate(model, DATA)
    options = flexrel.PruneOptions(stats=stats, progress=lambda stage, *_: told.append(stage))

    result = prune(criterion=Relevance(), options=options)

    assert "calibrating" not in told
    assert result.stats is stats


def test_stats_of_another_network_or_kind_are_refused():
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    other = nn.Sequential(nn.Linear(6, 14), nn.ReLU(), nn.Linear(14, 3))

    with pytest.raises(UsageError, match="of another network"):
        with_stats(flexrel.calibrate(other, DATA), Relevance())
    with pytest.raises(UsageError, match=r"made with rule 'gamma' .* needs rule 'gradient-input'"):
        with_stats(flexrel.calibrate(model, DATA, rule="gamma"), Relevance())
    with pytest.raises(UsageError, match=r"from output 'norm', .* needs .*'predicted'"):
        with_stats(flexrel.calibrate(model, DATA, output="norm"), Relevance(output="predicted"))
