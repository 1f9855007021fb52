"""Every criterion keeps the contract: ours, and two as users write them."""

import pytest

from criteria.contract import CriterionContract
from flexrel import OBS, FlexRel, Magnitude, Relevance
from flexrel.criteria import SALIENCY
from flexrel.relevance import Attribution


class TestMagnitude(CriterionContract):
    @pytest.fixture
    def criterion(self):
        return Magnitude()


class TestRelevance(CriterionContract):
    @pytest.fixture(params=[Relevance(), Relevance(rule="gamma", output="norm")], ids=repr)
    def criterion(self, request):
        return request.param


class TestFlexRel(CriterionContract):
    @pytest.fixture(params=[(0.0, "product"), (0.3, "sum"), (0.3, "product"), (1.0, "product")])
    def criterion(self, request):
        delta, blend = request.param
        return FlexRel(delta, blend=blend)


class TestOBS(CriterionContract):
    granularities = ("element", "2:4", "block:2x3", "channel")  # no residual blocks

    @pytest.fixture
    def criterion(self):
        return OBS()


class Squares:
    """A user's criterion: nothing inherited, nothing registered, nothing measured."""

    name, needs = "squares", frozenset()

    def scores(self, signals):
        for group in signals:
            yield group.magnitude() ** 2


class TestSquares(CriterionContract):
    @pytest.fixture
    def criterion(self):
        return Squares()


class Missed:
    """A user's criterion that needs both: what a cut costs, of what mattered to the outputs."""

    name = "missed"
    needs = frozenset({SALIENCY, Attribution(output="norm")})

    def scores(self, signals):
        for group in signals:
            yield group.saliency() * group.relevance()


class TestMissed(CriterionContract):
    granularities = ("channel", "element")

    @pytest.fixture
    def criterion(self):
        return Missed()
