"""Networks of several sizes: what each is, what is on the front, and what a stopped sweep keeps."""

import os

import pytest
import torch
from torch import nn

import flexrel
from flexrel import PruneOptions, UsageError
from flexrel.pruning import sweeper
from networks import random_

pytest.importorskip("optuna", reason="it comes with the extra 'sweep'")


def network(hidden=16):
    """It takes 10 multiply-adds for each of its hidden units."""
    return random_(nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 4)))


X = [torch.randn(32, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
LABELLED = [(x, network()(x).argmax(1)) for x in X]


def swept(folder, *, model=None, **asked):
    """A sweep that takes little time: nothing is measured or repaired."""
    quick = {"criterion": "magnitude", "recover": "none"}
    usual = {"calibration": X, "evaluate": LABELLED, "resource": "macs", "points": 3, **quick}
    return flexrel.sweep(model or network(), folder=folder, **{**usual, **asked})


@pytest.fixture
def made(monkeypatch):
    """The budgets that networks were made for."""
    budgets = []

    def counted(*args, **asked):
        result = flexrel.prune(*args, **asked)
        budgets.extend(asked["budgets"])
        return result

    monkeypatch.setattr(sweeper, "prune", counted)
    return budgets


def test_points_lie_evenly_in_the_logarithm_between_dense_and_the_least(tmp_path):
    """Of 160 multiply-adds 10 are the least, a 16th: halves in between."""
    found = swept(tmp_path)

    assert [one.budget for one in found.points] == ["macs=50.0%", "macs=25.0%", "macs=12.5%"]
    assert [one.reached.amounts["macs"] for one in found.points] == [80, 40, 20]
    assert found.dense.amounts["macs"] == 160
    assert found.dense.metrics == {"accuracy": 1.0}


def test_sparsity_can_be_swept_and_the_sparsest_comes_first(tmp_path):
    """15 of 16 hidden units can go, which leaves a 16th: halves in between."""
    found = swept(tmp_path, resource="sparsity")

    budgets = ["sparsity=50.0%", "sparsity=75.0%", "sparsity=87.5%"]
    assert [one.budget for one in found.points] == budgets
    assert [one.reached.amounts["sparsity"] for one in found.points] == [0.5, 0.75, 0.875]
    assert found.dense.amounts["sparsity"] == 0
    front = [one.budget for one in found.front()]
    assert front == sorted(front, reverse=True)
    assert [one.budget for one in found.front("macs")] == front
    more = swept(tmp_path, resource="sparsity", trials=2)
    assert {one.granularity for one in more.points} == {"channel"}


def test_each_point_is_what_its_call_makes(tmp_path):
    options = PruneOptions(allocation="per-layer")
    asked = {"granularity": "element", "seed": 3, "options": options, "recover": "closed-form"}
    found = swept(tmp_path, resource="bytes", points=["85%", 0.7], criterion=None, **asked)

    for point in found.points:
        names = {"flexrel": flexrel, "model": network(), "calibration": X, "evaluate": LABELLED}
        again = eval(point.command, names)  # noqa: S307 - it is what is told
        assert again.achieved.bytes == point.reached.amounts["bytes"]
        assert again.achieved.metrics == point.reached.metrics
        assert again.standard_error == point.reached.standard_error


def killed_in(folder, point, **asked):
    """Sweep in a process that dies while it makes the point of that number, from 0."""
    process = os.fork()
    if process == 0:
        at = -1

        def tell(stage, done, total):
            nonlocal at
            at = done if stage == "sweeping" else at
            if at == point and stage == "finishing":
                os._exit(9)

        try:
            swept(folder, options=PruneOptions(progress=tell), **asked)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9


@pytest.mark.parametrize("point", [0, 1])
def test_a_killed_sweep_goes_on_and_makes_nothing_twice(tmp_path, made, point):
    killed_in(tmp_path / "killed", point, points=["50%", "25%"])

    found = swept(tmp_path / "killed", points=["50%", "25%"])

    assert made == ["macs=50%", "macs=25%"][point:]
    assert swept(tmp_path / "killed", points=["50%", "25%"]) == found
    assert len(made) == 2 - point
    assert found == swept(tmp_path / "whole", points=["50%", "25%"])


def test_a_search_that_is_killed_goes_on_to_as_many_trials(tmp_path, made):
    killed_in(tmp_path, 2, points=1, trials=3)

    found = swept(tmp_path, points=1, trials=3)

    assert len(made) == 2  # the one that was being made, and the last
    assert sum(one.searched is not None for one in found.points) == 3
    assert len(swept(tmp_path, points=1, trials=4).points) == 5
    assert len(made) == 3


def test_more_points_are_added_to_those_that_are_made(tmp_path, made):
    swept(tmp_path, points=["50%", "25%"])

    found = swept(tmp_path, points=["50%", 0.75, 20])

    assert made == ["macs=50%", "macs=25%", "macs=75%", "macs=20"]
    assert [one.reached.amounts["macs"] for one in found.points] == [80, 40, 120, 20]


def test_what_is_measured_is_measured_once(tmp_path):
    stages = []
    options = PruneOptions(progress=lambda stage, done, total: stages.append(stage))

    swept(tmp_path, criterion=["relevance", "obs"], recover="closed-form", options=options)

    firsts = [at for at, stage in enumerate(stages) if stage == "sweeping"]
    for stage in ("calibrating", "measuring saliency"):
        at = [at for at, told in enumerate(stages) if told == stage]
        assert firsts[0] < at[0] <= at[-1] < firsts[1]


def test_a_search_tries_other_granularities_and_values_where_they_bring_bytes_down(tmp_path):
    found = swept(tmp_path, resource="bytes", points=1, trials=8, criterion=None)

    searched = [one for one in found.points if one.searched is not None]
    assert len(searched) == 8
    assert {one.granularity for one in searched} == {"channel", "element"}
    assert {one.values for one in searched} == {"float32", "int8", "int4"}
    assert len({one.criterion for one in searched}) > 2


def test_a_search_leaves_alone_what_saves_no_multiply_adds_and_the_criterion_asked_for(tmp_path):
    found = swept(tmp_path, points=1, trials=4, criterion="magnitude")

    assert {(one.granularity, one.values, one.criterion) for one in found.points} == {
        ("channel", "float32", "magnitude")
    }


def test_an_amount_that_cant_be_had_is_told_and_on_no_front(tmp_path, made):
    found = swept(tmp_path, points=[80, 5])
    again = swept(tmp_path, points=[80, 5])

    assert "the closest possible is 10 MACs" in found.points[1].refused
    assert [one.budget for one in found.front()] == ["macs=80"]
    assert again == found
    assert made == ["macs=80"]


def test_other_metrics_can_be_swept(tmp_path):
    def evaluate(model):
        with torch.no_grad():
            return {"loss": float((model(X[0]) - network()(X[0])).square().mean())}

    found = swept(tmp_path, evaluate=evaluate, metric="loss", lower_is_better=True)

    assert found.dense.metrics == {"loss": 0.0}
    losses = [one.reached.metrics["loss"] for one in found.front()]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 3


def test_files_of_each_point_are_written_and_those_of_before_made_up_for(tmp_path):
    assert [one.files for one in swept(tmp_path, points=["50%"]).points] == [""]

    found = swept(tmp_path, points=["50%", "25%"], files=True)

    for point in found.points:
        content = (tmp_path / point.files / "model.flexrel").read_bytes()
        assert len(content) == point.reached.amounts["bytes"]


def test_without_a_folder_nothing_stays_and_the_model_is_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    found = swept(None, model=model, points=["50%"])

    assert len(found.front()) == 1
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def changed():
    model = network()
    with torch.no_grad():
        model[0].weight[3, 4] += 1e-6
    return model


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"model": changed()}, "network"),
        ({"calibration": X[:1]}, "calibration set"),
        ({"evaluate": LABELLED[:1]}, "evaluation"),
        ({"evaluate": lambda model: 0.5}, "evaluation"),
        ({"resource": "parameters"}, "resource"),
        ({"criterion": "obs"}, "criterion"),
        ({"granularity": "head"}, "granularity"),
        ({"recover": "closed-form"}, "recover"),
        ({"values": "int8"}, "values"),
        ({"keep": ["2"]}, "keep"),
        ({"seed": 1}, "seed"),
        ({"options": PruneOptions(allocation="per-layer")}, "options"),
    ],
)
def test_a_folder_of_another_sweep_is_refused(tmp_path, other, what, made):
    if what == "granularity":
        other = {"granularity": "element", "resource": "bytes"}
    swept(tmp_path, points=["50%"], resource=other.get("resource", "macs"))
    if what == "resource":
        other = {"resource": "macs"}
    made.clear()

    with pytest.raises(UsageError, match=f"of another {what}: .* there, .* now; name another"):
        swept(tmp_path, points=["50%"], **other)
    assert made == []


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"resource": "flops"}, "did you mean macs"),
        ({"resource": "sparsity", "points": ["120%"]}, "fraction removed"),
        ({"resource": "macs=50%"}, "points="),
        ({"resource": "link"}, "rate of the link"),
        ({"points": 0}, "points is 0"),
        ({"points": "50%"}, "points is '50%'"),
        ({"points": []}, "points is"),
        ({"points": ["150%"]}, "share of the dense network"),
        ({"points": ["5 parsecs"]}, "can't be read"),
        ({"trials": -1}, "trials is -1"),
        ({"metric": "loss"}, "does not tell 'loss', but: accuracy"),
        ({"evaluate": None}, "needs evaluate="),
        ({"granularity": "element"}, "does not bring MACs below"),
        ({"criterion": "best"}, "criterion 'best' is not known"),
        ({"values": "int3"}, "int3"),
    ],
)
def test_bad_arguments_are_refused_before_any_network_is_made(
    tmp_path, unchecked, made, wrong, says
):
    with pytest.raises(UsageError, match=says):
        swept(tmp_path, **wrong)
    assert made == []


def test_files_take_a_folder_and_a_folder_is_none(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(UsageError, match="files=True needs folder="):
        swept(None, files=True)
    with pytest.raises(UsageError, match=r"folder='.*file' is a file"):
        swept(tmp_path / "file")


def test_a_damaged_study_is_refused(tmp_path):
    (tmp_path / "study.db").write_bytes(b"no database at all" * 100)

    with pytest.raises(UsageError, match=r"study\.db is no study"):
        swept(tmp_path)
