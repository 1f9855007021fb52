"""Inputs that a network does not run on: the line says in which form it does."""

import numpy as np
import pytest
import torch
from torch import nn

import flexrel
from flexrel.core.batches import read_batch
from flexrel.core.running import call
from flexrel.errors import ModelError, UsageError
from flexrel.tracing import check_batched

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
    with pytest.raises(ModelError, match=r"one by one: .*, or of one size torch\.stack\(images\)"):
        call(Listed(), batch)


def fully_convolutional():
    layers = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("size", [8, 3])  # of as many rows as channels too
@pytest.mark.parametrize("more", [0, 1])
def test_images_one_by_one_are_no_batches_though_a_convolution_takes_them(size, more):
    images = [torch.rand(3, size + more * at, size) for at in range(4)]
    said = rf"shape \[3, {size}, {size}\], which a convolution takes for one sample; .*DataLoader"

    with pytest.raises(UsageError, match=said):
        flexrel.prune(fully_convolutional(), calibration=images, budgets="macs=50%")
    with pytest.raises(ModelError, match=r"a batch axis.*DataLoader"):
        flexrel.calibrate(fully_convolutional(), images)


def test_rows_one_by_one_are_no_batches_though_a_linear_layer_takes_them():
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))

    with pytest.raises(UsageError, match=r"shape \[6\], which a linear layer takes for one sample"):
        flexrel.prune(network, calibration=list(torch.randn(9, 6)), budgets="macs=50%")


class OneByOne(nn.Module):
    """Runs on each sample by itself, as some networks do."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv1d(1, 4, 3)

    def forward(self, x):
        return torch.stack([self.inner(one[None]) for one in x]).flatten(1)


def test_a_network_that_runs_on_each_sample_by_itself_takes_batches():
    check_batched(OneByOne(), read_batch(torch.randn(5, 9), 0, torch.device("cpu")))


def test_images_of_sizes_that_differ_are_batches_of_one_each():
    images = [torch.rand(1, 3, 8 + at, 8) for at in range(8)]

    result = flexrel.prune(
        fully_convolutional(), calibration=images, budgets="macs=50%", criterion="magnitude"
    )

    assert result.calibration_samples == 8
    assert not result.warnings


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: np.zeros((3, 8, 8)), r"torch.from_numpy\(array\), whose first axis counts"),
        (lambda: "a.png", "images in files into tensors, as in training"),
        (
            lambda: pytest.importorskip("PIL.Image").new("RGB", (8, 8)),
            r"torch.from_numpy\(numpy.array\(image\)\).permute\(2, 0, 1\)",
        ),
    ],
)
def test_what_is_no_tensor_says_how_one_is_made_of_it(made, says, pairs):
    one = (made(), 0) if pairs else made()

    with pytest.raises(UsageError, match=says):
        flexrel.prune(fully_convolutional(), calibration=[one] * 4, budgets="macs=50%")
