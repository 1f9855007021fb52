"""The spine: from a network and what the target can afford to the pruned network."""

from flexrel.pruning.prune import prune
from flexrel.pruning.result import Result

__all__ = ["Result", "prune"]
