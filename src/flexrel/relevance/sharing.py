"""Relevance of requests that come one by one: many in one pass, where that changes nothing."""

import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import nn

from flexrel.core.batches import Batch
from flexrel.core.joint import answers_alike, as_one, kind_of
from flexrel.errors import FlexrelError
from flexrel.relevance.calibrate import calibrate
from flexrel.relevance.stats import RelevanceStats
from flexrel.relevance.targets import Attribution


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass took, and what it found.

    Attributes:
        seconds: that it took.
        requests: that are done with it.
        stats: of these; None where it only tried, or failed.
        failure: why the relevance of its request can't be measured; "" if it can.
    """

    seconds: float
    requests: int = 0
    stats: RelevanceStats | None = None
    failure: str = ""


@dataclass(slots=True)
class SharedPasses:
    """Measures requests, and learns which kinds of them may share a pass."""

    network: nn.Module
    wanted: Attribution
    _alike: dict[Hashable, bool] = field(default_factory=dict)  # of kinds that were tried

    def of_one(self, waiting: Sequence[Batch], most: int) -> list[Batch]:
        """Return the first of those that wait and up to `most` in all that may share its pass."""
        kind = kind_of(waiting[0])
        if kind is None or not self._alike.get(kind, True):
            return [waiting[0]]
        return [batch for batch in waiting if kind_of(batch) == kind][:most]

    def made(self, batches: Sequence[Batch]) -> Iterator[Pass]:
        """Yield the passes that requests of one kind take, as they are made.

        Several share one if the network answers each as it does alone, which the first of a kind
        tell. Each has its own where the shared one fails; if none of these does, so it is from
        then on.
        """
        kind = kind_of(batches[0])
        if len(batches) > 1 and kind not in self._alike:
            began = time.perf_counter()
            alike = answers_alike(self.network, batches)
            if alike is not None:
                self._alike[kind] = alike
            yield Pass(time.perf_counter() - began)
        sharing = len(batches) > 1 and self._alike.get(kind, False)
        if sharing:
            shared = self._made(batches)
            if not shared.failure:
                yield shared
                return
            yield Pass(shared.seconds)
        failed = False
        for batch in batches:
            one = self._made([batch])
            failed |= bool(one.failure)
            yield one
        if sharing and not failed:
            self._alike[kind] = False

    def _made(self, batches: Sequence[Batch]) -> Pass:
        began = time.perf_counter()
        stats, failure = None, ""
        try:
            batch = batches[0] if len(batches) == 1 else as_one(batches)
            stats = calibrate(self.network, [batch], self.wanted.rule, self.wanted.output)
        except Exception as error:  # noqa: BLE001 - of the user's rule or model; requests go on
            failure = str(error) if isinstance(error, FlexrelError) else repr(error)
        return Pass(time.perf_counter() - began, len(batches), stats, failure)
