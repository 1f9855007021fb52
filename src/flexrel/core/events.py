"""What goes on in a call, as events: for whoever keeps track of runs."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from flexrel.core.measurement import Progress
from flexrel.errors import UsageError


@dataclass(frozen=True, slots=True)
class JudgedCandidate:
    """A network that was made and judged on the way to the one returned.

    Attributes:
        criterion: that its plan is by.
        removed: how many units are gone.
        numbers: what it was judged by: metrics by name, or its "divergence" from the dense network.
        sketch: whether it was repaired with few samples, only to be compared.
        kept: whether it keeps to the targets; None: it was compared with other criteria's.
    """

    criterion: str
    removed: int
    numbers: Mapping[str, float] = field(hash=False)
    sketch: bool
    kept: bool | None


@runtime_checkable
class Listener(Protocol):
    """Is told what goes on, in the thread of the call; what it raises ends the call.

    But where it hears the result: that is there, and what it raises is a warning of it.
    """

    def stage_began(self, stage: str) -> None:
        """Hear that a stage begins; one at a time goes on."""

    def stage_ended(self, stage: str, seconds: float) -> None:
        """Hear that it is over, also by an error, and how long it took."""

    def judged(self, candidate: JudgedCandidate) -> None:
        """Hear of a network that was made on the way."""

    def finished(self, record: Mapping[str, Any]) -> None:
        """Hear the result: the content of `result.json`."""

    def stopped(self, reason: str) -> None:
        """Hear that an error, or Ctrl-C, ended the call without a result."""


Judge = Callable[[JudgedCandidate], None]


def unheard(candidate: JudgedCandidate) -> None:
    """Tell nobody of a candidate."""


def check_listeners(given: object) -> None:
    """Raise a UsageError for what is no sequence of listeners."""
    if not isinstance(given, Sequence):
        raise UsageError(f"listeners is a {type(given).__name__}; pass a list of listeners")
    for one in given:
        if not isinstance(one, Listener):
            raise UsageError(
                f"a {type(one).__name__} is no listener: it needs methods stage_began, "
                "stage_ended, judged, finished and stopped"
            )


@dataclass(slots=True)
class _Stages:
    """Tells listeners which stage goes on, by what a progress is told."""

    listeners: Sequence[Listener]
    names: Sequence[str]
    stage: str = ""
    began: float = 0.0

    def tell(self, name: str) -> None:
        """Take in the name of what goes on; one that is no stage's is a step within."""
        if name != self.stage and any(name.startswith(known) for known in self.names):
            self.end()
            self.stage, self.began = name, time.monotonic()
            for one in self.listeners:
                one.stage_began(name)

    def end(self) -> None:
        """End the stage that goes on."""
        stage, self.stage = self.stage, ""
        for one in self.listeners if stage else ():
            one.stage_ended(stage, time.monotonic() - self.began)


def result_told(listeners: Sequence[Listener], record: Mapping[str, Any]) -> tuple[str, ...]:
    """Tell all listeners the result; return what went wrong with each, a line."""
    failed = []
    for one in listeners:
        try:
            one.finished(record)
        except Exception as error:  # noqa: BLE001 - a server that is gone must not cost the result
            name = type(one).__name__
            failed.append(f"{name} did not take the result: {type(error).__name__}: {error}")
    return tuple(failed)


@contextmanager
def heard(
    listeners: Sequence[Listener], progress: Progress, stages: Sequence[str]
) -> Iterator[tuple[Progress, Judge]]:
    """Yield what to tell progress to, and candidates, so that listeners hear of them too.

    Args:
        listeners: that are told.
        progress: that is told as well.
        stages: how the names of stages begin.
    """
    known = _Stages(listeners, stages)

    def tell(name: str, done: int, total: int | None) -> None:
        known.tell(name)
        progress(name, done, total)

    def judged(candidate: JudgedCandidate) -> None:
        for one in listeners:
            one.judged(candidate)

    try:
        yield (tell, judged) if listeners else (progress, unheard)
    except BaseException as error:
        known.end()
        for one in listeners:
            one.stopped(f"{type(error).__name__}: {error}")
        raise
    known.end()
