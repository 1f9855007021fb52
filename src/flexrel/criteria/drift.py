"""Whether what is worth keeping has moved since a plan was made, or only seems to by chance."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import comb
from operator import add

from torch import Tensor, nn

from flexrel.core.measurement import Scores
from flexrel.core.network import plain_network
from flexrel.core.plan import Plan
from flexrel.criteria.criteria import scores_of
from flexrel.criteria.criterion import Criterion, attribution_of
from flexrel.criteria.ranking import PatternRanking, rank_units
from flexrel.errors import UsageError
from flexrel.relevance import RelevanceStats
from flexrel.structure import named_tensors

_WAYS = 200  # to divide the blocks, at least: else chance can't be told from 1 in 100
Places = Sequence[int]  # of blocks
Planned = tuple[Plan, Scores]


@dataclass(frozen=True, slots=True)
class Drift:
    """How far a plan made today would be from one made then.

    Attributes:
        distance: share of the units that the plan in use removes and today's plan keeps.
        noise: the same for the plans that two halves of today's blocks give: what chance moves.
        loss: score that is lost where the plan of then is judged by today's stats, and today's
            plan by those of then; in the criterion's unit, 0 if the plans are alike.
        chance: share of shuffles of all blocks, the real order among them, that lose as much.
    """

    distance: float
    noise: float
    loss: float
    chance: float

    def significant(self, level: float = 0.01) -> bool:
        """Return whether to plan anew; where nothing changed that is so in `level` of cases."""
        return self.chance <= level


def drift(
    model: nn.Module,
    plan: Plan,
    criterion: Criterion,
    then: Sequence[RelevanceStats],
    now: Sequence[RelevanceStats],
    *,
    shuffles: int = 199,
    seed: int = 0,
) -> Drift:
    """Return how far today's stats move the plan, and whether chance would move it as far.

    Where traffic is as it was, blocks of then and of today could change places: of all ways to
    divide them, the real one loses the most only by chance. That is exact for blocks that differ by
    chance alone, and close to it where those of then have another number of samples, if there are
    as many blocks of then as of today.

    Args:
        model: the dense network.
        plan: in use; plans by the stats remove as many units, or give as many layers N:M.
        criterion: that plans by relevance; units are weighed by their parameters.
        then: stats of blocks of what the plan was made with, such as of each calibration batch.
            Each counts the same, whatever its number of samples.
        now: of blocks of today's traffic, as `flexrel.online.Recalibrator.blocks()` has them.
        shuffles: how many ways to divide the blocks are looked at besides the real one.
        seed: of these.

    Raises:
        UsageError: the criterion does not look at relevance, the stats are of another network, or
            blocks are too few.
    """
    if attribution_of(criterion) is None:
        raise UsageError(
            f"criterion {criterion.name!r} does not look at relevance, so no stats move its plan"
        )
    ways = comb(len(then) + len(now), len(then))
    if ways < _WAYS:
        raise UsageError(
            f"{len(then)} blocks of then and {len(now)} of now can be divided in {ways} ways only, "
            "too few to tell chance from drift; pass 8 of each"
        )
    blocks = [_mean(block, plan) for block in (*then, *now)]
    tensors = named_tensors(plain_network(model).network)

    def planned(places: Places) -> Planned:
        stats = reduce(add, [blocks[at] for at in places])
        return _planned(plan, criterion, tensors, stats)

    loss, chance = shuffled(
        lambda one, other: _loss(planned(one), planned(other)),
        *(len(then), len(now), shuffles, seed),
    )
    of_today = range(len(then), len(blocks))
    today = planned(of_today)[0]
    halves = [planned(of_today[half::2])[0] for half in range(2)]
    return Drift(removed_otherwise(plan, today), removed_otherwise(*halves), loss, chance)


def shuffled(
    statistic: Callable[[Places, Places], float], then: int, now: int, shuffles: int, seed: int
) -> tuple[float, float]:
    """Return a statistic of two groups of blocks, and the share of shuffles where it is as large.

    Args:
        statistic: of the places of each group's blocks; large where the groups differ.
        then: how many blocks the first group has.
        now: the second.
        shuffles: of all blocks. The real order counts as one more, so that no share is 0 and that
            in `p` of the cases where the groups are alike the share is at most `p`.
        seed: of the shuffles.

    Source:
        Phipson and Smyth 2010, on p-values of permutations.
    """
    places = list(range(then + now))
    real = statistic(places[:then], places[then:])
    draw = random.Random(seed)  # noqa: S311 - it shuffles, no secrets
    as_large = 1
    for _ in range(shuffles):
        draw.shuffle(places)
        one, other = sorted(places[:then]), sorted(places[then:])
        as_large += statistic(one, other) >= real
    return real, as_large / (1 + shuffles)


def removed_otherwise(one: Plan, other: Plan) -> float:
    """Return which share of the units that one plan removes the other keeps; 0 if none goes."""
    kept = sum(
        int((~one.masks[group.name] & other.masks[group.name]).sum()) for group in one.graph.groups
    )
    return kept / one.removed if one.removed else 0.0


def _mean(block: RelevanceStats, plan: Plan) -> RelevanceStats:
    known = plan.graph.fingerprint
    if block.model and known and block.model != known:
        raise UsageError(
            f"stats of the network of fingerprint {block.model[:8]} say nothing of a plan for "
            f"{known[:8]}"
        )
    if not block.samples > 0:
        raise UsageError("a block of stats has no samples")
    return block.scaled(1 / block.samples)


def _planned(
    plan: Plan, criterion: Criterion, tensors: Mapping[str, Tensor], stats: RelevanceStats
) -> Planned:
    """Return the plan by these stats that removes as much, and the scores that it is made of."""
    scores = scores_of(criterion, plan.graph, tensors, stats)
    ranking = rank_units(plan.graph, scores)
    if isinstance(ranking, PatternRanking):
        return ranking.plan(sum(not bool(mask.all()) for mask in plan.masks.values())), scores
    return ranking.plan(min(plan.removed, ranking.removable)), scores


def _loss(one: Planned, other: Planned) -> float:
    """Return the score that each plan loses by the other's scores, against the other's plan."""
    total = 0.0
    for group in one[0].graph.groups:
        first, second = one[0].masks[group.name], other[0].masks[group.name]
        gained = other[1][group.name] - one[1][group.name]
        total += float(gained[second & ~first].sum() - gained[first & ~second].sum())
    return total
