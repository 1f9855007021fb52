"""Progress as a person sees it: bars in a terminal or notebook, elsewhere a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from threading import Event, Thread
from typing import Final, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from flexrel.core.forecast import duration
from flexrel.core.measurement import Progress, silent
from flexrel.errors import UsageError

RequestedProgress = Literal["auto"] | Progress | None
_EVERY: Final = 4.0  # seconds between lines
_FIRST: Final = 1.0  # before the first


def check_progress(wanted: object) -> None:
    """Raise a UsageError if progress can't be told so."""
    if wanted is not None and wanted != "auto" and not callable(wanted):
        raise UsageError(
            f"progress is {wanted!r}; pass 'auto', None, or a function (stage, done, total)"
        )


@contextmanager
def shown(wanted: RequestedProgress, stages: Sequence[str] = ()) -> Iterator[Progress]:
    """Yield what to tell progress to; what it draws is gone at the end.

    Args:
        wanted: "auto" for bars on stderr in a terminal or a notebook, and elsewhere a line on
            stderr every 4 seconds; a function (stage, steps done, steps in all or None), which is
            yielded as it is; None for nobody.
        stages: how the names of stages begin, in their order; another name is taken for a step
            within the stage. Without any, each name is a stage.
    """
    if wanted is None:
        yield silent
    elif wanted != "auto":
        yield wanted
    else:
        console = Console(stderr=True)
        draws = console.is_terminal and not console.is_dumb_terminal
        widgets = console.is_jupyter and find_spec("ipywidgets") is not None
        told = StagesTold(tuple(stages))
        with _bars(told, console) if draws or widgets else _lines(told):
            yield told.tell


@dataclass(slots=True)
class Work:
    """Something that goes on, step by step."""

    name: str
    done: int = 0
    total: int | None = None
    began: float = field(default_factory=time.monotonic)  # seconds

    def seconds_left(self, part: float = 0.0) -> float | None:
        """Return how long it takes yet, if all steps take alike; None: not known, or all are done.

        Args:
            part: of the step that goes on, which is done.
        """
        done = self.done + part
        if not self.total or not done or done >= self.total:
            return None
        spent = time.monotonic() - self.began
        return spent * (self.total - done) / done

    def __str__(self) -> str:
        """Say how far it is."""
        if self.total:
            return f"{self.name}, {self.done:,} of {self.total:,}"
        return f"{self.name}, {self.done:,} done" if self.done else self.name


@dataclass(slots=True)
class StagesTold:
    """What was told of late: the stage, and the step within it."""

    stages: tuple[str, ...]
    changed: Callable[[], None] = lambda: None  # called after each that is told
    number: int = 0  # of the stage, from 1; 0: no stage that is known
    stage: Work = field(default_factory=lambda: Work("starting"))
    step: Work | None = None

    def tell(self, name: str, done: int, total: int | None) -> None:
        """Take in what a `Progress` is told."""
        found = (at for at, stage in enumerate(self.stages, 1) if name.startswith(stage))
        number = next(found, 0)
        if number or not self.stages:
            if name != self.stage.name:
                self.number, self.stage = number, Work(name)
            self.stage.done, self.stage.total, self.step = done, total, None
        else:
            if self.step is None or name != self.step.name or done < self.step.done:
                self.step = Work(name)
            self.step.done, self.step.total = done, total
        self.changed()

    @property
    def _part(self) -> float:
        """The share that is done of the step within the stage; 0 where that is not known."""
        step = self.step
        return 0.0 if step is None or not step.total else min(step.done / step.total, 1.0)

    @property
    def place(self) -> str:
        """Which stage of how many, or nothing."""
        return f"stage {self.number} of {len(self.stages)}: " if self.number else ""

    def __str__(self) -> str:
        """Say it all in a line."""
        parts = [f"{self.place}{self.stage}"]
        parts += [] if self.step is None else [str(self.step)]
        parts.append(duration(time.monotonic() - self.stage.began))
        left = self.stage.seconds_left(self._part)
        parts += [] if left is None else [f"about {duration(left)} left of it"]
        return "; ".join(parts)


@contextmanager
def _lines(told: StagesTold) -> Iterator[None]:
    """Print where things stand after a second, and every few, also while nothing is told."""
    end, stream = Event(), sys.stderr  # which others put away while they work, as torch.export

    def speak() -> None:
        pause = min(_FIRST, _EVERY)
        while not end.wait(pause):
            pause = _EVERY
            print(told, file=stream, flush=True)

    thread = Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@contextmanager
def _bars(told: StagesTold, console: Console) -> Iterator[None]:
    """Draw a bar for the stage, and one for the step within it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        drawn: list[tuple[Work, TaskID]] = []  # the stage, and the step within it

        def draw() -> None:
            works = [told.stage, *([] if told.step is None else [told.step])]
            known = [work for work, _ in drawn]
            while known and not any(known[-1] is work for work in works):
                bars.remove_task(drawn.pop()[1])
                known.pop()
            for at, work in enumerate(works):
                if at == len(drawn):
                    name = f"{'' if at else told.place}{'  ' * at}{work.name}"
                    drawn.append((work, bars.add_task(name, total=work.total)))
                bars.update(drawn[at][1], completed=work.done, total=work.total)

        told.changed = draw
        draw()
        yield


class _Rate(ProgressColumn):
    """How fast steps are done."""

    def render(self, task: Task) -> Text:
        """Return steps a second, or seconds a step."""
        if not task.speed:
            return Text("")
        return Text(f"{task.speed:.1f}/s" if task.speed >= 1 else f"{1 / task.speed:.1f} s each")
