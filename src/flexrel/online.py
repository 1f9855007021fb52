"""Relevance measured while a network is in use, off the path of its requests.

Every request is answered by the plain forward pass. A sampled share of them also runs the relevance
pass afterwards, in one background thread, and no more of it than a share of the time that answers
took. Requests of one kind share a pass, where the network answers each of them in it as it does
alone. What was measured long ago is forgotten exponentially, so that the stats follow the requests.
"""

import atexit
import logging
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from flexrel.core.batches import Batch
from flexrel.core.joint import copied
from flexrel.core.network import private_copy
from flexrel.core.running import fingerprint
from flexrel.core.throttle import MOST_TOGETHER, Throttle
from flexrel.criteria import Drift, drift
from flexrel.errors import UsageError
from flexrel.relevance import (
    Attribution,
    AttributionTarget,
    ForgettingBlocks,
    RelevanceStats,
    RuleLike,
    SharedPasses,
    encode_blocks,
    load_blocks,
)
from flexrel_edge.files import replace_file

__all__ = ["Drift", "Observed", "Recalibrator", "drift"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Observed:
    """What a recalibrator has done since it was made.

    Attributes:
        requests: answered.
        measured: of these, whose relevance was measured and counted.
        failed: of these, whose relevance pass failed; the stats are without them.
        answering: seconds that the answers took.
        measuring: seconds that relevance passes took.
        share: of requests that is sampled now, on average.
        error: what the last failure of a relevance pass or of saving said; "" if there was none.
    """

    requests: int
    measured: int
    failed: int
    answering: float
    measuring: float
    share: float
    error: str

    @property
    def overhead(self) -> float:
        """Seconds of relevance passes for one second of answers."""
        return self.measuring / self.answering if self.answering else 0.0


class Recalibrator:
    """Answers as the network does, and learns from some of the requests what matters in it.

        with Recalibrator(model, state="relevance.state") as answer:
            scores = answer(images)  # from any thread
        answer.stats()  # for `PruneOptions(stats=...)`, or saved, for `flexrel merge`

    Threads may share it. No labels are needed: relevance starts from the class that the network
    itself predicts, where it gives class scores. While a relevance pass runs, a model that was
    compiled with `torch.compile` answers uncompiled.
    """

    def __init__(
        self,
        model: nn.Module,
        max_overhead: float = 0.05,
        half_life: float = 10_000,
        *,
        dense: nn.Module | None = None,
        rule: RuleLike = "gradient-input",
        output: str | AttributionTarget = "auto",
        state: str | Path | None = None,
        save_every: float = 60.0,
        seed: int = 0,
    ) -> None:
        """Restore the state, if there is one, and start the background thread.

        Args:
            model: that answers; called as it is, in the caller's thread and modes.
            max_overhead: seconds of relevance passes for one second of answers, at most.
            half_life: after so many further samples of which relevance was measured, one counts
                half.
            dense: the network that the model was pruned from, if it was, by whose relevance to
                plan anew; None: the model's own is measured. A pruned network uses what it has
                left, so its relevance says nothing of what is gone.
            rule: as in `calibrate`.
            output: likewise, but not "label".
            state: a file that the stats are kept in; None: they end with the process.
            save_every: seconds between two saves, if there is something new; a sampled request
                waits for others to share its pass no longer than that.
            seed: of which requests are sampled.

        Raises:
            UsageError: an argument makes no sense, or the state is of another network or way to
                measure.
            PackError: the state is damaged.
        """
        above = {"max_overhead": max_overhead, "half_life": half_life, "save_every": save_every}
        for name, value in above.items():
            if not value > 0:
                raise UsageError(f"{name}={value} must be above 0")
        if output == "label":
            raise UsageError(
                "output='label' needs labels, which requests don't have; use 'predicted'"
            )
        wanted, network = Attribution(rule, output), model if dense is None else dense
        self._model, self._passes = model, SharedPasses(network, wanted)
        self._state, self._save_every = None if state is None else Path(state), save_every
        self._blocks = ForgettingBlocks(half_life)
        if self._state is not None and self._state.exists():
            own = fingerprint(private_copy(network))
            self._blocks.restore(load_blocks(self._state, own, wanted))
        self._throttle = Throttle(max_overhead, seed)
        self._waiting: list[tuple[Batch, float]] = []  # and since when
        self._changed = threading.Condition()  # guards all that is below, blocks and throttle
        self._new = self._closed = False
        self._failed, self._error = 0, ""
        self._saving = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="flexrel-relevance", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the model
        """Return what the model returns for these arguments; raises what it raises."""
        with self._changed:
            wanted = not self._closed and self._throttle.wants()
        batch = None
        try:
            if wanted:
                batch = copied(args, kwargs)  # the model may overwrite its inputs
        except RuntimeError as error:  # no memory for that: the request is answered all the same
            self._told(f"a request could not be copied: {error}")
        began = time.perf_counter()
        try:
            answer = self._model(*args, **kwargs)
        except BaseException:
            with self._changed:
                self._throttle.waiting -= wanted
            raise
        seconds = time.perf_counter() - began
        with self._changed:
            self._throttle.answered(seconds)
            if batch is not None and not self._closed:
                self._waiting.append((batch, time.monotonic()))
            else:
                self._throttle.waiting -= wanted
            if self._waiting and self._throttle.due(len(self._waiting)):
                self._changed.notify()
        return answer

    def stats(self) -> RelevanceStats:
        """Return the sums, what is old forgotten in part; `samples` is what is left of the count.

        Raises:
            UsageError: no request was measured yet.
        """
        first, *others = self.blocks()
        for block in others:
            first = first + block
        return first

    def blocks(self) -> list[RelevanceStats]:
        """Return the same in up to 8 parts of about as many samples, for `drift`.

        Raises:
            UsageError: no request was measured yet.
        """
        with self._changed:
            blocks = self._blocks.now()
            requests = self._throttle.requests
        if not blocks:
            said = f"; the last relevance pass failed: {self._error}" if self._error else ""
            raise UsageError(f"no relevance was measured yet, of {requests:,} requests{said}")
        return blocks

    def observed(self) -> Observed:
        """Return what was done since it was made, and what it cost."""
        with self._changed:
            t = self._throttle
            done = (t.requests, t.measured - self._failed, self._failed)
            return Observed(*done, t.answering, t.measuring, t.share, self._error)

    def save(self) -> None:
        """Write the state now, beside the old one, and rename; without a `state=`, do nothing.

        Raises:
            OSError: it can't be written; the old state is whole.
        """
        if self._state is None:
            return
        with self._saving:
            with self._changed:
                blocks, self._new = self._blocks.now(), False
            try:
                replace_file(self._state, encode_blocks(blocks))
            except OSError:
                with self._changed:
                    self._new = True
                raise

    def close(self) -> None:
        """Measure what waits, save, and end the thread; requests are answered all the same.

        Raises:
            OSError: the state can't be written.
        """
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify()
        self._thread.join()
        atexit.unregister(self.close)
        if self._new:
            self.save()

    def __enter__(self) -> "Recalibrator":  # noqa: PYI034 - the type checks of tests want a name
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        """Measure what waits, and save when it is time, until all is done after `close`."""
        saved = time.monotonic()
        while True:
            with self._changed:
                if not (batches := self._due()) and not self._closed:
                    self._changed.wait(self._until(saved))
                    batches = self._due()
                if not batches and self._closed:
                    return
            if batches:
                self._measure(batches)
            if self._new and self._state and time.monotonic() >= saved + self._save_every:
                try:
                    self.save()
                except OSError as error:
                    self._told(f"{error.filename or self._state}: {error.strerror or error}")
                saved = time.monotonic()

    def _until(self, saved: float) -> float | None:
        """Return in how many seconds something is to do, whatever comes; None: nothing is."""
        moments = [since for _, since in self._waiting[:1]]
        moments += [saved] if self._state and self._new else []
        left = min(moments, default=math.inf) + self._save_every - time.monotonic()
        return max(left, 0.01) if left < threading.TIMEOUT_MAX else None

    def _due(self) -> list[Batch]:
        """Take the requests of the next pass from those that wait; none if they go on waiting."""
        if not self._waiting:
            return []
        late = time.monotonic() >= self._waiting[0][1] + self._save_every
        if not (late or self._closed or self._throttle.due(len(self._waiting))):
            return []
        taken = self._passes.of_one([batch for batch, _ in self._waiting], MOST_TOGETHER)
        mine = set(map(id, taken))
        self._waiting = [pair for pair in self._waiting if id(pair[0]) not in mine]
        return taken

    def _measure(self, batches: Sequence[Batch]) -> None:
        for one in self._passes.made(batches):
            with self._changed:
                self._throttle.passed(one.seconds, one.requests)
                if one.stats is not None:
                    self._blocks.add(one.stats)
                    self._new = True
                self._failed += bool(one.failure)
            if one.failure:
                self._told(one.failure)

    def _told(self, error: str) -> None:
        """Keep what went wrong, and log the first of it."""
        with self._changed:
            first, self._error = not self._error, error
        if first:
            _LOG.warning("%s", error)
