"""Relevance: how it goes back through a network, and what of it comes to each layer."""

from flexrel.relevance.affine import Affine, Geometry
from flexrel.relevance.fold import Folder
from flexrel.relevance.follow import Follow
from flexrel.relevance.ledger import Balance, Ledger, merged
from flexrel.relevance.rules import (
    RULES,
    AttnLRP,
    ByDepth,
    ByName,
    Epsilon,
    Gamma,
    GradientInput,
    Rule,
    RuleLike,
    ZPlus,
    rule_of,
)
from flexrel.relevance.sums import LayerSums
from flexrel.relevance.suspect import Suspect

__all__ = [
    "RULES",
    "Affine",
    "AttnLRP",
    "Balance",
    "ByDepth",
    "ByName",
    "Epsilon",
    "Folder",
    "Follow",
    "Gamma",
    "Geometry",
    "GradientInput",
    "LayerSums",
    "Ledger",
    "Rule",
    "RuleLike",
    "Suspect",
    "ZPlus",
    "merged",
    "rule_of",
]
