"""A rival that came out smaller is named; one that is not, or is less accurate, is not."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from flexrel.core.measurement import Measurement
from flexrel.core.targets import Goal
from flexrel.pruning.compare import _smaller


def measured(criterion, size, accuracy):
    metrics = {} if accuracy is None else {"accuracy": accuracy}
    return Measurement(criterion, 0.5, 100, 1000, size, accuracy, metrics=metrics)


RESULT = measured("flexrel:0.5", 500, 0.97)


@pytest.mark.parametrize(
    ("rival", "floor", "named"),
    [
        (measured("magnitude", 400, 0.97), None, True),
        (measured("magnitude", 400, 0.969), None, False),
        (measured("magnitude", 500, 0.99), None, False),
        (measured("magnitude", 400, 0.96), 0.96, True),
        (measured("magnitude", 400, 0.959), 0.96, False),
        (measured("magnitude", 400, None), None, False),
    ],
)
def test_a_smaller_rival_that_is_accurate_enough_is_named(unchecked, rival, floor, named):
    goals = () if floor is None else (Goal("accuracy", floor, lower_is_better=False),)
    result = SimpleNamespace(achieved=RESULT, limits=SimpleNamespace(goals=goals))

    said = list(_smaller(result, [rival]))

    assert len(said) == named
    if named:
        assert "'magnitude' came out smaller: 400 bytes" in said[0]
        assert "where the result has 500 bytes, accuracy 97.00 %" in said[0]


def test_nothing_is_said_where_accuracy_was_not_measured(unchecked):
    result = SimpleNamespace(
        achieved=replace(RESULT, accuracy=None), limits=SimpleNamespace(goals=())
    )

    assert not list(_smaller(result, [measured("magnitude", 400, 0.99)]))


@pytest.mark.parametrize(("loss", "named"), [(0.3, True), (0.31, False)])
def test_a_rival_that_misses_one_of_two_targets_is_not_named(unchecked, loss, named):
    goals = (
        Goal("accuracy", 0.9, lower_is_better=False),
        Goal("loss", 0.3, lower_is_better=True),
    )
    achieved = replace(RESULT, metrics={"accuracy": 0.97, "loss": 0.2})
    rival = replace(measured("magnitude", 400, 0.95), metrics={"accuracy": 0.95, "loss": loss})
    result = SimpleNamespace(achieved=achieved, limits=SimpleNamespace(goals=goals))

    assert len(list(_smaller(result, [rival]))) == named
