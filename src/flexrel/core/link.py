"""A budget on the time that a network's packed file takes over a link."""

from dataclasses import dataclass
from typing import Final

from flexrel.core.quantities import asked_share, bits_per_second_of, seconds_of
from flexrel.core.resources import Candidate, Resource
from flexrel.errors import UsageError

_BITS: Final = 8  # of a byte


@dataclass(frozen=True, slots=True)
class _Transfer:
    """Counts the seconds that a candidate's packed file takes."""

    bits_per_second: float

    def __call__(self, candidate: Candidate) -> float:
        """Return the seconds."""
        return _BITS * len(candidate.packed) / self.bits_per_second


@dataclass(frozen=True, slots=True)
class Link:
    """At most `amount` of time for the packed file over a link: `Link("8 s", "1 Mbit/s")`.

    What is counted are the bytes of the file; what a protocol adds, and how long its first answer
    takes, are not.

    Attributes:
        amount: a time with its unit, "500 ms", "8 s" or "2 min"; or a share of the time that the
            dense network's file takes, "50%" or 0.5.
        rate: of the link, in bit/s, kbit/s, Mbit/s, B/s, kB/s or MB/s.

    Raises:
        UsageError: one of them can't be read.
    """

    amount: float | str
    rate: str

    def __post_init__(self) -> None:
        share = asked_share(self.amount)
        time = seconds_of(self.amount) if isinstance(self.amount, str) else None
        if not time and not (share is not None and 0 < share <= 1):
            raise UsageError(
                f"link budget is {self.amount!r}; write a time like '8 s', '500 ms' or '2 min', or "
                "a share of the dense network's like '50%'"
            )
        if not isinstance(self.rate, str) or not bits_per_second_of(self.rate):
            raise UsageError(
                f"rate of the link is {self.rate!r}; write it like '1 Mbit/s', '250 kbit/s' or "
                "'125 kB/s'"
            )

    @property
    def resource(self) -> Resource:
        """The seconds that a packed file takes over this link."""
        return Resource(
            "link",
            _Transfer(float(bits_per_second_of(self.rate) or 0)),
            unit="s",
            steady=False,
            tolerance=0.002,
        )

    def limit(self, dense: float) -> float:
        """Return the most seconds allowed."""
        share = asked_share(self.amount)
        return float(seconds_of(str(self.amount)) or 0) if share is None else share * dense

    @staticmethod
    def read(text: str) -> "Link":
        """Return the budget of a text such as "8s@1Mbit/s".

        Raises:
            UsageError: a part is missing, or can't be read.
        """
        amount, _, rate = text.partition("@")
        return Link(amount, rate)
