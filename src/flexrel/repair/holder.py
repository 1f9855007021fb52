"""Weights that are zero, held there while somebody else's loop trains the others."""

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from flexrel.core.plan import Plan, check_plan
from flexrel.core.running import unwrapped
from flexrel.core.trainers import trainer_callback
from flexrel.errors import UsageError
from flexrel.structure import gone_by


class MaskHolder:
    """Keeps the zeros of a plan, and of before, exactly zero (+0.0) in a network that is trained.

    Whatever momentum, weight decay or an optimizer's own state do to them. For a loop of one's
    own, `holder.apply_()` after each `optimizer.step()`, or once

        with holder.hold(optimizer):
            train(network, optimizer)

    and for trainers, `callbacks=[holder.lightning_callback()]` or
    `callbacks=[holder.transformers_callback()]`. Channels, heads and residual blocks are removed
    for real: of them nothing is held, but the zeros that matrices and kernels had before are.
    """

    def __init__(self, model: nn.Module, plan: Plan, *, regrow: bool = False) -> None:
        """Look up where the zeros are; nothing of the model is changed yet.

        Args:
            model: that is trained: the plan's network, its copies on any device, also inside
                `torch.compile` or `DistributedDataParallel`.
            plan: of zeros.
            regrow: hold those of the plan alone, and let those of before become other numbers.

        Raises:
            UsageError: it is no plan, or the model has no weight of its name and shape.
        """
        check_plan(plan)
        self._model = unwrapped(model)
        zeros = plan.zeros
        self._gone = {} if zeros is None else gone_by(zeros)
        shapes = {name: list(p.shape) for name, p in self._model.named_parameters()}
        for name, gone in self._gone.items():
            if shapes.get(name) != list(gone.shape):
                has = f"{name} is {shapes[name]}" if name in shapes else f"the model lacks {name}"
                raise UsageError(
                    f"the plan is of another network: {has}, the plan's is {list(gone.shape)}"
                )
        for name, weight in () if regrow else self._model.named_parameters():
            zero = weight.detach() == 0
            if weight.ndim > 1 and zero.any():  # of biases and norms a zero is a number
                self._gone[name] = zero | self._gone.get(name, zero).to(zero.device)

    def apply_(self) -> None:
        """Set the zeros in the model to zero again."""
        with torch.no_grad():
            for name in self._gone:
                weight = self._model.get_parameter(name)
                self._gone[name] = self._gone[name].to(weight.device)  # copied once
                weight.masked_fill_(self._gone[name], 0)

    def hold(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Apply the mask now and after every step of the optimizer.

        Returns:
            A handle; `remove()`, or the end of a `with` block of it, ends the holding.
        """
        self.apply_()
        return optimizer.register_step_post_hook(lambda *_: self.apply_())

    def lightning_callback(self) -> Any:  # noqa: ANN401 - Lightning is not installed for types
        """Return a callback for Lightning's `Trainer` that applies the mask after each batch.

        Raises:
            UsageError: neither `lightning` nor `pytorch_lightning` is installed.
        """
        return self._callback("lightning", "on_train_start", "on_train_batch_end")

    def transformers_callback(self) -> Any:  # noqa: ANN401 - as above
        """Return a callback for Hugging Face's `Trainer` that applies the mask after each step.

        Raises:
            UsageError: `transformers` is not installed.
        """
        return self._callback("transformers", "on_train_begin", "on_step_end")

    def _callback(self, package: str, *hooks: str) -> Any:  # noqa: ANN401 - as above
        def apply(*_: object, **__: object) -> None:
            self.apply_()

        return trainer_callback(package, "HoldMask", dict.fromkeys(hooks, apply))
