"""A budget on the time that a call takes in a runtime, and what is known of that time."""

import re
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, get_args

from flexrel.core.graph import PruningGraph
from flexrel.core.latency_model import LatencyModel
from flexrel.core.quantities import asked_share, seconds_of
from flexrel.core.resources import BoundBudget, Candidate, Resource
from flexrel.errors import UsageError

Runtime = Literal["torch", "onnxruntime", "openvino"]
RUNTIMES: Final[tuple[Runtime, ...]] = get_args(Runtime)
_MILLISECONDS: Final = 1000  # of a second
_WHOLE = re.compile(r"[1-9][0-9]{0,5}")
_EXAMPLE: Final = "latency=5ms@onnxruntime,batch=1,threads=1"


def _unmeasured(candidate: Candidate) -> float:
    raise UsageError(
        f"latency is measured on the network that is pruned, which {type(candidate).__name__} has "
        "not; pass the budget to flexrel.prune"
    )


def _advice(graph: PruningGraph) -> str:
    return (
        "Zeros save no time in these runtimes; use granularity='channel'."
        if (graph.pattern.zeros)
        else ""
    )


@dataclass(frozen=True, slots=True)
class Latency:
    """At most `amount` of time for a call: "5 ms", or a share of the dense network's, "50%" or 0.5.

    The time is that of the network as it is exported: in torch of the program that `torch.export`
    makes of it, in onnxruntime and OpenVINO of the ONNX file; float32, on the CPU. It is measured
    in a process of its own, in turn with the dense network, and what is returned was really
    measured to keep to the limit. Widths are rounded to multiples that are fast in the runtime,
    which is measured too, if `PruneOptions.multiple_of` asks for none.

    Attributes:
        amount: of time a call.
        runtime: "torch", "onnxruntime" or "openvino".
        batch: samples a call.
        threads: that a call may use.
        cache: folder that keeps what was measured of layers, by machine, runtime and its version,
            for the next time; "": nothing is kept.
        profile: file of times that `flexrel-edge profile` measured on another device, in
            onnxruntime. Nothing is measured here then: what is returned is expected to keep to the
            limit, which `flexrel-edge run --repeat` tells there. "": this machine is meant.

    Raises:
        UsageError: one of them can't be read.
    """

    amount: float | str
    runtime: str = "torch"
    batch: int = 1
    threads: int = 1
    cache: str = ""
    profile: str = ""
    resource: ClassVar[Resource] = Resource("latency", _unmeasured, advice=_advice, unit="ms")

    def __post_init__(self) -> None:
        share = asked_share(self.amount)
        time = seconds_of(self.amount) if isinstance(self.amount, str) else None
        if not time and not (share is not None and 0 < share <= 1):
            raise UsageError(
                f"latency budget is {self.amount!r}; write a time like '5 ms', or a share of the "
                "dense network's like '50%'"
            )
        if self.runtime not in RUNTIMES:
            raise UsageError(
                f"runtime {self.runtime!r} is not known; there are: {', '.join(RUNTIMES)}"
            )
        if self.profile and self.runtime != "onnxruntime":
            raise UsageError(
                f"a latency profile is of onnxruntime, the budget of {self.runtime}; write it like "
                "latency=5ms@onnxruntime,profile=device.json"
            )
        for name, number in (("batch", self.batch), ("threads", self.threads)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise UsageError(f"{name} of a latency is {number!r}; it is a whole number from 1")

    @property
    def share(self) -> float | None:
        """The share of the dense network's time that is asked for; None if it is a time."""
        return asked_share(self.amount)

    def limit(self, dense: float) -> float:
        """Return the most milliseconds allowed."""
        if self.share is not None:
            return self.share * dense
        return float(_MILLISECONDS * (seconds_of(str(self.amount)) or 0))

    def bound(self, model: LatencyModel) -> BoundBudget:
        """Return the same limit on what one network's layers were measured to take."""
        resource = Resource(
            "latency",
            _Predicted(model),
            unit_costs=model.unit_costs,
            advice=_advice,
            unit="ms",
        )
        return BoundBudget(self, resource)

    @staticmethod
    def read(text: str) -> "Latency":
        """Return the budget of a text such as "5ms@onnxruntime,batch=1,threads=1".

        Raises:
            UsageError: a part can't be read.
        """
        amount, _, rest = text.partition("@")
        runtime, *options = rest.split(",") if rest else ("torch",)
        named = dict[str, str]()
        for option in options:
            name, _, value = option.partition("=")
            if name not in ("batch", "threads", "cache", "profile") or not value or name in named:
                raise UsageError(f"{option!r} can't be read; write it like {_EXAMPLE}")
            named[name] = value
        numbers = [named.get("batch", "1"), named.get("threads", "1")]
        if not all(map(_WHOLE.fullmatch, numbers)):
            raise UsageError(f"batch and threads are whole numbers from 1, as in {_EXAMPLE}")
        batch, threads = map(int, numbers)
        files = named.get("cache", ""), named.get("profile", "")
        return Latency(amount, runtime, batch, threads, *files)


@dataclass(frozen=True, slots=True)
class _Predicted:
    """Counts what a candidate is expected to take."""

    model: LatencyModel

    def __call__(self, candidate: Candidate) -> float:
        """Return the milliseconds."""
        if candidate.graph.pattern.zeros:  # masks of millions, which change nothing
            return self.model.dense
        return self.model.milliseconds(candidate.graph, candidate.plan.masks)


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a call of a network takes, measured in a process of its own.

    Attributes:
        runtime: as in `Latency`.
        version: of the runtime.
        batch: likewise.
        threads: likewise.
        milliseconds: of a call: the fastest of those in many turns, which nothing else slowed down.
        dense: of the dense network's, timed in turn with it: likewise.
        predicted: the share that was expected.
        machine: whose profile was gone by, so that nothing was measured; "": measured on this one.
    """

    runtime: str
    version: str
    batch: int
    threads: int
    milliseconds: float
    dense: float
    predicted: float
    machine: str = ""

    @property
    def share(self) -> float:
        """Of the dense network's time."""
        return self.milliseconds / self.dense

    @property
    def amounts(self) -> dict[str, tuple[float, float]]:
        """What the dense network takes, and this one, by the resource's name in records."""
        return {Latency.resource.key: (self.dense, self.milliseconds)}

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of it, a line each."""
        told = (
            f"latency is expected, not measured, of {self.machine}: save with the ONNX graph "
            "inside, and flexrel-edge run --repeat tells it there"
        )
        return (told,) if self.machine else ()

    def meets(self, budget: Latency) -> bool:
        """Return whether it keeps to the budget."""
        return self.milliseconds <= budget.limit(self.dense)
