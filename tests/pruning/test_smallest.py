"""Of all that meets a target the smallest is returned, whatever criterion it is by."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import flexrel
from flexrel import Accuracy, AccuracyDrop, Magnitude

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(200, 6, generator=DRAW)


@dataclass(frozen=True)
class Shuffled:
    """Scores drawn at random."""

    seed: int
    needs = frozenset()

    @property
    def name(self):
        return f"shuffled {self.seed}"

    def scores(self, signals):
        draw = torch.Generator().manual_seed(self.seed)
        for known in signals:
            yield torch.rand(known.group.shape, generator=draw)


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3)
    )


@pytest.mark.parametrize("seed", [1, 3])
def test_no_criterion_asked_for_alone_gives_a_smaller_file_at_the_target(seed):
    model = network(seed)
    with torch.no_grad():
        labels = model(X).argmax(1)
    asked = {
        "calibration": [X],
        "evaluate": Accuracy([(X, labels)]),
        "target": AccuracyDrop(0.15),
        "recover": "none",
    }
    criteria = [Magnitude(), *map(Shuffled, range(3))]

    together = flexrel.prune(model, criterion=criteria, **asked)

    alone = [flexrel.prune(model, criterion=one, **asked).achieved for one in criteria]
    assert together.achieved.bytes == min(one.bytes for one in alone)
    assert together.achieved.accuracy >= together.dense.accuracy - 0.15
