"""Listeners that keep track of runs: JSON lines, TensorBoard, MLflow, Weights & Biases.

log = flexrel.tracking.JsonLines("run.jsonl")
flexrel.prune(..., options=flexrel.PruneOptions(listeners=[log]))

One of one's own is any object that fits `Listener`.
"""

from flexrel.core.events import JudgedCandidate, Listener
from flexrel.tracking.lines import JsonLines
from flexrel.tracking.trackers import MLflow, TensorBoard, WeightsAndBiases

__all__ = [
    "JsonLines",
    "JudgedCandidate",
    "Listener",
    "MLflow",
    "TensorBoard",
    "WeightsAndBiases",
]
