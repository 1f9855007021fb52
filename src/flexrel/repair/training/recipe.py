"""How a network is trained unless the caller says otherwise: optimizer, schedule, device."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import fx, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    ReduceLROnPlateau,
    SequentialLR,
)

from flexrel.core.batches import device_of
from flexrel.core.running import reason
from flexrel.errors import UsageError

Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "bfloat16")
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeSchedule = Callable[[Optimizer, int], LRScheduler]  # (optimizer, steps in all)

BatchNorm = nn.modules.batchnorm._NormBase  # noqa: SLF001 - the base of all that keep statistics
_NORMS = (BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_RATE = 0.02
_LARGEST = 2.0  # norm of all gradients together, so that this rate does for transformers too
_MOMENTUM = 0.9
_DECAY = 1e-4
_WARM_UP = 0.05  # share of all steps
_SEEDED = ("cuda", "xpu")  # accelerators with a generator for each device


def optimizer_of(network: nn.Module, make: MakeOptimizer | None) -> Optimizer:
    """Return an optimizer of the network's parameters that are not frozen.

    Args:
        network: that is trained.
        make: gets those parameters; None: SGD with Nesterov momentum, gradients clipped by their
            norm, with weight decay but for vectors and what norms have.

    Raises:
        UsageError: all parameters are frozen, or `make` returns no optimizer.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not trained:
        raise UsageError("all parameters of the network are frozen; there is nothing to train")
    if make is None:
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
        sgd.register_step_pre_hook(lambda *_: _clip_(trained))
        return sgd
    optimizer = make(trained)
    if not isinstance(optimizer, Optimizer):
        raise UsageError(f"optimizer= must return an optimizer, not {type(optimizer).__name__}")
    return optimizer


def _clip_(parameters: Sequence[nn.Parameter]) -> None:
    nn.utils.clip_grad_norm_(parameters, _LARGEST)


def schedule_of(optimizer: Optimizer, steps: int, make: MakeSchedule | None) -> LRScheduler:
    """Return a schedule of learning rates, one a step.

    Args:
        optimizer: whose rates it sets.
        steps: in all epochs.
        make: gets both; None: up over the first twentieth, then down to 0 along a cosine.

    Raises:
        UsageError: `make` returns no schedule, or one that waits for losses.
    """
    if make is not None:
        schedule = make(optimizer, steps)
        if not isinstance(schedule, LRScheduler):
            raise UsageError(f"schedule= must return a scheduler, not {type(schedule).__name__}")
        if isinstance(schedule, ReduceLROnPlateau):
            raise UsageError("schedule= is stepped after each batch; ReduceLROnPlateau can't be")
        return schedule
    rise = round(_WARM_UP * steps)
    if not rise:
        return CosineAnnealingLR(optimizer, steps)
    parts: list[LRScheduler] = [
        LinearLR(optimizer, 1 / (rise + 1), total_iters=rise),
        CosineAnnealingLR(optimizer, steps - rise),
    ]
    return SequentialLR(optimizer, parts, [rise])


def place_of(device: str, network: nn.Module) -> torch.device:
    """Return the device to train on.

    Args:
        device: its name; "auto": where the network is, if that is no CPU; else the machine's
            accelerator, if there is one. A program stays where it is: its code names the device.
        network: that is trained.

    Raises:
        UsageError: there is no such device here.
    """
    have = device_of(network)
    if device == "auto":
        if have.type != "cpu" or isinstance(network, fx.GraphModule):
            return have
        device = str(torch.accelerator.current_accelerator(check_available=True) or have)
    try:
        return torch.empty(1, device=device).to(device).device  # with its number
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device {device!r} can't be used here: {reason(error)}") from error


def in_half(precision: Precision, device: torch.device) -> bool:
    """Return whether to compute in bfloat16 on the device: as asked, or if it is made for that."""
    if precision == "auto":
        module = torch.get_device_module(device)
        return device.type in _SEEDED and module.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16"


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Run the block with torch's generators as they are, and put their states back."""
    devices = [device.index] if device.type in _SEEDED else []
    with torch.random.fork_rng(devices=devices, device_type=device.type):
        yield


def seed_(device: torch.device, seed: int) -> None:
    """Seed torch's generators, of which dropout and loaders draw, of the CPU and of the device."""
    torch.default_generator.manual_seed(seed)
    if device.type in _SEEDED:
        torch.get_device_module(device).default_generators[device.index].manual_seed(seed)


def train_(network: nn.Module) -> None:
    """Put the network in training mode, but for batch norms whose parameters are all frozen."""
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        frozen = bool(own) and not any(parameter.requires_grad for parameter in own)
        module.training = not (isinstance(module, BatchNorm) and frozen)
