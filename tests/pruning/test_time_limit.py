"""A call with a limit on time returns by then what it has, whole."""

import copy
import re
import time

import pytest
import torch
from torch import nn

import flexrel
from flexrel import AccuracyDrop, MACs, PruneOptions, UsageError
from flexrel.core.deadline import OutOfTimeError
from flexrel.repair import FineTune, reconstruct_
from networks import random_
from repairs import mlp, normal, plan_of

LAYERS = nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 4)


class Ticking:
    """A clock that goes on by a second with each step that is done, and stands still else."""

    def __init__(self):
        self.now = 0.0
        self.stages = []

    def __call__(self, stage, done, total):
        self.now += bool(done)
        self.stages.append(stage)


@pytest.fixture
def clock(monkeypatch):
    ticking = Ticking()
    monkeypatch.setattr(time, "monotonic", lambda: ticking.now)
    return ticking


def data(samples=400):
    torch.manual_seed(0)
    return list(torch.randn(samples, 12).split(50))


def pruned(clock, limit, **asked):
    options = PruneOptions(progress=clock, time_limit=limit)
    asked = {"budgets": [MACs(0.5)], **asked}
    model = random_(nn.Sequential(*LAYERS))
    return flexrel.prune(model, calibration=data(), options=options, **asked)


def same_values(one, other):
    found, expected = one.state_dict(), other.state_dict()
    return found.keys() == expected.keys() and all(
        map(torch.equal, found.values(), expected.values())
    )


@pytest.mark.parametrize("limit", [12, 20, 30, 40, 60, 80])
@pytest.mark.parametrize("values", ["float32", "int8"])
def test_a_budget_is_met_in_time(clock, limit, values):
    result = pruned(clock, limit, values=values)

    assert clock.now <= 1.1 * limit + 1
    assert result.achieved.macs <= 0.5 * result.dense.macs
    assert not any("too short" in line for line in result.warnings)
    assert result.model(data()[0]).isfinite().all()


def test_what_was_left_undone_is_said(clock):
    result = pruned(clock, 9)

    told = "\n".join(result.warnings)
    assert "refitted to few samples" in told
    [samples] = re.findall(r"relevance is that of (\d+) of 300 samples", told)
    assert int(samples) == result.stats.samples < 300
    assert any("obs was not tried" in line and "time was up" in line for line in result.warnings)


def test_where_there_is_no_time_to_repair_it_is_said(clock):
    result = pruned(clock, 1, criterion="magnitude")

    assert any("no time left to repair" in line for line in result.warnings)
    assert result.recovery == ()


def test_a_limit_that_no_call_keeps_to_is_told(clock):
    result = pruned(clock, 2)

    assert result.achieved.macs <= 0.5 * result.dense.macs
    [told] = [line for line in result.warnings if "too short" in line]
    assert f"the call took {clock.now:.1f} s" in told


def test_a_limit_far_off_changes_nothing(clock):
    without = pruned(clock, None)
    far = pruned(clock, 100_000)

    assert same_values(without.model, far.model)
    assert without.warnings == far.warnings


def labelled():
    torch.manual_seed(0)
    model = random_(nn.Sequential(*LAYERS))
    inputs = torch.randn(500, 12)
    with torch.no_grad():
        return [(inputs, model(inputs).argmax(1))]


@pytest.mark.parametrize("limit", [15, 40, 100, 200])
def test_a_target_is_kept_to_whenever_its_search_ends(clock, limit):
    result = pruned(clock, limit, budgets=(), target=AccuracyDrop(0.1), evaluate=labelled())

    assert clock.now <= 1.1 * limit + 1
    assert result.achieved.accuracy >= result.dense.accuracy - 0.1


def test_more_time_finds_smaller_networks(clock):
    sizes = [
        pruned(clock, limit, budgets=(), target=AccuracyDrop(0.1), evaluate=labelled()).achieved
        for limit in (15, 1000)
    ]

    assert sizes[0].bytes > sizes[1].bytes


def test_training_ends_in_time(clock):
    result = pruned(clock, 60, criterion="magnitude", recover=FineTune(100, data=labelled() * 20))

    assert clock.now <= 66
    step = result.recovery[-1]
    assert step.name == "finetune:100"
    assert any("the time was up" in note for note in step.notes)


def late_after(steps):
    def tell(stage, done, total):
        if done == steps:
            raise OutOfTimeError("the time was up")

    return tell


def test_calibration_that_ends_is_that_of_the_batches_read():
    model, batches = random_(nn.Sequential(*LAYERS)), data()

    found = flexrel.calibrate(model, batches, progress=late_after(3))

    expected = flexrel.calibrate(model, batches[:3])
    assert found.samples == 150
    assert found.keys() == expected.keys()
    for name, layer in expected.items():
        assert torch.equal(found[name].output_absolute, layer.output_absolute)


def test_layers_that_a_repair_does_not_reach_stay_as_they_were():
    dense = mlp()
    inputs = normal(200, *dense[0].weight.shape[1:])
    plan = plan_of(dense, inputs)
    cut = flexrel.apply(dense, plan)
    before = copy.deepcopy(cut)

    made, refused = reconstruct_(cut, dense, plan, [inputs], late_after(1))

    assert len(made) <= 1
    assert set(refused.values()) == {"the time was up"}
    for layer in refused:
        assert same_values(cut.get_submodule(layer), before.get_submodule(layer))


@pytest.mark.parametrize("limit", [0, "soon", -3])
def test_a_limit_that_is_no_time_is_refused_before_work_starts(clock, limit):
    with pytest.raises(UsageError, match="time_limit"):
        pruned(clock, limit)
    assert not clock.stages
