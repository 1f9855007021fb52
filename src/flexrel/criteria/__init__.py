"""What is worth keeping: signals of units, scores made of them, and the order that these give."""

from flexrel.criteria.criteria import (
    BLENDS,
    OBS,
    SALIENCY,
    Blend,
    Criterion,
    FlexRel,
    Magnitude,
    Relevance,
    attribution_of,
    scores_of,
)
from flexrel.criteria.ranking import (
    ALLOCATIONS,
    Ranking,
    UnitRanking,
    fitting_multiple,
    rank_units,
)
from flexrel.criteria.saliency import measure_saliency
from flexrel.criteria.signals import GroupSignals, without_unmeasured

__all__ = [
    "ALLOCATIONS",
    "BLENDS",
    "OBS",
    "SALIENCY",
    "Blend",
    "Criterion",
    "FlexRel",
    "GroupSignals",
    "Magnitude",
    "Ranking",
    "Relevance",
    "UnitRanking",
    "attribution_of",
    "fitting_multiple",
    "measure_saliency",
    "rank_units",
    "scores_of",
    "without_unmeasured",
]
