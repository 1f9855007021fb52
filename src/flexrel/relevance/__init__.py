"""Relevance: how it goes back through a network, and what of it comes to each layer."""

from flexrel.relevance.affine import READERS, Affine, AffineCall, Geometry
from flexrel.relevance.fold import Folder
from flexrel.relevance.follow import Follow
from flexrel.relevance.functions import ASKS, Function, expanded, flat, name_of
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
from flexrel.relevance.weights import Weights

__all__ = [
    "ASKS",
    "READERS",
    "RULES",
    "Affine",
    "AffineCall",
    "AttnLRP",
    "Balance",
    "ByDepth",
    "ByName",
    "Epsilon",
    "Folder",
    "Follow",
    "Function",
    "Gamma",
    "Geometry",
    "GradientInput",
    "LayerSums",
    "Ledger",
    "Rule",
    "RuleLike",
    "Suspect",
    "Weights",
    "ZPlus",
    "expanded",
    "flat",
    "merged",
    "name_of",
    "rule_of",
]
