"""Inputs that a network does not run on: the line says in which form it does."""

import pytest
import torch
from torch import nn

from flexrel.core.batches import read_batch
from flexrel.core.running import call
from flexrel.errors import ModelError, UsageError

IMAGES = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
SOUND = nn.Conv1d(1, 4, 3)
TABLE = nn.Linear(6, 2)
WORDS = nn.Embedding(9, 4)
BYTES = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8)
OTHERS = torch.randint(0, 2, (5, 7, 7, 2))  # that no form makes inputs


def said_of(model, x):
    batch = read_batch((x, torch.zeros(len(x))), 0, torch.device("cpu"))
    with pytest.raises(ModelError) as refused:
        call(model, batch)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("model", "x", "says"),
    [
        (IMAGES, BYTES.movedim(-1, 1), "made x.to(torch.float32), scaled as in training, of bytes"),
        (IMAGES, BYTES, "channels first, x.permute(0, 3, 1, 2), made x.to(torch.float32)"),
        (IMAGES, BYTES.float(), "runs on them with channels first, x.permute(0, 3, 1, 2)"),
        (IMAGES, torch.zeros(3, 8, 8).double(), "x.to(torch.float32), scaled as in training"),
        (TABLE, torch.ones(5, 6, dtype=torch.long), "made x.to(torch.float32), scaled as in train"),
        (nn.Linear(6, 2).double(), torch.ones(5, 6), "made x.to(torch.float64)"),
        (WORDS, torch.ones(5, 3), "as whole numbers, x.long()"),
        (SOUND, torch.zeros(5, 40), "with an axis of channels, x[:, None]"),
        (nn.Sequential(nn.Linear(6, 2)), torch.zeros(5, 2, 3), "a row a sample, x.flatten(1)"),
    ],
)
def test_the_form_that_a_network_runs_on_is_told(model, x, says):
    assert says in said_of(model, x)


def test_where_no_form_does_nothing_is_told():
    assert "runs on them" not in said_of(IMAGES, OTHERS)
    assert "x / 255" not in said_of(TABLE, torch.ones(5, 6, dtype=torch.long))


class Listed(nn.Module):
    """Takes images as torchvision's detectors do."""

    def forward(self, images, targets=None):
        return IMAGES(torch.stack(list(images)))


def test_lists_of_images_say_how_a_network_takes_a_tensor():
    images = [torch.zeros(3, 8, 8) for _ in range(4)]

    with pytest.raises(UsageError, match=r"but list, NoneType; .*self\.network\(list\(x\)\)"):
        read_batch({"images": images, "targets": None}, 0, torch.device("cpu"))
    batch = read_batch((images, None), 0, torch.device("cpu"))
    with pytest.raises(ModelError, match=r"self\.network\(list\(x\)\)"):
        call(Listed(), batch)
