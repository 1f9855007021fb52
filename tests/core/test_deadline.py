"""A limit on time: what it says, and when stages end."""

import math
import time

import pytest

from flexrel import UsageError
from flexrel.core.deadline import Deadline, OutOfTimeError, seconds_in


@pytest.fixture
def now(monkeypatch):
    """A clock that is set by hand."""
    at = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: at[0])
    return at


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [(90, 90), (0.5, 0.5), ("90", 90), ("90 s", 90), ("2 min", 120), ("1.5 h", 5400)],
)
def test_a_limit_is_read_as_people_write_it(limit, seconds):
    assert seconds_in(limit) == seconds


@pytest.mark.parametrize(
    "limit", [0, -1, math.nan, math.inf, True, "soon", "5 m", "0 s", "", "50%"]
)
def test_a_limit_that_is_no_time_is_refused(limit):
    with pytest.raises(UsageError, match=r"time_limit is .*2 min"):
        seconds_in(limit)


def test_what_is_left_and_gone(now):
    deadline = Deadline.after("10 s")
    now[0] += 4

    assert (deadline.left, deadline.gone) == (6, 4)
    assert deadline.reached(0.4)
    assert not deadline.reached(0.41)


def test_shares_are_of_what_is_not_kept_for_the_end(now):
    deadline = Deadline.after(10)
    now[0] += 2
    rest = deadline.reserving(3)  # 5 seconds, from 2 on

    assert rest.left == 5
    now[0] += 2.5
    assert rest.reached(0.5)
    assert not rest.reached(0.51)


def test_what_began_too_late_is_over_at_once(now):
    deadline = Deadline.after(10)
    now[0] += 8

    assert deadline.reserving(3).reached(0.9)
    assert deadline.reserving(3).left == -1


def test_without_a_limit_there_is_always_time(now):
    deadline = Deadline.after(None)
    now[0] += 1e9

    assert deadline.left == math.inf
    assert not deadline.reserving(1e9).reached(0.0)
    assert deadline.ending(print, {"all": 0.0}) is print


def test_a_stage_ends_after_the_step_in_which_its_time_is_up(now):
    told = []
    tell = Deadline.after(10).ending(lambda *step: told.append(step), {"rows": 0.5})

    tell("rows of a", 1, 9)
    now[0] += 5
    tell("other", 1, 9)  # has no share
    tell("rows of b", 0, 9)  # each stage does one step
    with pytest.raises(OutOfTimeError, match="3 of 9 of 'rows of b'"):
        tell("rows of b", 3, 9)
    tell("rows of b", 9, 9)  # and is done where it is done

    assert len(told) == 5
