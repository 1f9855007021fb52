"""Relevance: how it goes back through a network, and what of it comes to each layer."""

from flexrel.relevance.affine import Affine, AffineCall, Geometry
from flexrel.relevance.fold import Folded, Folder
from flexrel.relevance.follow import Follow
from flexrel.relevance.functions import flat
from flexrel.relevance.ledger import Balance, Ledger, merged
from flexrel.relevance.listening import LayerCall, Listening, Step, layer_call
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
from flexrel.relevance.suspect import Suspect
from flexrel.relevance.together import Layout, Place, by_layer, together
from flexrel.relevance.weights import Weights

__all__ = [
    "RULES",
    "Affine",
    "AffineCall",
    "AttnLRP",
    "Balance",
    "ByDepth",
    "ByName",
    "Epsilon",
    "Folded",
    "Folder",
    "Follow",
    "Gamma",
    "Geometry",
    "GradientInput",
    "LayerCall",
    "Layout",
    "Ledger",
    "Listening",
    "Place",
    "Rule",
    "RuleLike",
    "Step",
    "Suspect",
    "Weights",
    "ZPlus",
    "by_layer",
    "flat",
    "layer_call",
    "merged",
    "rule_of",
    "together",
]
