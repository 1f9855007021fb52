"""How a network is trained unless the caller says otherwise."""

import math
from collections.abc import Callable, Iterable

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from flexrel.errors import UsageError

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]

BatchNorm = nn.modules.batchnorm._NormBase  # noqa: SLF001 - the base of all that keep statistics
_NORMS = (BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_RATE = 0.02
_LARGEST = 2.0  # norm of all gradients together, so that this rate does for transformers too
_MOMENTUM = 0.9
_DECAY = 1e-4
_WARM_UP = 0.05  # share of all steps


def optimizer_of(network: nn.Module, make: MakeOptimizer | None, steps: int) -> Optimizer:
    """Return an optimizer of the network's parameters that are not frozen.

    Args:
        network: that is trained.
        make: gets those parameters; None: SGD with Nesterov momentum, gradients clipped by their
            norm, with weight decay but for vectors and what norms have, and `rate_at` its rate.
        steps: in all epochs.

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
    plain = {id(p) for p in trained if p.ndim <= 1}
    norms = [module for module in network.modules() if isinstance(module, _NORMS)]
    plain |= {id(p) for norm in norms for p in norm.parameters(recurse=False)}
    decayed = [p for p in trained if id(p) not in plain]
    spared = [p for p in trained if id(p) in plain]
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, _DECAY), (spared, 0.0))
        if parameters
    ]
    sgd = SGD(groups, lr=_RATE, momentum=_MOMENTUM, nesterov=True)
    schedule = LambdaLR(sgd, lambda step: rate_at(step, steps))
    sgd.register_step_pre_hook(lambda *_: _clip_(trained))
    sgd.register_step_post_hook(lambda *_: schedule.step())
    return sgd


def _clip_(parameters: list[nn.Parameter]) -> None:
    nn.utils.clip_grad_norm_(parameters, _LARGEST)


def rate_at(step: int, steps: int) -> float:
    """Return the rate of a step as a share of the largest: up a line, then down a cosine to 0.

    Args:
        step: counted from 0; a loader may give more than it said, whose rate is 0.
        steps: in all.
    """
    rise = round(_WARM_UP * steps)
    if step < rise:
        return (step + 1) / (rise + 1)
    return (1 + math.cos(math.pi * min((step - rise) / max(steps - rise, 1), 1.0))) / 2
