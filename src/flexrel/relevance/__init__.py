"""Relevance: how it goes back through a network, and what of it comes to each layer."""

from flexrel.relevance.balance import Balance
from flexrel.relevance.blocks import ForgettingBlocks, encode_blocks, load_blocks
from flexrel.relevance.calibrate import calibrate
from flexrel.relevance.layer import Affine
from flexrel.relevance.merge import MOST_SAMPLES, MergedStats, merge
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
from flexrel.relevance.sharing import SharedPasses
from flexrel.relevance.stats import RelevanceStats
from flexrel.relevance.targets import OUTPUTS, Attribution, AttributionTarget, check_output, counted
from flexrel.relevance.vectors import LayerRelevance, Part

__all__ = [
    "MOST_SAMPLES",
    "OUTPUTS",
    "RULES",
    "Affine",
    "AttnLRP",
    "Attribution",
    "AttributionTarget",
    "Balance",
    "ByDepth",
    "ByName",
    "Epsilon",
    "ForgettingBlocks",
    "Gamma",
    "GradientInput",
    "LayerRelevance",
    "MergedStats",
    "Part",
    "RelevanceStats",
    "Rule",
    "RuleLike",
    "SharedPasses",
    "ZPlus",
    "calibrate",
    "check_output",
    "counted",
    "encode_blocks",
    "load_blocks",
    "merge",
    "rule_of",
]
