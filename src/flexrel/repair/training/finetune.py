"""Training a pruned network until it does its job again."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import nn

from flexrel.core.batches import RawBatch, device_of
from flexrel.core.fingerprint import digest, fingerprint
from flexrel.core.measurement import Progress, Training, silent
from flexrel.core.plan import Plan
from flexrel.core.running import duplicate, undisturbed, unwrapped
from flexrel.errors import UsageError
from flexrel.repair.recovery import RepairResult
from flexrel.repair.training import checkpoint
from flexrel.repair.training.checkpoint import told
from flexrel.repair.training.data import Augment, Source, split
from flexrel.repair.training.holder import MaskHolder
from flexrel.repair.training.loop import Run
from flexrel.repair.training.objective import Loss, Objective, labels_of, share_of
from flexrel.repair.training.recipe import (
    PRECISIONS,
    MakeOptimizer,
    MakeSchedule,
    Precision,
    in_half,
    optimizer_of,
    own_randomness,
    place_of,
    schedule_of,
)
from flexrel.structure import named_tensors


@dataclass(frozen=True, slots=True)
class FineTune:
    """Training of a pruned network, by labels and by the dense network's outputs.

    The network with the lowest loss on validation batches is taken, the one that was given
    included, so that on those training never makes it worse. What a plan set to zero stays zero.

    Attributes:
        epochs: at most, through the data.
        data: batches to train on, a list, which is shuffled anew in each epoch, or a loader, which
            has its own order; None: the calibration batches.
        validation: other batches, or the share of a list's batches that is held out, in (0, 1).
        optimizer: from parameters to one of `torch.optim`; None: SGD with Nesterov momentum,
            gradients clipped by norm, and weight decay, which norms and biases are spared.
        schedule: from the optimizer and the number of steps in all to one of
            `torch.optim.lr_scheduler`, which is stepped after each batch; None: a short linear
            warm-up, then down to 0 along a cosine.
        loss: from the network's output and labels to their mean loss, or one number a sample,
            `[samples]`, which samples with weights need; None: cross entropy of class scores.
        distillation: share of the loss, in [0, 1], that is the distance from the dense network's
            outputs, which needs no labels: of class scores the divergence of the distributions,
            of others the relative squared error. None: 0.5 with labels that there is a loss for,
            else 1.
        temperature: that class scores are divided by in that distance.
        patience: end after so many epochs without a lower loss on validation batches.
        augment: from the first input tensor of a batch, and a generator on its device, to the
            tensor that is trained on instead; both networks see it. What is held out of a list is
            seen so too, the same in each epoch: if the dense network was trained on these very
            samples, it and what was cut from it remember them as they are.
        precision: of training steps. "float32" is the network's own precision, "bfloat16" autocast
            to that, "auto" the latter on an accelerator that is made for it.
        device: name of the device to train on; "auto": where the network is, or an accelerator.
        checkpoint: path of a file, written after each epoch and left there, from which the same
            call goes on after it was cut short. On the CPU the result is bit for bit that of a
            run that was not, if a loader in `data` draws from torch's own generator.
        seed: of order, dropout, held-out batches and `augment`; the same seed on the same machine
            gives the same network on the CPU.
    """

    epochs: int
    data: Iterable[RawBatch] | None = None
    _: KW_ONLY
    validation: Iterable[RawBatch] | float = 0.1
    optimizer: MakeOptimizer | None = None
    schedule: MakeSchedule | None = None
    loss: Loss | None = None
    distillation: float | None = None
    temperature: float = 2.0
    patience: int | None = None
    augment: Augment | None = None
    precision: Precision = "auto"
    device: str = "auto"
    checkpoint: str | os.PathLike[str] | None = None
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
        if self.patience is not None and self.patience < 1:
            raise UsageError(f"patience={self.patience}; wait for 1 epoch or more, or pass None")
        if self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise UsageError(f"precision {self.precision!r} is not known; there are: {known}")

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
        """Return a trained copy of the pruned network, on its device and in its modes.

        Args:
            pruned: that the plan was carried out on; not changed.
            dense: the network before that, whose outputs are the goal; not changed.
            plan: of zeros, which are held after every step, or of anything else.
            batches: for calibration; trained on if `data` is None.
            progress: told after each epoch.

        Raises:
            UsageError: data, labels or settings are wrong, or the checkpoint is of another run.
            ModelError: a network does not run, or no gradient goes back through it.
            PackError: the checkpoint is damaged.
        """
        pruned, dense = unwrapped(pruned), unwrapped(dense)
        device = place_of(self.device, pruned)
        with own_randomness(device), torch.inference_mode(mode=False), torch.enable_grad():
            data = batches if self.data is None else self.data
            train, validation, validated_on = split(data, self.validation, self.seed)
            student = duplicate(pruned).to(device)
            teacher = dense if device_of(dense) == device else duplicate(dense).to(device)
            half = in_half(self.precision, device)
            share = share_of(self.distillation, self.loss, teacher, train.first(student))
            validation.first(student)
            for source in (train, validation):
                _check(source, student, share)
            objective = Objective(teacher, self.loss, share, self.temperature, half)
            optimizer = optimizer_of(student, self.optimizer)
            settings: dict[str, str] = {}
            if self.checkpoint is not None:
                settings = _described(pruned, dense, plan, train, validation)
                settings |= self._settings(share, optimizer)
            steps = self.epochs * train.count()
            run = Run(
                student=student,
                objective=objective,
                train=train,
                validation=validation,
                optimizer=optimizer,
                schedule=schedule_of(optimizer, steps, self.schedule),
                steps=steps,
                epochs=self.epochs,
                patience=self.patience,
                augment=self.augment,
                augment_validation=isinstance(self.validation, float | int),
                seed=self.seed,
            )
            with MaskHolder(student, plan).hold(optimizer), undisturbed(teacher):
                self._train_(run, settings, progress)
        for mine, given in zip(student.modules(), pruned.modules(), strict=True):
            mine.training = given.training
        training = Training(
            epochs=self.epochs,
            validation=tuple(run.losses),
            training=tuple(run.training),
            best=run.best,
            stopped=run.stopped,
            validated_on=validated_on,
            distillation=share,
            precision="bfloat16" if half else "float32",
            device=str(device),
        )
        return RepairResult(self.name, student.to(device_of(pruned)), _notes(training), training)

    def _train_(self, run: Run, settings: Mapping[str, str], progress: Progress) -> None:
        path = self.checkpoint
        state = None if path is None else checkpoint.load(path, settings)
        if state is None:
            run.measure_()  # as it was given
        else:
            run.resume_(state)
        while not run.stopped:
            run.epoch_()
            if path is not None:
                checkpoint.save(path, settings, run.state())
            progress("fine-tuning", len(run.training), self.epochs)
        run.finish_()

    def _settings(self, share: float, optimizer: torch.optim.Optimizer) -> dict[str, str]:
        """Return what decides the result, besides networks and data, by name."""
        return {
            "epochs": told(self.epochs),
            "optimizer": repr(optimizer),
            "schedule": told(self.schedule),
            "loss": told(self.loss),
            "distillation": told(share),
            "temperature": told(self.temperature),
            "patience": told(self.patience),
            "augment": told(self.augment),
            "precision": self.precision,
            "seed": told(self.seed),
        }


def _notes(training: Training) -> tuple[str, ...]:
    first, best = training.validation[0], training.validation[training.best]
    where = f"after epoch {training.best}, on {training.validated_on}"
    return (
        f"{training.ran} of {training.epochs} epochs; {training.stopped}",
        f"loss {first:.4g} before, {best:.4g} {where}",
    )


def _check(source: Source, network: nn.Module, share: float) -> None:
    """Read a list's batches once, so that one that can't be used is found before training."""
    for batch in source.read(network) if source.places is not None else ():
        if share < 1:
            labels_of(batch, share)


def _described(
    pruned: nn.Module, dense: nn.Module, plan: Plan, train: Source, validation: Source
) -> dict[str, str]:
    """Return networks, plan and data as texts that differ if they do."""
    frozen = [name for name, p in pruned.named_parameters() if not p.requires_grad]
    masks = digest(sorted(plan.masks.items()))
    return {
        "pruned network": fingerprint(pruned),
        "pruned weights": digest(named_tensors(pruned).items()),
        "dense network": f"{fingerprint(dense)} {digest(named_tensors(dense).items())}",
        "frozen parameters": ", ".join(frozen),
        "plan": f"{plan.graph.granularity} {masks}",
        "data": train.told(),
        "validation": validation.told(),
    }
