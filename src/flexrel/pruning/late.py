"""What a limit on time left undone, for the user of a result to know."""

from collections.abc import Iterator, Sequence

from flexrel.core.batches import samples_of
from flexrel.core.deadline import Deadline
from flexrel.core.measurement import RecoveryStep
from flexrel.pruning.choice import Solution
from flexrel.pruning.data import CalibrationData
from flexrel.pruning.request import Request
from flexrel.pruning.signals import Relevances
from flexrel.relevance import RelevanceStats
from flexrel.repair import LATE

_MORE = 0.1  # of the time: so much more is not worth a word


def late_warnings(
    deadline: Deadline,
    request: Request,
    solution: Solution,
    relevances: Relevances,
    data: CalibrationData,
    steps: Sequence[RecoveryStep],
) -> Iterator[str]:
    """Yield what a limit on time left undone.

    Args:
        deadline: of the whole call.
        request: that it was part of.
        solution: the best found.
        relevances: as they were measured.
        data: that they could have been measured on.
        steps: of recovery.
    """
    limit = request.options.time_limit
    if limit is None:
        return
    told = f"time_limit={limit!r}"
    if deadline.left < -_MORE * deadline.gone:
        yield f"{told} was too short: the call took {deadline.gone:.1f} s"
    samples = samples_of(data.fitted, solution.network.exact)
    for stats in relevances.values():
        if isinstance(stats, RelevanceStats) and stats.samples < samples:
            yield f"{told}: relevance is that of {stats.samples:g} of {samples} samples"
    if request.repair and not steps:
        yield f"{told}: there was no time left to repair the network"
    for step in steps:
        for note in step.notes:
            if note.startswith(LATE):
                yield f"{told}: {step.name}: {note}"
    if request.targets and not solution.search.in_time:
        yield f"{told} ended the search for the target; a longer one may find a smaller network"
