"""What was measured of a network on data is kept, and measured anew when anything else is."""

import pytest
import torch
from torch import nn

import flexrel
from flexrel import MACs, PruneOptions, UsageError
from networks import random_


def layers():
    return nn.Sequential(
        nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 4)
    )


MEASURING = {"calibrating", "measuring K-FAC factors", "refitting readers", "measuring saliency"}


def data(seed=0):
    torch.manual_seed(seed)
    return list(torch.randn(80, 12).split(20))


def pruned(cache, *, model=None, batches=None, stop=None, budget=0.5, **asked):
    """Return the result, and which of what is measured was."""
    stages = set()

    def tell(stage, done, total):
        stages.add(stage)
        if stage == stop:
            raise KeyboardInterrupt

    options = PruneOptions(progress=tell, cache=cache, **asked.pop("options", {}))
    model = model or random_(layers())
    asked = {"budgets": [MACs(budget)], "criterion": ["obs", "flexrel:0.5"], **asked}
    result = flexrel.prune(model, calibration=batches or data(), options=options, **asked)
    return result, stages & MEASURING


def test_what_was_measured_is_measured_once(tmp_path):
    first, measured = pruned(tmp_path / "cache")
    again, nothing = pruned(tmp_path / "cache")
    without, _ = pruned(None)

    assert measured == MEASURING
    assert nothing == set()
    for result in (again, without):
        assert result.criterion == first.criterion
        assert all(map(torch.equal, result.plan.masks.values(), first.plan.masks.values()))
        assert result.achieved == first.achieved


def test_another_budget_needs_no_measurement(tmp_path):
    pruned(tmp_path)

    assert pruned(tmp_path, budget=0.3)[1] == set()


def changed(model):
    with torch.no_grad():
        model[2].weight[3, 4] += 1e-6
    return model


@pytest.mark.parametrize(
    "other",
    [
        {"model": changed(random_(layers()))},
        {"batches": data(1)},
        {"batches": data()[:3]},
        {"batches": [torch.cat(data())]},
        {"seed": 1},
        {"keep": ["0"]},
    ],
)
def test_where_anything_else_is_given_it_is_measured_anew(tmp_path, other):
    pruned(tmp_path)

    assert "refitting readers" in pruned(tmp_path, **other)[1]


def test_a_stopped_call_leaves_what_it_had_measured_to_the_end(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        pruned(tmp_path, stop="refitting readers")

    assert pruned(tmp_path)[1] == MEASURING - {"calibrating"}


def test_what_a_limit_on_time_ended_is_not_kept(tmp_path):
    pruned(tmp_path, options={"time_limit": 1e-9})

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, "half"])
def test_damaged_files_count_as_none_and_are_replaced(tmp_path, damage):
    first, _ = pruned(tmp_path)
    for file in tmp_path.iterdir():
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] if damage == "half" else damage)

    again, measured = pruned(tmp_path)

    assert measured == MEASURING
    assert again.achieved == first.achieved
    assert pruned(tmp_path)[1] == set()


def test_rules_of_the_callers_own_are_measured_each_time(tmp_path):
    criterion = flexrel.Relevance(rule={"*": "gamma"})

    for _ in range(2):
        assert "calibrating" in pruned(tmp_path, criterion=criterion)[1]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(UsageError, match=r"cache='.*file' is a file"):
        pruned(tmp_path / "file")
