"""Training a pruned network until it does its job again: short, with or without labels."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from operator import length_hint

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flexrel.core.batches import Batch, RawBatch, device_of, read_batches
from flexrel.core.deadline import OutOfTimeError
from flexrel.core.measurement import Progress, Training, silent
from flexrel.core.outputs import RequestedOutputs, check_outputs, numbers_in, resolved
from flexrel.core.plan import Plan
from flexrel.core.running import call, duplicate, reason, undisturbed, unwrapped
from flexrel.errors import ModelError, UsageError
from flexrel.repair.holder import MaskHolder
from flexrel.repair.objective import Loss, Objective, share_of
from flexrel.repair.optimizer import MakeOptimizer, optimizer_of
from flexrel.repair.recovery import RepairResult
from flexrel.structure import named_tensors

_BatchNorm = nn.modules.batchnorm._NormBase  # noqa: SLF001 - the base of all that keep statistics


@dataclass(frozen=True, slots=True)
class FineTune:
    """Short training of a pruned network, by labels and by the dense network's outputs.

    The network with the lowest loss on validation batches is taken, the one that was given
    included, so that on those training never makes it worse. What was zero before it stays zero,
    unless `PruneOptions.regrow` is asked for.
    It is trained on its own device, in its own precision; for more than that, a trainer with the
    callbacks of `MaskHolder` holds the zeros too.

    Attributes:
        epochs: through the data.
        data: batches to train on: a list, which is put on the network's device whole and shuffled
            anew in each epoch, or a loader, which has its own order; None: the calibration batches.
        validation: other batches, or the share of a list's batches that is held out, in (0, 1).
            If the dense network was trained on these very samples, it and what was cut from it
            remember them as they are: pass loaders that augment, for `data` and for this.
        optimizer: from parameters to one of `torch.optim`, whose rates stay; None: SGD with
            Nesterov momentum, its gradients clipped by their norm, whose rate goes up over the
            first twentieth of the steps, then down to 0 along a cosine.
        loss: from the network's output and labels to their mean loss, or one number a sample,
            `[samples]`, which samples with weights need; None: what goes with `outputs`, cross
            entropy of classes and of logits, the relative squared error of values.
        outputs: what the network's outputs are, as `PruneOptions.outputs` has it.
        distillation: share of the loss, in [0, 1], that is the distance from the dense network's
            outputs, which needs no labels: of classes and logits the divergence of the
            distributions, of values the relative squared error. None: 0.5 with labels that there
            is a loss for, else 1.
        temperature: that class scores are divided by in that distance.
        regrow: let weights that were zero before the cut become other numbers.
        seed: of order, dropout and held-out batches, and of what loaders draw, which is the same
            in each validation; the same seed on the same machine gives the same network on the CPU.
    """

    epochs: int
    data: Iterable[RawBatch] | None = None
    _: KW_ONLY
    validation: Iterable[RawBatch] | float = 0.1
    optimizer: MakeOptimizer | None = None
    loss: Loss | None = None
    outputs: RequestedOutputs = "auto"
    distillation: float | None = None
    temperature: float = 2.0
    regrow: bool = False
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
        check_outputs(self.outputs)
        if not 0 < self.temperature < math.inf:
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
        """Return a trained copy of the pruned network; see `Recovery` for the arguments.

        Raises:
            UsageError: data, labels or settings are wrong.
            ModelError: a network does not run, or no gradient goes back through it.
        """
        pruned, dense = unwrapped(pruned), unwrapped(dense)
        data = batches if self.data is None else self.data
        with torch.inference_mode(mode=False), torch.enable_grad():
            student = duplicate(pruned)
            train, held_out, validated_on = self._divided(data, student)
            with undisturbed(dense), undisturbed(student):
                _seed_(student, self.seed)
                first = next(_read("data", train, student))
                with torch.no_grad():
                    output = call(dense, first)
                outputs = resolved(self.outputs, [(numbers_in(output, first), first.labels)])
                share = share_of(self.distillation, self.loss, outputs, output, first.labels)
                objective = Objective(student, dense, outputs, self.loss, share, self.temperature)
                steps = self.epochs * (length_hint(train) or sum(1 for _ in train))
                optimizer = optimizer_of(student, self.optimizer, steps)
                with MaskHolder(student, plan, regrow=self.regrow).hold(optimizer):
                    losses, stopped = self._train_(objective, optimizer, train, held_out, progress)
        best = losses.index(min(losses))
        where = f"after epoch {best}, on {validated_on}"
        notes = (
            f"{len(losses) - 1} of {self.epochs} epochs; {stopped}",
            f"loss {losses[0]:.4g} before, {losses[best]:.4g} {where}",
        )
        training = Training(tuple(losses), best, stopped, validated_on, share)
        return RepairResult(self.name, student, notes, training)

    def _divided(
        self, data: Iterable[RawBatch], network: nn.Module
    ) -> tuple[Iterable[RawBatch], Iterable[RawBatch], str]:
        """Return what to train on, what to validate on, and what the latter is, in words."""
        data = _listed("data", data, network)
        if not isinstance(self.validation, float | int):
            validation = _listed("validation", self.validation, network)
            return data, validation, "batches given as validation="
        if not isinstance(data, list):
            raise UsageError(
                f"validation={self.validation:g} holds out a share of a list of batches, but data "
                f"is a {type(data).__name__}, which may order its batches anew each time; pass "
                "validation=batches"
            )
        if len(data) <= 1:
            return data, data, "the training data, which is one batch"
        count = min(max(round(self.validation * len(data)), 1), len(data) - 1)
        drawn = _shuffled(data, torch.Generator().manual_seed(self.seed))
        return drawn[count:], drawn[:count], f"{count} of {len(data)} batches, held out"

    def _train_(
        self,
        objective: Objective,
        optimizer: Optimizer,
        train: Iterable[RawBatch],
        held_out: Iterable[RawBatch],
        progress: Progress,
    ) -> tuple[list[float], str]:
        """Train the objective's network, and leave it as it was best.

        Returns:
            The loss on the validation batches, before and after each epoch; and why it ended.
        """
        network = objective.network
        order = torch.Generator().manual_seed(self.seed)
        tensors = named_tensors(network)
        best = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        losses = [_validated(objective, held_out, self.seed)]
        stopped = "all epochs were run"
        _train_mode_(network)
        for epoch in range(1, self.epochs + 1):
            batches = _shuffled(train, order) if isinstance(train, list) else train

            def tell(step: int, of: str = f"epoch {epoch} of {self.epochs}") -> None:
                progress(of, step, length_hint(train) or None)

            late = failed = ""
            try:
                failed = _epoch_(objective, optimizer, _read("data", batches, network), tell)
            except OutOfTimeError as error:
                late = str(error)
            if failed:
                stopped = f"{failed} of epoch {epoch}"
                break
            losses.append(_validated(objective, held_out, self.seed))
            if losses[-1] < min(losses[:-1]):
                best = {name: tensor.detach().clone() for name, tensor in tensors.items()}
            if late:
                stopped = late
                break
            progress("fine-tuning", epoch, self.epochs)
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(best[name])
        network.zero_grad(set_to_none=True)
        return losses, stopped


def _epoch_(
    objective: Objective,
    optimizer: Optimizer,
    batches: Iterable[Batch],
    tell: Callable[[int], None],
) -> str:
    """Take a step for each batch, until a loss is not finite; return which was not, or ""."""
    for step, batch in enumerate(batches, start=1):
        optimizer.zero_grad()
        loss = objective(batch)
        if not loss.isfinite():
            return f"the loss was {loss.item()} in step {step}"
        try:
            loss.backward()
        except RuntimeError as error:
            message = f"no gradient goes back through the network: {reason(error)}"
            raise ModelError(message) from error
        optimizer.step()
        tell(step)
    return ""


def _validated(objective: Objective, held_out: Iterable[RawBatch], seed: int) -> float:
    """Return the mean loss on the validation batches; infinity if it is not finite."""
    total, samples = 0.0, 0
    with undisturbed(objective.network), torch.no_grad():
        _seed_(objective.network, seed)  # a loader may draw
        for batch in _read("validation", held_out, objective.network):
            loss = float(objective(replace(batch, weights=None)))
            total, samples = total + loss * batch.samples, samples + batch.samples
    return total / samples if math.isfinite(total) else math.inf


def _train_mode_(network: nn.Module) -> None:
    """Put the network in training mode, but for batch norms whose parameters are all frozen."""
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        frozen = bool(own) and not any(parameter.requires_grad for parameter in own)
        module.training = not (isinstance(module, _BatchNorm) and frozen)


def _seed_(network: nn.Module, seed: int) -> None:
    """Seed what dropout and loaders draw from; `undisturbed` puts it back."""
    torch.default_generator.manual_seed(seed)
    device = device_of(network)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


def _listed(name: str, batches: Iterable[RawBatch], network: nn.Module) -> Iterable[RawBatch]:
    """Return the batches of a list, read; and a loader as it is."""
    if isinstance(batches, Iterator):
        raise UsageError(f"{name} is an iterator, gone after one use; pass a list of batches")
    listed = isinstance(batches, Sequence | Tensor)  # a tensor, `read_batches` refuses
    return list(read_batches(batches, network)) if listed else batches


def _shuffled(batches: list[RawBatch], order: torch.Generator) -> list[RawBatch]:
    return [batches[place] for place in torch.randperm(len(batches), generator=order).tolist()]


def _read(name: str, batches: Iterable[RawBatch], network: nn.Module) -> Iterator[Batch]:
    """Yield each batch, those of a list with the numbers that they had when it was read.

    Raises:
        UsageError: there is no batch, or one that `read_batches` refuses.
    """
    batch = None
    for batch in batches if isinstance(batches, list) else read_batches(batches, network):
        yield batch
    if batch is None:
        raise UsageError(
            f"{name} gives no batch; pass a list, or a loader that gives them anew each time"
        )
