"""What every criterion promises, ours and users' own: subclass it and give a `criterion` fixture.

class TestMine(CriterionContract):
    @pytest.fixture
    def criterion(self):
        return Mine()
"""

from dataclasses import dataclass

import torch
from torch import nn

import flexrel
from flexrel import Criterion, RelevanceStats, Sparsity
from flexrel.core.batches import read_batches
from flexrel.core.graph import PruningGraph
from flexrel.criteria import SALIENCY, attribution_of, measure_saliency, scores_of
from flexrel.relevance import Attribution, calibrate
from flexrel.structure import analyse, named_tensors

IMAGES = torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A block that adds something to its input."""

    def __init__(self):
        super().__init__()
        self.make, self.end = nn.Conv2d(6, 10, 3, padding=1), nn.Conv2d(10, 6, 3, padding=1)

    def forward(self, x):
        return x + self.end(self.make(x).relu())


def network():
    """A network with units of all granularities: weights, channels in and out of sums, blocks."""
    torch.manual_seed(0)
    blocks = (nn.Conv2d(3, 6, 3, padding=1), Residual(), Residual())
    return nn.Sequential(*blocks, nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)).eval()


@dataclass
class Signals:
    """All that a criterion may be shown of a network at one granularity, if it needs it."""

    graph: PruningGraph
    tensors: dict
    stats: RelevanceStats | None
    saliency: dict | None

    @classmethod
    def of(cls, criterion, granularity):
        """Measure what the criterion says that it needs, and no more."""
        model = network()
        (example,) = read_batches([IMAGES[:2]], model)
        graph = analyse(model, example, granularity)
        wanted, stats, saliency = attribution_of(criterion), None, None
        if wanted is not None:
            stats = calibrate(model, [IMAGES], wanted.rule, wanted.output)
        if SALIENCY in criterion.needs:
            saliency, unknown = measure_saliency(model, graph, [IMAGES])
            assert not unknown
        tensors = {name: t.detach() for name, t in named_tensors(model).items()}
        return cls(graph, tensors, stats, saliency)

    def scores(self, criterion):
        """Return the criterion's scores; raises if it gives a NaN or another shape."""
        return scores_of(criterion, self.graph, self.tensors, self.stats, self.saliency)

    def numbers(self):
        """Return copies of all numbers in them."""
        stats = [v for layer in (self.stats or {}).values() for v in layer.sums().values()]
        every = [*self.tensors.values(), *stats, *(self.saliency or {}).values()]
        return [tensor.clone() for tensor in every]

    def silent(self):
        """Return signals that say nothing: all zeros."""
        return Signals(
            self.graph,
            {name: torch.zeros_like(t) for name, t in self.tensors.items()},
            self.stats and self.stats.scaled(0.0),
            self.saliency and {name: torch.zeros_like(t) for name, t in self.saliency.items()},
        )


class CriterionContract:
    granularities = ("element", "2:4", "block:2x3", "channel", "depth")

    def test_it_is_a_criterion(self, criterion):
        assert isinstance(criterion, Criterion)

    def test_its_name_is_one_line(self, criterion):
        assert criterion.name.isprintable()
        assert criterion.name.strip()

    def test_it_needs_signals_that_there_are_and_one_relevance_at_most(self, criterion):
        assert isinstance(criterion.needs, frozenset)
        relevances = [need for need in criterion.needs if isinstance(need, Attribution)]
        assert len(relevances) <= 1
        assert criterion.needs <= {SALIENCY, *relevances}
        assert criterion.needs == criterion.needs

    def test_one_finite_score_a_unit_of_what_it_needs_and_no_more(self, criterion):
        for granularity in self.granularities:
            signals = Signals.of(criterion, granularity)

            scores = signals.scores(criterion)

            assert {name: tuple(values.shape) for name, values in scores.items()} == {
                group.name: group.layout.grid if group.layout else group.shape
                for group in signals.graph.groups
            }
            assert all(values.isfinite().all() for values in scores.values()), granularity

    def test_the_same_signals_have_the_same_scores_and_are_not_changed(self, criterion):
        signals = Signals.of(criterion, self.granularities[0])
        before = signals.numbers()

        first, second = signals.scores(criterion), signals.scores(criterion)

        assert all(torch.equal(first[name], second[name]) for name in first)
        assert all(map(torch.equal, signals.numbers(), before))

    def test_signals_that_say_nothing_have_finite_scores(self, criterion):
        for granularity in self.granularities:
            scores = Signals.of(criterion, granularity).silent().scores(criterion)

            assert all(values.isfinite().all() for values in scores.values()), granularity

    def test_a_network_is_pruned_by_it(self, criterion):
        result = flexrel.prune(
            network(),
            calibration=[IMAGES],
            budgets=[Sparsity(0.25)],
            criterion=criterion,
            recover="none",
            granularity=self.granularities[0],
        )

        assert result.criterion is criterion
        assert result.achieved.removed >= 0.25
