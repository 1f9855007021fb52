"""How often to do some work beside requests, so that it keeps to a share of their time."""

import random
from typing import Final

MOST_TOGETHER: Final = 16  # requests that one pass measures
MOST_WAITING: Final = 2 * MOST_TOGETHER  # of one pass that runs, and of the next


class Throttle:
    """Decides which requests are sampled, so that relevance passes keep to a share of the time.

    A request is sampled by chance, at the rate that the mean times allow, and never where its pass,
    with those that wait, would take more than the share of all time that answers took. So the
    overhead exceeds it by no more than what passes take beyond the mean; and by the first one,
    whose time nobody knows before.
    """

    def __init__(self, most: float, seed: int) -> None:
        """Take the most seconds of relevance passes for one second of answers."""
        self.most = most
        self.requests = self.measured = self.waiting = 0
        self.answering = self.measuring = 0.0
        self._together = 1
        self._draw = random.Random(seed)  # noqa: S311 - it draws samples, no secrets

    @property
    def share(self) -> float:
        """Of requests that is sampled on average; 1 as long as no pass was made."""
        if not self.measured or not self.measuring:
            return 1.0
        if not self.requests:
            return 0.0
        answer, one = self.answering / self.requests, self.measuring / self.measured
        return min(1.0, self.most * answer / one)

    def wants(self) -> bool:
        """Return whether to sample the next request; if so, it waits for its pass from now on."""
        one = self.measuring / self.measured if self.measured else 0.0
        due = self.measuring + (self.waiting + 1) * one
        known = self.measured or not self.waiting  # what the first takes decides about all others
        wanted = (
            known
            and self.waiting < MOST_WAITING
            and due <= self.most * self.answering
            and self._draw.random() < self.share
        )
        self.waiting += wanted
        return bool(wanted)

    def due(self, waiting: int) -> bool:
        """Return whether to measure so many that wait now.

        A pass of many takes much less than many of one. So they wait until there are as many as go
        together, twice as many from pass to pass, as the first says little of what many take; but
        where there is time for all requests.
        """
        return waiting >= self._together or (waiting > 0 and self.share >= 1)

    def answered(self, seconds: float) -> None:
        """Count a request and what its answer took."""
        self.requests += 1
        self.answering += seconds

    def passed(self, seconds: float, requests: int = 1) -> None:
        """Count a pass of requests that waited, and what it took."""
        self.waiting -= requests
        self.measured += requests
        self.measuring += seconds
        if requests:
            self._together = min(2 * self._together, MOST_TOGETHER)
