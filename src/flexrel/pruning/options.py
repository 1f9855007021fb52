"""The rarer options of `prune`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flexrel.core.events import Listener
from flexrel.core.outputs import RequestedOutputs
from flexrel.core.progress import RequestedProgress
from flexrel.core.resources import Resource
from flexrel.criteria import History
from flexrel.relevance import RelevanceStats

Form = Literal["auto", "module", "exported"]
Effort = Literal["fast", "default", "thorough"]
EFFORTS: tuple[Effort, ...] = ("fast", "default", "thorough")
FORMS: tuple[Form, ...] = ("auto", "module", "exported")


@dataclass(frozen=True, slots=True)
class PruneOptions:
    """The rarer options of `prune`.

    Attributes:
        allocation: "global" compares all units of the network; "per-layer" takes the same share
            of every layer.
        multiple_of: round the widths that remain up to multiples of this, such as 8: kernels of
            some devices want it, and onnxruntime's convolutions. For channels and heads. With a
            budget on latency 1 stands for what is measured to be fast.
        form: "module" cuts the module itself, so that its class stays; "exported" cuts a
            self-contained program that `torch.export` makes of it, where numbers in its code are
            no obstacle, and which is in evaluation mode for good; "auto" takes the program only
            where the module can't be cut, or not enough for the budgets, and the program can.
        effort: "fast" tries one criterion where none is named, the one that was best most often;
            "default" compares several by networks repaired with few samples, and repairs the best
            one or two with all, or with a target those that may come out smaller; "thorough"
            repairs each with all, to more rows.
        outputs: what the network's outputs are, which says how far two networks are apart:
            "classes", scores `[samples, classes]`; "logits", each a yes or no of its own; "values";
            or a function (dense network's result, another's) -> their mean distance, of a batch.
            "auto" goes by the labels of calibration or evaluation; without labels by a distance
            that sees scale and shift, as of "values". `FineTune` follows it.
        minimise: what is to be least where there is a target: "bytes" of the packed file, "macs",
            "parameters", or any `flexrel.Resource`.
        assured: with a target on accuracy, keep so far within it on the samples searched with that
            those set aside can mostly confirm it: less goes, and `Result.promise` is mostly kept.
        regrow: let weights that were zero in the network that came be fitted and trained as all
            others; those that the plan sets to zero stay so. How many came back is among the notes
            of the repair.
        stats: relevance of this very network, measured before: taken wherever a criterion needs
            relevance, and none is measured.
        history: averages over training (`flexrel.training.Tracker`), which stand for the weights
            where a criterion asks how large they are, and for relevance, if some was tracked and no
            `stats` are given.
        time_limit: seconds, or a text as "2 min", for the whole call: stages end early, with what
            they have done, to return by then the best found so far, whole. How that was is among
            the result's warnings. Reading, evaluating, tracing and timing for a budget on latency
            take what they take.
        cache: a folder where relevance and saliency of this network on these data are kept, for
            calls that ask for something else, or after one that was stopped.
        listeners: told of stages, of candidates with their numbers, and of the result, as those in
            `flexrel.tracking` are for JSON lines, TensorBoard, MLflow and Weights & Biases.
        metadata: texts that the packed file keeps, as in `pack`: labels, preprocessing, licence.
        class_names: what classes are called, by their number, or labels where a sample has several.
            Without any they are called as the data do (`.classes` of a data set, as torchvision's
            `ImageFolder` has it), else as the network's configuration does (`id2label`).
        progress: "auto" draws bars in a terminal or notebook, and elsewhere prints a line every
            few seconds; a function (stage, steps done, steps in all or None) is told of each step.
    """

    allocation: Literal["global", "per-layer"] = "global"
    multiple_of: int = 1
    form: Form = "auto"
    effort: Effort = "default"
    outputs: RequestedOutputs = "auto"
    minimise: str | Resource = "bytes"
    assured: bool = False
    regrow: bool = False
    stats: RelevanceStats | None = None
    history: History | None = None
    time_limit: str | float | None = None
    cache: str | Path | None = None
    listeners: Sequence[Listener] = ()
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)
    class_names: Sequence[str] = ()
    progress: RequestedProgress = None

    @property
    def known_relevance(self) -> RelevanceStats | None:
        """What is taken for relevance, and not measured."""
        tracked = None if self.history is None else self.history.relevance
        return tracked if self.stats is None else self.stats
