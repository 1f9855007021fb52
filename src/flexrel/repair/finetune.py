"""Training a pruned network until it does its job again: short, with or without labels."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flexrel.core.batches import Batch, RawBatch, device_of
from flexrel.core.measurement import Progress, Training, silent
from flexrel.core.plan import Plan
from flexrel.core.running import duplicate, reason, undisturbed, unwrapped
from flexrel.errors import ModelError, UsageError
from flexrel.repair.data import BatchSource, hold_out
from flexrel.repair.holder import MaskHolder
from flexrel.repair.objective import Loss, Objective, labels_of, share_of
from flexrel.repair.optimizer import BatchNorm, MakeOptimizer, optimizer_of
from flexrel.repair.recovery import RepairResult
from flexrel.structure import named_tensors

Augment = Callable[[Tensor, torch.Generator], Tensor]  # generator: of the tensor's device
_SEEDED = ("cuda", "xpu")  # accelerators with a generator for each device


@dataclass(frozen=True, slots=True)
class FineTune:
    """Short training of a pruned network, by labels and by the dense network's outputs.

    The network with the lowest loss on validation batches is taken, the one that was given
    included, so that on those training never makes it worse. What a plan set to zero stays zero.
    It is trained on its own device, in its own precision; for more than that, a trainer with the
    callbacks of `MaskHolder` holds the zeros too.

    Attributes:
        epochs: through the data.
        data: batches to train on, a list, which is shuffled anew in each epoch, or a loader, which
            has its own order; None: the calibration batches.
        validation: other batches, or the share of a list's batches that is held out, in (0, 1).
        optimizer: from parameters to one of `torch.optim`, whose rates stay; None: SGD with
            Nesterov momentum, gradients clipped by norm, and weight decay, which norms and biases
            are spared; its rate goes up over the first twentieth, then down to 0 along a cosine.
        loss: from the network's output and labels to their mean loss, or one number a sample,
            `[samples]`, which samples with weights need; None: cross entropy of class scores.
        distillation: share of the loss, in [0, 1], that is the distance from the dense network's
            outputs, which needs no labels: of class scores the divergence of the distributions,
            of others the relative squared error. None: 0.5 with labels that there is a loss for,
            else 1.
        temperature: that class scores are divided by in that distance.
        augment: from the first input tensor of a batch, and a generator on its device, to the
            tensor that is trained on instead; both networks see it. What is held out of a list is
            seen so too, the same in each epoch: if the dense network was trained on these very
            samples, it and what was cut from it remember them as they are.
        seed: of order, dropout, held-out batches and `augment`; the same seed on the same machine
            gives the same network on the CPU.
    """

    epochs: int
    data: Iterable[RawBatch] | None = None
    _: KW_ONLY
    validation: Iterable[RawBatch] | float = 0.1
    optimizer: MakeOptimizer | None = None
    loss: Loss | None = None
    distillation: float | None = None
    temperature: float = 2.0
    augment: Augment | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UsageError(f"epochs={self.epochs}; train for 1 epoch or more")
        if isinstance(self.validation, float | int) and not 0 < self.validation < 1:
            raise UsageError(
                f"validation={self.validation} is no share in (0, 1) of the batches to hold out"
            )
        if self.distillation is not None and not 0 <= self.distillation <= 1:
            raise UsageError(f"distillation={self.distillation} is no share in [0, 1] of the loss")
        if not 0 < self.temperature < float("inf"):
            raise UsageError(f"temperature={self.temperature}; it is a number above 0")

    @property
    def name(self) -> str:
        """Name in results."""
        return f"finetune:{self.epochs}"

    def __call__(
        self,
        pruned: nn.Module,
        dense: nn.Module,
        plan: Plan,
        batches: Sequence[RawBatch],
        progress: Progress = silent,
    ) -> RepairResult:
        """Return a trained copy of the pruned network, in its modes.

        Args:
            pruned: that the plan was carried out on; not changed.
            dense: the network before that, whose outputs are the goal; on the same device, and
                not changed.
            plan: of zeros, which are held after every step, or of anything else.
            batches: for calibration; trained on if `data` is None.
            progress: told after each epoch.

        Raises:
            UsageError: data, labels or settings are wrong.
            ModelError: a network does not run, or no gradient goes back through it.
        """
        pruned, dense = unwrapped(pruned), unwrapped(dense)
        device = device_of(pruned)
        devices = [device.index] if device.type in _SEEDED else []
        with (
            torch.random.fork_rng(devices=devices, device_type=device.type),
            torch.inference_mode(mode=False),
            torch.enable_grad(),
        ):
            _seed_(device, self.seed)
            data = batches if self.data is None else self.data
            train, held_out = hold_out(data, self.validation, device, self.seed)
            student = duplicate(pruned)
            share = share_of(self.distillation, self.loss, dense, train.first())
            held_out.first()
            for source in (train, held_out):  # what can't be used is found before training
                for batch in source.read() if source.places is not None else ():
                    if share < 1:
                        labels_of(batch, share)
            objective = Objective(dense, self.loss, share, self.temperature)
            optimizer = optimizer_of(student, self.optimizer, self.epochs * train.count())
            with MaskHolder(student, plan).hold(optimizer), undisturbed(dense):
                training = self._train_(student, objective, optimizer, train, held_out, progress)
        for mine, given in zip(student.modules(), pruned.modules(), strict=True):
            mine.training = given.training
        first, best = training.validation[0], training.validation[training.best]
        where = f"after epoch {training.best}, on {training.validated_on}"
        notes = (
            f"{training.ran} of {training.epochs} epochs; {training.stopped}",
            f"loss {first:.4g} before, {best:.4g} {where}",
        )
        return RepairResult(self.name, student, notes, training)

    def _train_(
        self,
        student: nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        train: BatchSource,
        held_out: BatchSource,
        progress: Progress,
    ) -> Training:
        """Train the network, leave it as it was best, and return what happened."""
        device = device_of(student)
        order = torch.Generator().manual_seed(self.seed)
        draw = torch.Generator(device).manual_seed(self.seed)
        losses = [self._validated(student, objective, held_out)]
        means: list[float] = []
        best, stopped = 0, "all epochs were run"
        tensors = named_tensors(student)
        taken = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for epoch in range(1, self.epochs + 1):
            _train_mode_(student)
            total, samples, loss = 0.0, 0, 0.0
            for step, batch in enumerate(train.read(order), start=1):
                seen = batch if self.augment is None else _augmented(batch, self.augment, draw)
                loss = _step_(student, objective, optimizer, seen)
                if not math.isfinite(loss):
                    stopped = f"the loss was {loss} in step {step} of epoch {epoch}"
                    break
                total, samples = total + loss * batch.samples, samples + batch.samples
            if not math.isfinite(loss):
                break
            means.append(_mean(total, samples, "data"))
            losses.append(self._validated(student, objective, held_out))
            if losses[-1] < losses[best]:
                best = epoch
                taken = {name: tensor.detach().clone() for name, tensor in tensors.items()}
            progress("fine-tuning", epoch, self.epochs)
            if math.isinf(losses[-1]):
                stopped = f"the validation loss was not finite after epoch {epoch}"
                break
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(taken[name])
        student.zero_grad(set_to_none=True)
        return Training(
            epochs=self.epochs,
            validation=tuple(losses),
            training=tuple(means),
            best=best,
            stopped=stopped,
            validated_on=held_out.said,
            distillation=objective.distillation,
        )

    def _validated(self, student: nn.Module, objective: Objective, held_out: BatchSource) -> float:
        """Return the mean loss on the validation batches; infinity if it is not finite."""
        device = device_of(student)
        draw = torch.Generator(device).manual_seed(self.seed)  # always alike
        augment = self.augment if isinstance(self.validation, float | int) else None
        total, samples = 0.0, 0
        with undisturbed(student), torch.no_grad():
            _seed_(device, self.seed)  # a loader may draw
            for batch in held_out.read():
                seen = batch if augment is None else _augmented(batch, augment, draw)
                loss = float(objective(student, seen, weighted=False))
                total, samples = total + loss * batch.samples, samples + batch.samples
        mean = _mean(total, samples, "validation")
        return mean if math.isfinite(mean) else math.inf


def _step_(student: nn.Module, objective: Objective, optimizer: Optimizer, batch: Batch) -> float:
    """Return the loss on the batch; if it is finite, take a step against its gradient."""
    optimizer.zero_grad()
    loss = objective(student, batch)
    value = float(loss.detach())
    if not math.isfinite(value):
        return value
    try:
        loss.backward()
    except RuntimeError as error:
        raise ModelError(f"no gradient goes back through the network: {reason(error)}") from error
    optimizer.step()
    return value


def _mean(total: float, samples: int, name: str) -> float:
    if not samples:
        raise UsageError(f"{name} gave no batch; pass one that gives its batches anew each time")
    return total / samples


def _train_mode_(network: nn.Module) -> None:
    """Put the network in training mode, but for batch norms whose parameters are all frozen."""
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        frozen = bool(own) and not any(parameter.requires_grad for parameter in own)
        module.training = not (isinstance(module, BatchNorm) and frozen)


def _seed_(device: torch.device, seed: int) -> None:
    """Seed torch's generators, of which dropout and loaders draw, of the CPU and of the device."""
    torch.default_generator.manual_seed(seed)
    if device.type in _SEEDED:
        torch.get_device_module(device).default_generators[device.index].manual_seed(seed)


def _augmented(batch: Batch, augment: Augment, draw: torch.Generator) -> Batch:
    """Return the batch with its first input tensor changed.

    Raises:
        UsageError: `augment` does not return a tensor of as many samples.
    """
    first = batch.tensors[0]
    made = augment(first, draw)
    if not isinstance(made, Tensor) or made.shape[:1] != first.shape[:1]:
        found = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise UsageError(
            f"augment= must return a tensor of {len(first)} samples, but returned {found} for "
            f"batch {batch.index}"
        )
    if batch.args:
        return replace(batch, args=(made, *batch.args[1:]))
    kwargs = {name: made if value is first else value for name, value in batch.kwargs.items()}
    return replace(batch, kwargs=kwargs)
