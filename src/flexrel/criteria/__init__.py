"""What is worth keeping: signals of units, scores made of them, and the order that these give."""

from flexrel.criteria.criteria import (
    BLENDS,
    OBS,
    Blend,
    FlexRel,
    Magnitude,
    Relevance,
    scores_of,
)
from flexrel.criteria.criterion import (
    SALIENCY,
    Criterion,
    SaliencyTarget,
    attribution_of,
    saliency_of,
)
from flexrel.criteria.drift import Drift, drift
from flexrel.criteria.history import History
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
    "Drift",
    "FlexRel",
    "GroupSignals",
    "History",
    "Magnitude",
    "Ranking",
    "Relevance",
    "SaliencyTarget",
    "UnitRanking",
    "attribution_of",
    "drift",
    "fitting_multiple",
    "measure_saliency",
    "rank_units",
    "saliency_of",
    "scores_of",
    "without_unmeasured",
]
