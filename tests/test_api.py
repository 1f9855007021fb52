"""The public names, and the one tree of errors."""

import pickle
import types

import pytest

import flexrel
import flexrel_edge
from flexrel import BudgetError, FlexrelError, ModelError, PackError, UsageError

# ARCHITECTURE.md, "Contract (Python)", as far as it is built.
CONTRACT = {
    "calibrate",
    "prune",
    "pack",
    "load",
    "RelevanceStats",
    "Magnitude",
    "Relevance",
    "FlexRel",
    "FineTune",
    "PruneOptions",
    "Parameters",
    "Accuracy",
    "AccuracyDrop",
    "Bytes",
    "MACs",
    "FlexrelError",
}
EXIT_CODES = {UsageError: 2, BudgetError: 3, ModelError: 4, PackError: 5}


def test_all_is_true_and_has_the_contract():
    names = flexrel.__all__

    assert len(set(names)) == len(names)
    assert all(hasattr(flexrel, name) for name in names)
    assert set(names) >= CONTRACT


def test_everything_public_that_is_ours_is_in_all():
    for name in flexrel.__all__:
        getattr(flexrel, name)
    helpers = {"TYPE_CHECKING", "import_module"}
    found = {
        name
        for name, value in vars(flexrel).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }

    assert found - helpers == set(flexrel.__all__) - {"__version__"}
    assert set(flexrel.__all__) <= set(dir(flexrel))


def test_names_are_documented():
    for name in set(flexrel.__all__) - {"__version__"}:
        doc = getattr(flexrel, name).__doc__
        assert doc, name
        assert not doc.startswith(f"{name}("), f"{name} has only what dataclass made"


def test_the_root_of_all_errors_is_defined_in_flexrel_edge():
    assert FlexrelError is flexrel_edge.FlexrelError
    assert FlexrelError.__module__.split(".")[0] == "flexrel_edge"
    assert PackError is flexrel_edge.PackError


def test_every_error_has_its_own_exit_code():
    assert {leaf: leaf.exit_code for leaf in EXIT_CODES} == EXIT_CODES
    assert all(issubclass(leaf, FlexrelError) for leaf in EXIT_CODES)
    assert FlexrelError.exit_code == 1


@pytest.mark.parametrize("error", [FlexrelError, UsageError, ModelError, PackError])
def test_errors_survive_pickling(error):
    back = pickle.loads(pickle.dumps(error("layer 'a' is missing")))

    assert type(back) is error
    assert str(back) == "layer 'a' is missing"


def test_a_budget_error_survives_pickling_with_its_numbers():
    error = BudgetError("bytes", 100, closest=123_456, advice="Keep less.")

    back = pickle.loads(pickle.dumps(error))

    assert (back.resource, back.limit, back.closest, back.advice) == (
        "bytes",
        100,
        123_456,
        "Keep less.",
    )
    assert str(back) == str(error)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            BudgetError("bytes", 1000, 123_456, "Keep less."),
            "asked for at most 1,000 bytes, but the closest possible is 123,456 bytes. Keep less.",
        ),
        (
            BudgetError("sparsity", 0.99, 0.875, at_least=True),
            "asked for at least 0.99 sparsity, but the closest possible is 0.875 sparsity.",
        ),
        (
            BudgetError("accuracy", 0.951234, 0.9, at_least=True),
            "asked for at least 0.9512 accuracy, but the closest possible is 0.9 accuracy.",
        ),
        (
            BudgetError("link", 0.04297, 0.047984, unit="s"),
            "asked for at most 0.04297 s of link, but the closest possible is 0.04799 s of link.",
        ),
        (
            BudgetError("accuracy", 0.98749, 0.98747, at_least=True),
            "asked for at least 0.9875 accuracy, but the closest possible is 0.9874 accuracy.",
        ),
        (
            BudgetError("link", 0.00004, 0.000048, unit="s"),
            "asked for at most 0.00004 s of link, but the closest possible is 0.000048 s of link.",
        ),
        (
            BudgetError("loss", 0.38371, 0.383719),
            "asked for at most 0.3837 loss, but the closest possible is 0.3838 loss.",
        ),
    ],
)
def test_a_budget_error_says_what_was_asked_and_what_is_possible(error, text):
    assert str(error) == text
