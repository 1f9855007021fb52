"""Events for trackers of runs, each an extra, imported where it is used.

Numbers of candidates have names such as "magnitude/accuracy", counted by `step`; seconds of stages
"seconds/calibrating"; those of the result "result/accuracy".
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from flexrel.core.events import JudgedCandidate
from flexrel.core.extras import extra_module

_UNNAMEABLE: Final = re.compile(r"[^\w\-./ ]")  # in names of MLflow's


class _Numbers(ABC):
    """Turns events into named numbers with a step."""

    def __init__(self) -> None:
        self._step = 0

    def stage_began(self, stage: str) -> None:  # noqa: B027 - as for all of these
        """Write nothing yet."""

    def stage_ended(self, stage: str, seconds: float) -> None:
        """Write how long it took."""
        self._log({f"seconds/{stage}": seconds})

    def judged(self, candidate: JudgedCandidate) -> None:
        """Write the numbers of a network made on the way."""
        name = f"{candidate.criterion}{' sketched' if candidate.sketch else ''}"
        numbers = {f"{name}/{key}": value for key, value in candidate.numbers.items()}
        self._log({**numbers, f"{name}/removed": float(candidate.removed)})

    def finished(self, record: Mapping[str, Any]) -> None:
        """Write what came out, and what was asked."""
        amounts = {name: n for name, n in record["achieved"].items() if isinstance(n, int | float)}
        self._log({f"result/{name}": float(value) for name, value in amounts.items()})
        asked = {name: n for name, n in record["requested"].items() if n is not None}
        told = {key: record[key] for key in ("criterion", "granularity", "seed")}
        self._close({**{f"requested_{name}": n for name, n in asked.items()}, **told})

    def stopped(self, reason: str) -> None:
        """Write why there is no result."""
        self._close({"stopped": reason})

    def _log(self, numbers: Mapping[str, float]) -> None:
        """Write numbers at the next step."""
        self._put(numbers, self._step)
        self._step += 1

    @abstractmethod
    def _put(self, numbers: Mapping[str, float], step: int) -> None:
        """Write numbers by name, at a step."""

    @abstractmethod
    def _close(self, told: Mapping[str, Any]) -> None:
        """Write what is told of the call, by name, and end the run."""


class TensorBoard(_Numbers):
    """Writes events to a folder that TensorBoard reads (extra "track-tensorboard")."""

    def __init__(self, folder: str | Path) -> None:
        """Begin a run.

        Args:
            folder: of the run.

        Raises:
            UsageError: the extra is not installed.
        """
        super().__init__()
        made = extra_module("torch.utils.tensorboard", "track-tensorboard", "TensorBoard")
        self._writer = made.SummaryWriter(str(folder))

    def _put(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def _close(self, told: Mapping[str, Any]) -> None:
        lines = "\n".join(f"- {name}: {value}" for name, value in told.items())
        self._writer.add_text("request", lines)
        self._writer.close()


class MLflow(_Numbers):
    """Writes events to the active run of MLflow, or one that it begins (extra "track-mlflow").

    Where that is, MLflow's own settings say: `mlflow.set_tracking_uri`, `mlflow.set_experiment`.
    """

    def __init__(self) -> None:
        """Join the run.

        Raises:
            UsageError: the extra is not installed.
        """
        super().__init__()
        self._mlflow = extra_module("mlflow", "track-mlflow", "MLflow")
        self._began = self._mlflow.active_run() is None
        if self._began:
            self._mlflow.start_run()

    def _put(self, numbers: Mapping[str, float], step: int) -> None:
        named = {_UNNAMEABLE.sub("-", name): value for name, value in numbers.items()}
        self._mlflow.log_metrics(named, step=step)

    def _close(self, told: Mapping[str, Any]) -> None:
        self._mlflow.log_params(dict(told))
        if self._began:
            self._mlflow.end_run()


class WeightsAndBiases(_Numbers):
    """Writes events to a run of Weights & Biases (extra "track-wandb"); offline unless asked."""

    def __init__(self, project: str = "flexrel", mode: str = "offline") -> None:
        """Begin a run.

        Args:
            project: that it belongs to.
            mode: "offline" keeps it on this machine, for `wandb sync`; "online" sends it.

        Raises:
            UsageError: the extra is not installed.
        """
        super().__init__()
        wandb = extra_module("wandb", "track-wandb", "Weights & Biases")
        self._run = wandb.init(project=project, mode=mode)

    def _put(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def _close(self, told: Mapping[str, Any]) -> None:
        self._run.config.update(dict(told))
        self._run.finish()
