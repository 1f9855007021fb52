"""The loop: epochs of steps, a validation after each, and the best network so far."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flexrel.core.batches import Batch, device_of
from flexrel.core.running import reason, undisturbed
from flexrel.errors import ModelError, UsageError
from flexrel.repair.training.data import Augment, Source, augmented
from flexrel.repair.training.objective import Objective
from flexrel.repair.training.recipe import seed_, train_
from flexrel.structure import named_tensors

_ALL_RUN = "all epochs were run"


@dataclass(slots=True)
class Run:
    """A training under way. What an epoch needs of the past is in `state()`, and nowhere else."""

    student: nn.Module
    objective: Objective
    train: Source
    validation: Source
    optimizer: Optimizer
    schedule: LRScheduler
    steps: int  # in all epochs, as the schedule was told
    epochs: int
    patience: int | None
    augment: Augment | None
    augment_validation: bool
    seed: int
    done: int = 0  # steps
    training: list[float] = field(default_factory=list)  # mean loss of each epoch
    losses: list[float] = field(default_factory=list)  # on validation batches, before and after
    best: int = 0  # epoch
    weights: dict[str, Tensor] = field(default_factory=dict)  # parameters and buffers, at best
    stopped: str = ""  # why it ended

    def epoch_(self) -> None:
        """Train for one epoch, measure, see if that was all; a loss that is not finite ends it."""
        device, epoch = device_of(self.student), len(self.training) + 1
        seed_(device, _seed(self.seed, epoch, "layers"))
        shuffle = torch.Generator().manual_seed(_seed(self.seed, epoch, "order"))
        draw = torch.Generator(device).manual_seed(_seed(self.seed, epoch, "augment"))
        train_(self.student)
        total, samples = 0.0, 0
        for step, whole in enumerate(self.train.read(self.student, shuffle), start=1):
            batch = whole if self.augment is None else augmented(whole, self.augment, draw)
            loss = self._step_(batch)
            if not math.isfinite(loss):
                self.stopped = f"the loss was {loss} in step {step} of epoch {epoch}"
                return
            total, samples = total + loss * batch.samples, samples + batch.samples
        self.training.append(_mean(total, samples, "data"))
        self.measure_()
        self._judge_()

    def _step_(self, batch: Batch) -> float:
        """Return the loss on the batch; if it is finite, take a step against its gradient."""
        self.optimizer.zero_grad()
        loss = self.objective(self.student, batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            return value
        try:
            loss.backward()
        except RuntimeError as error:
            raise ModelError(
                f"no gradient goes back through the network: {reason(error)}"
            ) from error
        self.optimizer.step()
        self.done += 1
        if self.done < self.steps:  # a loader may give more batches than it said
            self.schedule.step()
        return value

    def measure_(self) -> None:
        """Add the loss on validation batches, and keep the network if it is the best so far."""
        total, samples = 0.0, 0
        device = device_of(self.student)
        draw = torch.Generator(device).manual_seed(_seed(self.seed, 0, "augment"))  # always alike
        with undisturbed(self.student), torch.no_grad():
            seed_(device, _seed(self.seed, 0, "validation"))  # a loader may draw
            for whole in self.validation.read(self.student):
                changed = self.augment if self.augment_validation else None
                batch = whole if changed is None else augmented(whole, changed, draw)
                value = float(self.objective(self.student, batch, weighted=False))
                total, samples = total + value * batch.samples, samples + batch.samples
        loss = _mean(total, samples, "validation")
        self.losses.append(loss if math.isfinite(loss) else math.inf)
        if len(self.losses) == 1 or self.losses[-1] < self.losses[self.best]:
            self.best = len(self.losses) - 1
            self.weights = _copied(named_tensors(self.student))

    def _judge_(self) -> None:
        epoch = len(self.training)
        if math.isinf(self.losses[-1]):
            self.stopped = f"the validation loss was not finite after epoch {epoch}"
        elif epoch >= self.epochs:
            self.stopped = _ALL_RUN
        elif self.patience is not None and epoch - self.best >= self.patience:
            self.stopped = f"no better for {self.patience} epochs"

    def finish_(self) -> None:
        """Put the best network's parameters and buffers back, and leave no gradient."""
        _restore_(self.student, self.weights)
        self.student.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """Return all that a run that was cut short needs to go on, as tensors and plain values."""
        return {
            "student": _copied(named_tensors(self.student)),
            "best weights": self.weights,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "done": self.done,
            "training": self.training,
            "losses": self.losses,
            "best": self.best,
            "stopped": self.stopped,
        }

    def resume_(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken of a run of the same settings."""
        _restore_(self.student, state["student"])
        self.weights = _copied(state["best weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.done, self.best, self.stopped = state["done"], state["best"], state["stopped"]
        self.training, self.losses = list(state["training"]), list(state["losses"])


def _mean(total: float, samples: int, name: str) -> float:
    if not samples:
        raise UsageError(f"{name} gave no batch; pass one that gives its batches anew each time")
    return total / samples


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _restore_(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in named_tensors(network).items():
            tensor.copy_(tensors[name])


def _seed(seed: int, epoch: int, purpose: str) -> int:
    """Return a seed for one purpose in one epoch, so that an epoch needs no state of the last."""
    digest = hashlib.sha256(f"{seed} {epoch} {purpose}".encode()).digest()
    return int.from_bytes(digest[:7])
