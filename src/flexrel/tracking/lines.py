"""Events as JSON lines."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from flexrel.core.events import JudgedCandidate
from flexrel.errors import UsageError

TOLD: Final = ("requested", "achieved", "criterion", "delta", "granularity", "seed", "warnings")


class JsonLines:
    """Appends a JSON object a line to a file for each event, at once.

    Each has `event` ("stage_began", "stage_ended", "judged", "finished", "stopped") and `time`,
    seconds since 1970; then `stage` and `seconds`; or the fields of `JudgedCandidate`; or what of
    `result.json` says what was asked and what came out; or `reason`.
    """

    def __init__(self, path: str | Path) -> None:
        """Begin the file if it is not there.

        Args:
            path: of the file; lines are added to what it holds.

        Raises:
            UsageError: it can't be written.
        """
        self._path = Path(path)
        try:
            with self._path.open("a", encoding="utf-8"):
                pass
        except OSError as error:
            raise UsageError(f"{path}: events can't be written there: {error.strerror}") from error

    def stage_began(self, stage: str) -> None:
        """Write that a stage begins."""
        self._write("stage_began", {"stage": stage})

    def stage_ended(self, stage: str, seconds: float) -> None:
        """Write that it is over."""
        self._write("stage_ended", {"stage": stage, "seconds": seconds})

    def judged(self, candidate: JudgedCandidate) -> None:
        """Write the numbers of a network made on the way."""
        told = asdict(candidate)
        numbers = {name: _finite(value) for name, value in candidate.numbers.items()}
        self._write("judged", {**told, "numbers": numbers})

    def finished(self, record: Mapping[str, Any]) -> None:
        """Write what was asked and what came out."""
        self._write("finished", {name: record[name] for name in TOLD})

    def stopped(self, reason: str) -> None:
        """Write why there is no result."""
        self._write("stopped", {"reason": reason})

    def _write(self, event: str, content: Mapping[str, Any]) -> None:
        line = json.dumps({"event": event, "time": time.time(), **content}, allow_nan=False)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _finite(value: float) -> float | None:
    """Return the value, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None
