"""Networks that select, as detectors do: how many outputs there are depends on their weights."""

import pytest
import torch
from torch import nn

import flexrel
from flexrel.errors import ModelError, UsageError

X = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TARGETS = [{"boxes": torch.rand(2, 4), "labels": torch.ones(2)} for _ in X]


class Detector(nn.Module):
    """As torchvision's: a list of images in, a dict of boxes for each out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, images, targets=None):
        del targets
        maps = [self.head(self.body(image[None]))[0].flatten(1) for image in images]
        kept = [one[0] > maps[0][0].median() for one in maps]
        return [
            {"boxes": one[1:, keep].T, "scores": one[0, keep]}
            for one, keep in zip(maps, kept, strict=True)
        ]


class Scores(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = Detector()

    def forward(self, x):
        return self.network.head(self.network.body(x))


@pytest.mark.parametrize("request_", [{"criterion": "magnitude", "recover": "none"}, {}])
def test_outputs_that_are_selected_can_not_be_compared_and_the_line_says_what_to_prune(request_):
    says = r"returns \[\d+, 4\] where the dense network returns \[\d+, 4\]; .*#boxes"

    with pytest.raises(ModelError, match=says) as said:
        flexrel.prune(Detector(), calibration=[X], budgets="macs=50%", **request_)

    assert len(str(said.value)) < 400


def test_a_detector_is_pruned_inside_of_a_network_that_returns_its_scores():
    result = flexrel.prune(
        Scores(), calibration=[X], budgets="macs=60%", criterion="magnitude", recover="none"
    )

    smaller = result.model.network
    assert smaller.body[0].out_channels < 16
    assert len(smaller(list(X))) == len(X)


def test_lists_of_images_and_of_boxes_say_what_to_pass():
    batches = [(list(X[:4]), TARGETS[:4])]

    with pytest.raises(
        ModelError, match=r"pass \[image\[None\] for images, \*_ in loader for image"
    ):
        flexrel.prune(Detector(), calibration=batches, budgets="macs=50%")
    with pytest.raises(UsageError, match=r"a list, no tensor of numbers; .* function of your own"):
        flexrel.Accuracy([(X, TARGETS)])(Scores())
