"""Events of a call: in their order, with their numbers, to files and trackers."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import flexrel
from flexrel import BudgetError, PruneOptions, UsageError
from flexrel.cli import main
from flexrel.tracking import JsonLines, Listener, MLflow, TensorBoard, WeightsAndBiases

INPUTS = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


def labelled():
    return [(INPUTS, network()(INPUTS).argmax(1))]


def pruned(*listeners, **options):
    asked = {"target": "10%", "evaluate": labelled(), "criterion": ["magnitude", "relevance"]}
    return flexrel.prune(
        network(),
        calibration=[INPUTS],
        **{**asked, **options},
        options=PruneOptions(listeners=listeners),
    )


class Heard:
    """Keeps all that it is told."""

    def __init__(self):
        self.events = []

    def stage_began(self, stage):
        self.events.append(("began", stage))

    def stage_ended(self, stage, seconds):
        assert seconds >= 0
        self.events.append(("ended", stage))

    def judged(self, candidate):
        self.events.append(("judged", candidate))

    def finished(self, record):
        self.events.append(("finished", record))

    def stopped(self, reason):
        self.events.append(("stopped", reason))


def test_stages_follow_one_another_and_each_that_begins_ends():
    heard = Heard()
    assert isinstance(heard, Listener)

    pruned(heard)

    stages = [event for event in heard.events if event[0] in ("began", "ended")]
    began, ended = stages[::2], stages[1::2]
    assert [kind for kind, _ in began] == ["began"] * len(began)
    assert ended == [("ended", name) for _, name in began]
    names = [name for _, name in began]
    assert names[:2] == ["reading the data", "tracing the network"]
    assert {"calibrating", "choosing a criterion"} < set(names)
    assert any(name.startswith("searching with") for name in names)
    assert names[-1] == "finishing"


def test_candidates_come_with_what_they_were_judged_by():
    heard = Heard()

    result = pruned(heard)

    candidates = [one for kind, one in heard.events if kind == "judged"]
    compared = [one for one in candidates if one.kept is None]
    assert {one.criterion for one in compared} == {"magnitude", "relevance"}
    assert all(one.numbers.keys() == {"divergence"} for one in compared)
    searched = [one for one in candidates if one.kept is not None]
    floor = result.requested["accuracy"]
    for one in searched:
        assert one.kept == (one.numbers["accuracy"] >= floor - 1e-12)
        assert 0 <= one.removed <= 16
    kept = [one for one in searched if one.kept and not one.sketch]
    assert result.plan.removed in {one.removed for one in kept}


def test_the_result_comes_last_as_it_is_written_down():
    heard = Heard()

    result = pruned(heard)

    kind, record = heard.events[-1]
    assert kind == "finished"
    assert record == result.as_json()
    assert result.request.options.listeners == ()


def test_a_listener_that_fails_on_the_result_does_not_cost_it():
    class Gone(Heard):
        def finished(self, record):
            raise ConnectionError("no such server")

    after = Heard()

    result = pruned(Gone(), after)

    assert result.warnings[-1] == ("Gone did not take the result: ConnectionError: no such server")
    assert after.events[-1][0] == "finished"


def test_of_a_call_that_fails_the_reason_comes_last_and_no_stage_is_left_open():
    heard = Heard()

    with pytest.raises(BudgetError) as error:
        pruned(heard, target=None, budgets="macs=1")

    assert heard.events[-1] == ("stopped", f"BudgetError: {error.value}")
    began = [name for kind, name in heard.events if kind == "began"]
    assert began == [name for kind, name in heard.events if kind == "ended"]


@pytest.mark.parametrize(
    ("given", "told"),
    [([print], "is no listener: it needs methods"), (JsonLines, "pass a list of listeners")],
)
@pytest.mark.usefixtures("unchecked")
def test_what_can_not_listen_is_refused(given, told):
    with pytest.raises(UsageError, match=told):
        flexrel.prune(
            network(),
            calibration=[INPUTS],
            budgets="macs=50%",
            options=PruneOptions(listeners=given),
        )


def test_json_lines_have_an_object_an_event_and_are_added_to(tmp_path):
    path = tmp_path / "run.jsonl"

    result = pruned(JsonLines(path))
    first = [json.loads(line) for line in path.read_text().splitlines()]
    pruned(JsonLines(path))

    assert {one["event"] for one in first} == {"stage_began", "stage_ended", "judged", "finished"}
    assert all(one["time"] > 0 for one in first)
    judged = next(one for one in first if one["event"] == "judged")
    assert judged.keys() == {
        "event", "time", "criterion", "removed", "numbers", "sketch", "kept",
    }  # fmt: skip
    last = first[-1]
    assert last["event"] == "finished"
    assert last["achieved"]["macs"] == result.achieved.macs
    assert last["requested"]["accuracy"] == result.requested["accuracy"]
    events = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert events.count("finished") == 2


def test_a_file_that_can_not_be_written_is_refused_at_once(tmp_path):
    with pytest.raises(UsageError, match="events can't be written there"):
        JsonLines(tmp_path / "none" / "run.jsonl")


def test_the_command_line_logs_to_a_file(tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))\n"
        "def inputs():\n"
        "    return [torch.randn(8, 4)]\n"
    )
    net, log = tmp_path / "net.py", tmp_path / "run.jsonl"
    words = f"prune {net}:make --calibration {net}:inputs --budget macs=50% --quiet"

    assert main([*words.split(), "--out", str(tmp_path / "out"), "--log", str(log)]) == 0

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert lines[-1]["achieved"]["macs"] == record["achieved"]["macs"]


def test_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard", reason="it comes with the extra 'track-tensorboard'")
    from tensorboard.backend.event_processing.event_accumulator import (  # noqa: PLC0415
        EventAccumulator,
    )

    result = pruned(TensorBoard(tmp_path))

    events = EventAccumulator(str(tmp_path)).Reload()
    (accuracy,) = events.Scalars("result/accuracy")
    assert accuracy.value == pytest.approx(result.achieved.accuracy)
    assert {"magnitude/divergence", "seconds/calibrating"} <= {
        name.replace(" sketched", "") for name in events.Tags()["scalars"]
    }


class StandIn:
    """Takes any call, and keeps its name, arguments and keywords."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))

        return call

    def of(self, name):
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


@pytest.mark.parametrize("active", [None, "a run of the user's"])
def test_mlflow_gets_numbers_by_step_and_keeps_a_run_that_is_not_ours(monkeypatch, active):
    mlflow = StandIn()
    mlflow.active_run = lambda: active
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)

    result = pruned(MLflow(), criterion=["magnitude", "flexrel:0.5"])

    steps = [kwargs["step"] for _, kwargs in mlflow.of("log_metrics")]
    assert steps == list(range(len(steps)))
    names = {name for (numbers,), _ in mlflow.of("log_metrics") for name in numbers}
    assert not any(":" in name for name in names)
    last = mlflow.of("log_metrics")[-1][0][0]
    assert last["result/accuracy"] == result.achieved.accuracy
    ((params,), _) = mlflow.of("log_params")[0]
    assert params["requested_accuracy"] == result.requested["accuracy"]
    ours = active is None
    assert (len(mlflow.of("start_run")), len(mlflow.of("end_run"))) == (ours, ours)


def test_weights_and_biases_is_offline_unless_asked(monkeypatch):
    run, began = StandIn(), []
    run.config = StandIn()
    wandb = SimpleNamespace(init=lambda **kwargs: began.append(kwargs) or run)
    monkeypatch.setitem(sys.modules, "wandb", wandb)

    result = pruned(WeightsAndBiases("digits"))

    assert began == [{"project": "digits", "mode": "offline"}]
    (numbers,), _ = run.of("log")[-1]
    assert numbers["result/macs"] == result.achieved.macs
    assert run.config.of("update")[0][0][0]["criterion"] == result.criterion.name
    assert len(run.of("finish")) == 1


@pytest.mark.parametrize(
    ("module", "extra", "make"),
    [
        ("torch.utils.tensorboard", "track-tensorboard", lambda: TensorBoard("nowhere")),
        ("mlflow", "track-mlflow", MLflow),
        ("wandb", "track-wandb", WeightsAndBiases),
    ],
)
def test_without_the_library_the_error_names_the_extra(monkeypatch, module, extra, make):
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(UsageError, match=rf"pip install 'flexrel\[{extra}\]'"):
        make()
