"""How hard `prune` tries: what each effort measures, repairs and compares."""

import pytest
import torch
from torch import nn

import flexrel
from flexrel import OBS, MACs, Magnitude, PruneOptions, UsageError
from flexrel.pruning import EFFORTS
from flexrel.repair import ClosedForm
from networks import random_

LAYERS = nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 4)


class Aside(nn.Sequential):
    """Runs where no gradient is kept."""

    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


def data(samples=400):
    torch.manual_seed(0)
    return list(torch.randn(samples, 12).split(50))


def pruned(monkeypatch, effort, *, samples=400, kind=nn.Sequential, **asked):
    """Return the result, how many samples each repair was fitted to, and the stages told."""
    fitted, stages = [], []
    whole = ClosedForm.__call__

    def counted(self, network, dense, plan, batches, *rest):
        fitted.append((sum(len(batch.args[0]) for batch in batches), self.rows))
        return whole(self, network, dense, plan, batches, *rest)

    monkeypatch.setattr(ClosedForm, "__call__", counted)
    options = PruneOptions(effort=effort, progress=lambda what, *_: stages.append(what))
    asked = {"budgets": [MACs(0.5)], **asked}
    model = random_(kind(*LAYERS))
    result = flexrel.prune(model, calibration=data(samples), options=options, **asked)
    return result, fitted, set(stages)


def test_fast_tries_one_criterion_and_repairs_once(monkeypatch):
    result, fitted, stages = pruned(monkeypatch, "fast")

    assert result.criterion == OBS()
    assert [samples for samples, _ in fitted] == [300]
    assert "calibrating" not in stages  # no relevance
    assert result.achieved.macs <= 0.5 * result.dense.macs


@pytest.mark.parametrize("criterion", ["auto", [], ("auto",)])
def test_fast_tries_one_where_auto_is_written_out_too(monkeypatch, criterion):
    result, *_ = pruned(monkeypatch, "fast", criterion=criterion)

    assert [one.name for one in result.request.criteria] == ["obs", "magnitude"]


def test_fast_tries_all_criteria_that_are_named(monkeypatch):
    result, *_ = pruned(monkeypatch, "fast", criterion=[Magnitude(), "relevance"])

    assert [one.name for one in result.request.criteria] == ["magnitude", "relevance"]


def test_fast_takes_what_can_be_scored(monkeypatch):
    result, *_ = pruned(monkeypatch, "fast", kind=Aside)

    assert result.criterion == Magnitude()


def test_default_compares_on_few_samples_and_repairs_at_most_two_in_full(monkeypatch):
    _, fitted, _ = pruned(monkeypatch, "default")

    few = [samples for samples, _ in fitted if samples < 300]
    assert few == [64] * 4
    assert 1 <= len(fitted) - len(few) <= 2


def test_of_few_samples_all_are_used_and_nothing_is_repaired_twice(monkeypatch):
    _, fitted, _ = pruned(monkeypatch, "default", samples=100)

    assert [samples for samples, _ in fitted] == [75] * 4


def test_thorough_repairs_each_in_full(monkeypatch):
    result, fitted, _ = pruned(monkeypatch, "thorough")

    assert [samples for samples, _ in fitted] == [300] * 4
    assert min(rows for _, rows in fitted) > ClosedForm().rows
    names = ("obs", "flexrel:0.5", "magnitude", "relevance")
    alone = [pruned(monkeypatch, "thorough", criterion=name)[0] for name in names]
    assert result.achieved.divergence == min(one.achieved.divergence for one in alone)


def test_criteria_that_are_named_are_all_tried_whatever_the_effort(monkeypatch):
    result, fitted, _ = pruned(monkeypatch, "fast", criterion=["magnitude", "relevance"])

    assert len(fitted) >= 3
    assert result.criterion.name in ("magnitude", "relevance")


@pytest.mark.usefixtures("unchecked")
def test_an_effort_that_is_not_known_is_refused(monkeypatch):
    with pytest.raises(UsageError, match=f"effort 'most'.*{', '.join(EFFORTS)}"):
        pruned(monkeypatch, "most")
