"""The points of a sweep, kept in a study of Optuna on SQLite: what a stopped one goes on from."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flexrel.core.extras import extra_module
from flexrel.errors import UsageError
from flexrel.pruning.frontier import SweepPoint

STUDY: Final = "study.db"
_NAME: Final = "flexrel sweep"
_SUBJECT: Final = "subject"  # keys of what the study says besides
_POINT: Final = "point"
_CHOICES: Final = ("criterion", "granularity", "values")


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a network of a sweep is asked by.

    Attributes:
        position: its size, from 0, that of the dense network, to 1, the least possible, evenly in
            the logarithm.
        criterion: its name.
        granularity: of what goes.
        values: precision of the packed file.
    """

    position: float
    criterion: str
    granularity: str
    values: str


@dataclass(frozen=True, slots=True)
class Space:
    """What a search may choose from; the first of each is what was asked for.

    Attributes:
        criterion: names of criteria.
        granularity: of what goes.
        values: precisions of the packed file.
        fixed: which of these are left as they were asked for, as others bring nothing.
    """

    criterion: tuple[str, ...]
    granularity: tuple[str, ...]
    values: tuple[str, ...]
    fixed: frozenset[str] = frozenset()

    def asked(self, position: float) -> Proposal:
        """Return what was asked for, at one size."""
        return Proposal(position, self.criterion[0], self.granularity[0], self.values[0])

    def choices(self, name: str) -> tuple[str, ...]:
        """Return the choices of one kind."""
        found: tuple[str, ...] = getattr(self, name)
        return found


@dataclass(frozen=True, slots=True)
class SweepStudy:
    """A study of Optuna that holds a sweep's points, one a trial; a trial is there whole or not.

    Attributes:
        study: Optuna's.
        space: of the proposals of its points.
    """

    study: Any
    space: Space

    @property
    def points(self) -> tuple[SweepPoint, ...]:
        """All points, in the order in which they were made; of one made twice the later."""
        found: dict[tuple[str, int | None], SweepPoint] = {}
        for trial in self.study.trials:
            if _POINT in trial.user_attrs and trial.state.is_finished():
                point = SweepPoint.decode(trial.user_attrs[_POINT])
                found[point.budget, point.searched] = point
        return tuple(found.values())

    def add(self, point: SweepPoint, proposal: Proposal, values: Sequence[float] | None) -> None:
        """Keep a point that nothing proposed.

        Args:
            point: to keep.
            proposal: what it is asked by.
            values: amount and metric, which the search learns from; None: there are none.
        """
        trials = optuna_library().trial
        params = {"position": proposal.position}
        params |= {name: getattr(proposal, name) for name in _CHOICES}
        state = trials.TrialState.FAIL if values is None else trials.TrialState.COMPLETE
        trial = trials.create_trial(
            state=state,
            values=values,
            params=params,
            distributions=self._distributions(),
            user_attrs={_POINT: point.encode()},
        )
        self.study.add_trial(trial)

    def proposed(self) -> "Trial":
        """Return what the sampler proposes next."""
        trial = self.study.ask(self._distributions(self.space.fixed))
        asked = {name: self.space.choices(name)[0] for name in _CHOICES} | trial.params
        return Trial(trial, Proposal(**asked), self.study)

    def _distributions(self, fixed: frozenset[str] = frozenset()) -> dict[str, Any]:
        kinds = optuna_library().distributions
        names = [name for name in _CHOICES if name not in fixed]
        chosen = {name: kinds.CategoricalDistribution(self.space.choices(name)) for name in names}
        return {"position": kinds.FloatDistribution(0, 1), **chosen}


@dataclass(frozen=True, slots=True)
class Trial:
    """What a sampler proposes, and waits to be told of.

    Attributes:
        trial: Optuna's.
        proposal: what to try.
        study: that the trial is of.
    """

    trial: Any
    proposal: Proposal
    study: Any

    @property
    def number(self) -> int:
        """Number of the trial in its study."""
        return int(self.trial.number)

    def tell(self, point: SweepPoint, values: Sequence[float] | None) -> None:
        """Keep what became of it, as `SweepStudy.add` does."""
        states = optuna_library().trial.TrialState
        self.trial.set_user_attr(_POINT, point.encode())
        state = states.FAIL if values is None else states.COMPLETE
        self.study.tell(self.trial, values, state)


def optuna_library() -> Any:  # noqa: ANN401 - it is not installed for types
    """Return Optuna.

    Raises:
        UsageError: it is not installed; names the extra.
    """
    return extra_module("optuna", "sweep", "a sweep")


@contextmanager
def opened_study(
    folder: Path,
    subject: Mapping[str, str],
    space: Space,
    seed: int,
    *,
    lower_is_better: bool,
) -> Iterator[SweepStudy]:
    """Yield the study in a folder, a new one if there is none.

    Args:
        folder: that has it, or will.
        subject: what its points are of, and how they were asked for, each part by its name.
        space: of proposals.
        seed: of the sampler.
        lower_is_better: of the metric.

    Raises:
        UsageError: it is of another subject, or what lies there is no study.
    """
    optuna = optuna_library()
    unreadable = (
        extra_module("sqlalchemy.exc", "sweep", "a sweep").SQLAlchemyError,
        optuna.exceptions.StorageInternalError,
        RuntimeError,
    )
    path = folder / STUDY
    folder.mkdir(parents=True, exist_ok=True)
    with _quiet(optuna.logging.get_logger("optuna")):
        try:
            storage = optuna.storages.RDBStorage(f"sqlite:///{path.as_posix()}")
        except unreadable as error:
            told = str(error).splitlines()[0]
            raise UsageError(f"{path} is no study of a sweep that can be read: {told}") from error
        try:
            study = optuna.create_study(
                storage=storage,
                study_name=_NAME,
                load_if_exists=True,
                directions=["minimize", "minimize" if lower_is_better else "maximize"],
            )
            done = len(study.trials)  # a search that goes on draws other numbers
            study.sampler = optuna.samplers.TPESampler(seed=seed + done)
            known = study.user_attrs.get(_SUBJECT)
            if known is not None:
                _check_subject(folder, json.loads(known), subject)
            study.set_user_attr(_SUBJECT, json.dumps(dict(subject)))
            yield SweepStudy(study, space)
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _check_subject(folder: Path, known: Mapping[str, str], subject: Mapping[str, str]) -> None:
    for name, now in subject.items():
        if (then := known.get(name)) != now:
            raise UsageError(
                f"the sweep in {folder} is of another {name}: {then} there, {now} now; name "
                "another folder, or ask for the same"
            )


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Run the block without what a logger tells below warnings; put its level back."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
