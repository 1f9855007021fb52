"""The demonstration: a small network for handwritten digits, trained and pruned in seconds.

The 1,797 digits of 8 x 8 pixels ship with scikit-learn. The first 1,000 train; 256 of those,
without labels, calibrate; the other 797 evaluate, also while the search looks for the size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from flexrel.core.batches import RawBatch
from flexrel.core.budgets import AccuracyDrop
from flexrel.core.evaluate import Accuracy
from flexrel.core.measurement import Progress, silent
from flexrel.core.progress import RequestedProgress, shown
from flexrel.errors import UsageError
from flexrel.pruning import PruneOptions, Result, compare, prune

_TRAIN, _CALIBRATE, _BATCH = 1000, 256, 64  # samples
_EPOCHS, _RATE = 12, 0.01
_DROP = 0.01  # one point of accuracy


@dataclass(frozen=True, slots=True, eq=False)
class Digits:
    """The digits, split: what training, calibration and evaluation each may see."""

    train_x: Tensor  # [samples, 1, 8, 8], in [0, 1]
    train_y: Tensor  # [samples]
    calibration: list[RawBatch]  # inputs alone
    evaluation: list[RawBatch]  # (inputs, labels)


class _Block(nn.Module):
    """A residual block: its inner channels can go, its path can't."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[samples, channels, height, width]` to the same."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(x + self.norm2(self.conv2(y)))


class DigitsNetwork(nn.Module):
    """Convolutions, norms, pooling, a residual block and linear layers, for 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(24)
        self.block = _Block(24)
        self.conv2 = nn.Conv2d(24, 48, 3, padding=1)
        self.linear1 = nn.Linear(48 * 4, 64)
        self.linear2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """`[samples, 1, 8, 8]` to class scores `[samples, 10]`."""
        x = self.block(functional.relu(self.norm1(self.conv1(x))))
        x = functional.max_pool2d(x, 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        scores: Tensor = self.linear2(functional.relu(self.linear1(x.flatten(1))))
        return scores


def digits() -> Digits:
    """Return the digits of scikit-learn, shuffled the same way each time.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - an extra, loaded where used
    except ImportError as error:
        raise UsageError(
            "the demo's digits ship with scikit-learn: pip install 'flexrel[demo]'"
        ) from error
    data = load_digits()
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(0))
    x = (torch.from_numpy(data.images).float() / 16)[order].unsqueeze(1)
    y = torch.from_numpy(data.target)[order]
    calibration: list[RawBatch] = list(x[:_CALIBRATE].split(_BATCH))
    held = zip(x[_TRAIN:].split(_BATCH), y[_TRAIN:].split(_BATCH), strict=True)
    return Digits(x[:_TRAIN], y[:_TRAIN], calibration, list(held))


def train(data: Digits, seed: int = 0, progress: Progress = silent) -> DigitsNetwork:
    """Return a network trained on the digits; the same seed gives the same network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitsNetwork()
    draw = torch.Generator().manual_seed(seed)
    steps = _EPOCHS * -(-_TRAIN // _BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_RATE, total_steps=steps)
    for step in range(steps):
        if step % (steps // _EPOCHS) == 0:
            order = torch.randperm(_TRAIN, generator=draw).split(_BATCH)
        picked = order[step % len(order)]
        loss = functional.cross_entropy(model(data.train_x[picked]), data.train_y[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress("training", step + 1, steps)
    return model.eval()


def run(seed: int = 0, progress: RequestedProgress = None) -> Result:
    """Train, and prune by channel to lose at most one point, beside magnitude and relevance.

    The criterion is chosen on the calibration images, and every network repaired.
    """
    data = digits()
    with shown(progress) as tell:
        model = train(data, seed, tell)
    evaluate = Accuracy(data.evaluation)
    result = prune(
        model,
        calibration=data.calibration,
        evaluate=evaluate,
        target=AccuracyDrop(_DROP),
        seed=seed,
        options=PruneOptions(progress=progress),
    )
    return compare(
        result, model, calibration=data.calibration, evaluate=evaluate, progress=progress
    )
