"""Targets on any metric: what they are written like, and what they come to, by hand."""

import math

import pytest

from flexrel import AccuracyDrop, Ceiling, Floor, UsageError, Worsening
from flexrel.core.targets import Goal, Target, goals_of, missed, targets_of


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("accuracy-drop=1%", AccuracyDrop(0.01)),
        ("accuracy>=90%", Floor("accuracy", 0.9)),
        ("accuracy>=0.9", Floor("accuracy", 0.9)),
        ("loss<=0.35", Ceiling("loss", 0.35)),
        ("log-likelihood>=-3.5", Floor("log-likelihood", -3.5)),
        ("top-5 >= 92.5", Floor("top-5", 92.5)),
        ("loss<=1e-3", Ceiling("loss", 0.001)),
        ("perplexity+5%", Worsening("perplexity", 0.05, relative=True, lower_is_better=True)),
        ("loss+0.02", Worsening("loss", 0.02, lower_is_better=True)),
        ("mAP-0.5", Worsening("mAP", 0.5)),
        ("top-5-2%", Worsening("top-5", 0.02, relative=True)),
    ],
)
def test_texts_say_what_is_asked(text, target):
    assert targets_of(text) == targets_of(target) == (target,)
    assert isinstance(target, Target)


def test_several_are_taken_together():
    both = (AccuracyDrop(0.01), Ceiling("loss", 0.35))

    assert targets_of("accuracy-drop=1%, loss<=0.35") == both
    assert targets_of(["accuracy-drop=1%", Ceiling("loss", 0.35)]) == both
    assert targets_of(None) == ()


@pytest.mark.parametrize(
    ("target", "dense", "limit"),
    [
        (AccuracyDrop(0.01), 0.9, 0.89),
        (Floor("mAP", 38.5), 40.0, 38.5),
        (Ceiling("loss", 0.35), 0.3, 0.35),
        (Worsening("mAP", 0.5), 40.0, 39.5),
        (Worsening("mAP", 0.05, relative=True), 40.0, 38.0),
        (Worsening("loss", 0.02, lower_is_better=True), 0.3, 0.32),
        (Worsening("perplexity", 0.05, relative=True, lower_is_better=True), 20.0, 21.0),
        (Worsening("log-likelihood", 0.1, relative=True), -3.0, -3.3),
    ],
)
def test_a_target_is_the_worst_value_allowed(target, dense, limit):
    (goal,) = goals_of([target], {target.metric: dense, "other": math.nan})

    assert goal.limit == pytest.approx(limit)
    worse = 0.001 if target.lower_is_better else -0.001
    assert goal.met(goal.limit)
    assert not goal.met(goal.limit + worse)
    assert not goal.met(math.nan)
    assert goal.met(dense)


@pytest.mark.parametrize(
    ("text", "dense", "says"),
    [
        ("accuracy>=90%", 0.88, "asked for accuracy at least 0.9, .* came has 0.88"),
        ("loss<=0.2", 0.3, "asked for loss at most 0.2, .* came has 0.3"),
        ("accuracy>=98.8%", 0.98749, "came has 0.9874; ask for what it has"),
        ("loss<=0.2", 0.30001, "came has 0.3001; ask for what it has"),
        ("loss<=0.2", math.nan, "loss is NaN"),
        ("accuracy-drop=30%", 0.2, "accuracy is 0.2 and may drop by 0.3"),
        ("accuracy-120%", 0.9, "never right would do"),
    ],
)
def test_what_the_dense_network_cant_meet_or_lose_is_refused_with_numbers(text, dense, says):
    targets = targets_of(text)

    with pytest.raises(UsageError, match=says):
        goals_of(targets, {targets[0].metric: dense})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("loss", "write it like accuracy-drop=1%, accuracy>=90%"),
        ("loss<=", "write it like"),
        ("mAP>=38%", "% is understood of accuracy alone"),
        (["mAP<=0.35", "mAP-5%"], "two targets on 'mAP'"),
        ("loss-5%", "allows less loss, of which less is better; write loss<=X"),
        ("perplexity>=5", "allows less perplexity, of which less is better"),
        ("accuracy+5%", "of which more is better; write accuracy-drop=1%"),
        (Ceiling("accuracy", 0.5), "of which more is better; write accuracy-drop=1%"),
        (3, "write it like"),
        ([3], "write it like"),
        ("", "write it like"),
    ],
)
def test_what_is_no_target_is_refused(given, says):
    with pytest.raises(UsageError, match=says):
        targets_of(given)


@pytest.mark.parametrize("amount", [math.nan, math.inf, True])
@pytest.mark.parametrize("kind", [Floor, Ceiling, Worsening])
def test_amounts_are_numbers(kind, amount):
    with pytest.raises(UsageError, match="target on 'loss' is"):
        kind("loss", amount)


def test_the_goal_that_is_missed_is_told_and_a_metric_that_is_not_told_is_asked_for():
    goals = (Goal("accuracy", 0.9, lower_is_better=False), Goal("loss", 0.3, lower_is_better=True))

    assert missed(goals, {"accuracy": 0.9, "loss": 0.3}) is None
    assert missed(goals, {"accuracy": 0.9, "loss": 0.31}) == goals[1]
    with pytest.raises(UsageError, match="target on 'loss', but evaluate tells accuracy"):
        missed(goals, {"accuracy": 0.9})
