"""A limit on time: when the stages of a call end, with what they have done by then."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from flexrel.core.measurement import Progress
from flexrel.core.quantities import is_number, number_of, seconds_of
from flexrel.errors import UsageError


class OutOfTimeError(Exception):
    """A stage's time is up: raised by its progress, and caught where what is done by then counts.

    None leaves `prune`.
    """


@dataclass(frozen=True, slots=True)
class Deadline:
    """The time that is left to stages: from one moment of `time.monotonic` to another."""

    begins: float
    ends: float

    @staticmethod
    def after(limit: str | float | None) -> "Deadline":
        """Return what is left from now on of a limit: seconds, or a text; None: no end.

        Raises:
            UsageError: it is no time.
        """
        now = time.monotonic()
        return Deadline(now, now + (math.inf if limit is None else seconds_in(limit)))

    @property
    def left(self) -> float:
        """How many seconds there still are; negative where it is over."""
        return self.ends - time.monotonic()

    @property
    def gone(self) -> float:
        """How many seconds are over."""
        return time.monotonic() - self.begins

    def reserving(self, seconds: float) -> "Deadline":
        """Return what is left from now on of the time, if so many seconds at its end are kept."""
        return replace(self, begins=time.monotonic(), ends=self.ends - seconds)

    def reached(self, share: float) -> bool:
        """Return whether so large a share of the time is over."""
        if math.isinf(self.ends):
            return False
        return time.monotonic() >= self.begins + share * max(self.ends - self.begins, 0.0)

    def ending(self, progress: Progress, shares: Mapping[str, float]) -> Progress:
        """Return a progress that ends stages after the step in which their time is up.

        Args:
            progress: is told all.
            shares: how names of stages begin -> which share of the time may be over when they end.
        """

        def tell(stage: str, done: int, total: int | None) -> None:
            progress(stage, done, total)
            if done and done != total:
                share = next((s for name, s in shares.items() if stage.startswith(name)), None)
                if share is not None and self.reached(share):
                    raise OutOfTimeError(f"the time was up at {done} of {total} of {stage!r}")

        return progress if math.isinf(self.ends) else tell


NO_DEADLINE: Final = Deadline(0.0, math.inf)


def seconds_in(limit: str | float) -> float:
    """Return the seconds of a limit: 90, "90 s" or "2 min".

    Raises:
        UsageError: it is no time above 0.
    """
    if isinstance(limit, str):
        bare = limit.strip()
        plain = is_number(bare) and not bare.endswith("%")
        seconds = number_of(bare) if plain else seconds_of(bare)
    else:
        seconds = number_of(limit)
    if seconds is None or not 0 < seconds < math.inf:
        raise UsageError(f'time_limit is {limit!r}; write it like "90 s", "2 min" or 90')
    return float(seconds)
