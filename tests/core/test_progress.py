"""Progress: a line every few seconds, or bars, or whoever is told; and the stages of a call."""

import io
import re
import time
from contextlib import redirect_stderr
from itertools import pairwise

import pytest
import torch
from rich.console import Console
from torch import nn

import flexrel
from flexrel.core import forecast as forecasts
from flexrel.core import progress as shown_progress
from flexrel.core.progress import StagesTold, Work, shown
from flexrel.errors import UsageError

STAGES = ("reading", "choosing", "searching")


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))


@pytest.fixture
def data():
    return [torch.randn(16, 6) for _ in range(3)]


def test_a_line_comes_every_few_seconds_also_while_nothing_is_told(monkeypatch, capsys):
    monkeypatch.setattr(shown_progress, "_EVERY", 0.02)

    with shown("auto", STAGES) as tell:
        tell("choosing a criterion", 1, 4)
        tell("repairing", 3, 7)
        time.sleep(0.2)  # no step ends meanwhile

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 3
    assert lines[0].startswith("stage 2 of 3: choosing a criterion, 1 of 4; repairing, 3 of 7; ")


def test_lines_come_also_while_others_put_stderr_away(monkeypatch, capsys):
    monkeypatch.setattr(shown_progress, "_EVERY", 0.02)

    with shown("auto", STAGES) as tell, redirect_stderr(io.StringIO()):  # as torch.export does
        tell("reading", 0, None)
        time.sleep(0.2)

    assert len(capsys.readouterr().err.splitlines()) >= 3


def test_the_first_line_comes_sooner_than_the_others(monkeypatch, capsys):
    monkeypatch.setattr(shown_progress, "_EVERY", 60.0)
    monkeypatch.setattr(shown_progress, "_FIRST", 0.02)

    with shown("auto", STAGES) as tell:
        tell("reading", 0, None)
        time.sleep(0.2)

    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_step_that_goes_on_counts_in_the_time_left(monkeypatch):
    told = StagesTold(STAGES)
    told.tell("choosing a criterion", 0, 4)
    told.tell("repairing", 10, 20)
    told.stage.began = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: 130.0)

    assert "about 3 min 30 s left of it" in str(told)  # an eighth in 30 s


def test_a_wide_layer_is_told_beforehand_with_what_would_take_less(monkeypatch, data):
    told = []
    monkeypatch.setattr(forecasts, "_SLOWEST", 0.0)
    monkeypatch.setattr(forecasts, "multiply_adds_a_second", lambda: 10.0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))

    flexrel.prune(
        model,
        calibration=data,
        budgets=["macs=60%"],
        criterion="obs",
        options=flexrel.PruneOptions(progress=lambda name, done, total: told.append(name)),
    )

    work = 2.5 * 12**3 / (0.4 * 10.0)
    minutes, seconds = divmod(round(work), 60)
    without = "--criterion magnitude, relevance or --keep 2 goes without"
    assert f"2 has 12 inputs: about {minutes} min {seconds} s; {without}" in told
    assert any(name.endswith("--recover none goes without") for name in told)


def test_nothing_is_printed_when_work_is_over_at_once(capsys):
    with shown("auto", STAGES) as tell:
        tell("reading", 0, None)

    assert capsys.readouterr() == ("", "")


def test_time_left_is_what_the_steps_to_come_take_if_all_take_alike(monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 130.0)

    work = Work("repairing", done=3, total=12, began=100.0)

    assert work.seconds_left() == 90.0  # 3 steps in 30 s, 9 to come
    assert Work("repairing", done=0, total=12, began=100.0).seconds_left() is None
    assert Work("repairing", done=3, began=100.0).seconds_left() is None
    assert Work("repairing", done=12, total=12, began=100.0).seconds_left() is None  # goes on yet


def test_a_line_says_stage_step_time_and_time_left(monkeypatch):
    told = StagesTold(STAGES)
    told.tell("searching with magnitude", 2, 10)
    told.stage.began = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: 30.0)

    assert str(told) == (
        "stage 3 of 3: searching with magnitude, 2 of 10; 30 s; about 2 min 0 s left of it"
    )


def test_a_stage_ends_when_the_next_begins_and_its_steps_with_it():
    told = StagesTold(STAGES)
    told.tell("choosing a criterion", 0, 2)
    told.tell("repairing", 5, 5)
    told.tell("choosing a criterion", 1, 2)

    assert told.step is None
    assert told.place == "stage 2 of 3: "
    told.tell("searching", 0, None)
    assert (told.place, told.stage.name) == ("stage 3 of 3: ", "searching")


def test_bars_are_drawn_in_a_terminal_and_gone_at_the_end(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(
        shown_progress,
        "Console",
        lambda stderr: Console(file=screen, force_terminal=True, width=99),
    )
    monkeypatch.setenv("TERM", "xterm")

    with shown("auto", STAGES) as tell:
        tell("reading", 0, None)
        time.sleep(0.3)
        tell("choosing a criterion", 1, 4)
        tell("repairing", 3, 7)
        time.sleep(0.3)
        tell("searching", 2, None)
        time.sleep(0.3)

    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert "stage 2 of 3: choosing a criterion" in drawn
    assert "repairing" in drawn
    rows = [line.split() for line in drawn.replace("\r", "\n").splitlines()]
    steps = {(row[4], next(w for w in row if "/" in w)) for row in rows if row[:1] == ["stage"]}
    assert steps >= {("reading", "0/?"), ("choosing", "1/4"), ("searching", "2/?")}
    assert any(row[:1] == ["repairing"] and "3/7" in row for row in rows)
    assert screen.getvalue().rstrip().endswith("\x1b[2K")  # the last that is done is to erase


def test_in_a_notebook_without_widgets_lines_come(monkeypatch, capsys):
    notebook = lambda stderr: Console(stderr=stderr, force_jupyter=True)  # noqa: E731
    monkeypatch.setattr(shown_progress, "Console", notebook)
    monkeypatch.setattr(shown_progress, "find_spec", lambda _: None)
    monkeypatch.setattr(shown_progress, "_FIRST", 0.05)

    with shown("auto", STAGES) as tell:
        tell("searching", 2, None)
        time.sleep(0.2)

    assert "stage 3 of 3: searching, 2 done" in capsys.readouterr().err


def test_whoever_is_given_is_told_and_none_is_silent(net, data, capsys):
    told = []
    options = flexrel.PruneOptions(progress=lambda *step: told.append(step))

    flexrel.prune(net, calibration=data, budgets=["macs=60%"], options=options)
    flexrel.prune(net, calibration=data, budgets=["macs=60%"])

    assert told
    assert all(isinstance(done, int) for _, done, _ in told)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "asked",
    [
        {"budgets": ["macs=60%"]},
        {"budgets": ["macs=60%"], "criterion": "magnitude"},
        {"budgets": ["bytes=70%"], "criterion": ["magnitude", "relevance"], "recover": "none"},
        {"target": "accuracy-drop=50%", "evaluate": lambda _: 0.9, "recover": "finetune:1"},
    ],
)
def test_stages_are_told_in_their_order_to_the_last(monkeypatch, net, data, asked):
    seen = []

    class Watched(StagesTold):
        def tell(self, *step):
            super().tell(*step)
            seen.append((self.number, len(self.stages)))

    monkeypatch.setattr(shown_progress, "StagesTold", Watched)
    labelled = [(x, x[:, 0].long().clamp(0, 2)) for x in data]

    flexrel.prune(net, calibration=labelled, options=flexrel.PruneOptions(progress="auto"), **asked)

    numbers = [number for number, _ in seen]
    assert numbers[0] == 1
    assert numbers[-1] == seen[0][1]
    assert set(numbers) == set(range(1, seen[0][1] + 1))
    assert sum(b < a for a, b in pairwise(numbers)) <= 4  # a choice is made again where it led


def test_progress_of_another_kind_is_refused(net, data, unchecked):
    with pytest.raises(UsageError, match="progress is 'bar'; pass 'auto', None, or a function"):
        flexrel.prune(
            net,
            calibration=data,
            budgets=["macs=60%"],
            options=flexrel.PruneOptions(progress="bar"),
        )


def test_what_was_drawn_is_put_away_when_an_error_passes(monkeypatch, capsys):
    monkeypatch.setattr(shown_progress, "_EVERY", 0.02)

    with pytest.raises(UsageError), shown("auto", STAGES):
        raise UsageError
    capsys.readouterr()
    time.sleep(0.1)

    assert capsys.readouterr() == ("", "")
