"""The optimizer of a short training: the caller's, or one that does for most networks."""

from collections.abc import Callable, Iterable

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from flexrel.errors import UsageError

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]

_RATE = 0.02
_LARGEST = 2.0  # norm of all gradients together, so that this rate does for transformers too
_MOMENTUM = 0.9
_WARM_UP = 0.05  # share of all steps


def optimizer_of(network: nn.Module, make: MakeOptimizer | None, steps: int) -> Optimizer:
    """Return an optimizer of the parameters that are not frozen: as made, or the built-in one.

    Args:
        network: that is trained.
        make: gets those parameters; None: the built-in one, which `FineTune` tells of.
        steps: in all epochs, over which the built-in one's rate rises and falls.

    Raises:
        UsageError: all parameters are frozen, or `make` returns no optimizer.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not trained:
        raise UsageError("all parameters of the network are frozen; there is nothing to train")
    if make is not None:
        optimizer = make(trained)
        if not isinstance(optimizer, Optimizer):
            raise UsageError(f"optimizer= must return an optimizer, not {type(optimizer).__name__}")
        return optimizer
    sgd = SGD(trained, lr=_RATE, momentum=_MOMENTUM, nesterov=True)
    rise = max(round(_WARM_UP * steps), 1)
    up = LinearLR(sgd, 1 / (rise + 1), total_iters=rise)
    down = CosineAnnealingLR(sgd, max(steps - rise, 1))
    schedule = SequentialLR(sgd, [up, down], [rise])

    def clip_(*_: object) -> None:
        nn.utils.clip_grad_norm_(trained, _LARGEST)

    def next_rate_(*_: object) -> None:
        if schedule.last_epoch < steps:  # a loader may give more batches than it said
            schedule.step()

    sgd.register_step_pre_hook(clip_)
    sgd.register_step_post_hook(next_rate_)
    return sgd
