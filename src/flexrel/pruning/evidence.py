"""The evidence that a result shows besides its measurements, and where it came from."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from flexrel.core.layer_costs import LayerCost, WholeNetwork, layer_costs
from flexrel.pruning.builder import PrunedNetwork
from flexrel.pruning.changed import ChangedAnswers
from flexrel.pruning.choice import Solution
from flexrel.pruning.request import Request
from flexrel.pruning.unit_scores import UnitScores, unit_scores
from flexrel.relevance import RelevanceStats


@dataclass(frozen=True, slots=True)
class Evidence:
    """What led to a result, and what it did, layer by layer and sample by sample.

    Attributes:
        layers: what each takes, dense and pruned.
        scores: magnitude and relevance of units; empty if no relevance was measured.
        unrepaired: accuracy of the network as it was cut, before its repair; None if nothing was
            repaired, or `evaluate` tells no accuracy.
        changed: answers that changed; None if `evaluate` does not tell samples apart.
    """

    layers: tuple[LayerCost, ...]
    scores: tuple[UnitScores, ...]
    unrepaired: float | None
    changed: ChangedAnswers | None

    def in_file(self, size: int) -> "Evidence":
        """Return the evidence where the packed file has so many bytes, with notes in it.

        They are no layer's.
        """
        *layers, rest = self.layers
        rest = replace(rest, bytes=size - sum(one.bytes for one in layers))
        return replace(self, layers=(*layers, rest))

    def as_json(self) -> dict[str, Any]:
        """Return what `result.json` has of it, `unrepaired` apart."""
        return {
            "layers": [asdict(one) for one in self.layers],
            "scores": [one.as_json() for one in self.scores],
            "changed": self.changed and self.changed.as_json(),
        }


def evidence_of(
    solution: Solution,
    network: PrunedNetwork,
    dense: nn.Module,
    stats: RelevanceStats | None,
    request: Request,
    changed: ChangedAnswers | None,
) -> Evidence:
    """Return the evidence for a network that is returned.

    Args:
        solution: its plan, and what measures networks.
        network: that it became in the end.
        dense: what was cut.
        stats: its relevance, if it was measured.
        request: says whether the network was repaired.
        changed: answers that changed, if they are known.
    """
    plan, evaluator = solution.plan, solution.evaluator
    return Evidence(
        layers=layer_costs(
            plan.graph,
            plan.masks,
            WholeNetwork(evaluator.dense.network, evaluator.dense.packed),
            WholeNetwork(network.rounded, network.packed),
        ),
        scores=unit_scores(plan, dense, stats, request.options.history),
        unrepaired=evaluator.unrepaired(plan) if request.fits else None,
        changed=changed,
    )


@dataclass(frozen=True, slots=True)
class Origin:
    """The command that made a result.

    Attributes:
        command: its words, as they were typed.
        again: the words that prune the same network with the same data, without what was asked of
            criterion, targets, budgets and output.
        model: as it was named.
        calibration: likewise.
        evaluation: likewise; None if there was none.
    """

    command: tuple[str, ...]
    again: tuple[str, ...]
    model: str
    calibration: str
    evaluation: str | None

    def as_json(self) -> dict[str, Any]:
        """Return what `result.json` has of it."""
        return asdict(self)
