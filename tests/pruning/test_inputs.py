"""Calibration data that the network was not trained on are noticed, with the numbers."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import flexrel
from flexrel import Parameters
from flexrel.pruning.data import input_shift

MEANS, SPREADS = torch.tensor([3.0, -1.0, 0.5, 0.0]), torch.tensor([2.0, 0.5, 1.0, 4.0])


def network():
    """A network whose first norm saw images of these means and spreads in training."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_mean.copy_(MEANS)
    norm.running_var.copy_(SPREADS.square())
    head = [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(norm, *head, nn.Flatten(), nn.Linear(6, 3))


def images(count=64):
    drawn = torch.randn(count, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    return drawn * SPREADS[:, None, None] + MEANS[:, None, None]


def test_data_as_in_training_are_like_them():
    found = input_shift(network(), [images()])

    assert found.norm == "0"
    assert found.channels == 4
    assert found.apart < 0.1
    assert found.spread == pytest.approx(1, abs=0.05)
    assert not found.warns


def test_the_numbers_are_those_of_the_first_64_samples():
    x = images(100) * 0.2 + 1

    found = input_shift(network(), [x, images()])

    seen = x[:64].double().numpy().transpose(1, 0, 2, 3).reshape(4, -1)
    off = (seen.mean(1) - MEANS.numpy()) / SPREADS.numpy()
    assert found.apart == pytest.approx(np.sqrt((off**2).mean()), rel=1e-5)
    spreads = np.sort(seen.std(1, ddof=1) / SPREADS.numpy())
    assert spreads[1] - 1e-6 <= found.spread <= spreads[2] + 1e-6  # a median
    assert found.warns


@pytest.mark.parametrize(
    ("change", "warns"),
    [
        (lambda x: x / 255, True),
        (lambda x: x * 3, True),
        (lambda x: x + 5 * SPREADS[:, None, None], True),
        (lambda x: x * 1.3 + 0.3 * SPREADS[:, None, None], False),
    ],
)
def test_other_scales_warn_and_another_mix_does_not(change, warns):
    assert input_shift(network(), [change(images())]).warns is warns


def test_channels_that_never_varied_are_left_out():
    model = network()
    model[0].running_var[1:3] = 0

    found = input_shift(model, [images()])

    assert found.channels == 2
    assert not found.warns


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen_mean", torch.zeros(3))
        self.register_buffer("seen_var", torch.ones(3))

    def forward(self, x):
        return functional.batch_norm(x, self.seen_mean, self.seen_var).sum((2, 3))


def test_a_norm_called_as_a_function_is_read():
    found = input_shift(Functional(), [torch.randn(16, 3, 4, 4) + 7])

    assert found.apart == pytest.approx(7, rel=0.1)
    assert found.warns


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (nn.Sequential(nn.Linear(4, 3)), torch.randn(8, 4)),
        (nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)), torch.randn(8, 4)),
        (nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)), torch.randn(8, 4)),
        (nn.Sequential(nn.BatchNorm1d(4)), torch.randn(1, 4)),
    ],
)
def test_where_nothing_tells_there_is_no_answer(model, batch):
    assert input_shift(model, [batch]) is None


def test_the_model_is_left_as_it_was():
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    input_shift(model, [images() * 9])

    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_the_result_and_its_report_say_it():
    good, bad = (
        flexrel.prune(network(), calibration=[x], budgets=[Parameters(0.8)], recover="none")
        for x in (images(), images() / 255)
    )

    assert good.warnings == ()
    (warning,) = bad.warnings
    assert "standard deviations off" in warning
    assert "'0'" in warning
    assert bad.as_json()["warnings"] == [warning]
    assert "standard deviations off" in bad.report()
    assert "standard deviations off" not in good.report()


@pytest.mark.parametrize(
    "labels",
    [
        [f"{at}.png" for at in range(16)],
        {"boxes": torch.ones(3, 4)},
        [{"boxes": torch.ones(at, 4)} for at in range(16)],
        torch.ones(40, 6),  # boxes of all images in one tensor
        torch.rand(16, 2),  # for 3 classes
        7,
    ],
)
def test_labels_of_any_kind_change_nothing_where_none_are_needed(labels):
    request = {"budgets": [Parameters(0.8)], "recover": "finetune:1"}
    x = images(16)

    plain = flexrel.prune(network(), calibration=[x, x + 0.1], **request)
    found = flexrel.prune(network(), calibration=[(x, labels, x), (x + 0.1, labels)], **request)

    assert found.plan.as_json() == plain.plan.as_json()
    for one, other in zip(found.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(5, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, left, right):
        return self.head((self.left(left) + self.right(right)).relu())


@pytest.mark.parametrize("granularity", ["channel", "element"])
def test_a_network_of_two_inputs_is_pruned_with_a_pair_as_with_a_dict(granularity):
    torch.manual_seed(0)
    model, a, b = Pair().eval(), torch.randn(32, 5), torch.randn(32, 4)
    labels = torch.arange(32) % 3
    request = {"budgets": [Parameters(0.6)], "granularity": granularity}

    found, expected = (
        flexrel.prune(model, calibration=[batch], **request)
        for batch in (((a, b), labels), {"left": a, "right": b, "labels": labels})
    )

    assert found.plan.as_json() == expected.plan.as_json()
    assert found.model(a, b).allclose(expected.model(a, b))
    with pytest.raises(
        flexrel.ModelError, match=r"takes, left, right: batches \(\(left, right\), la"
    ):
        flexrel.prune(model, calibration=[(a, b, labels)], **request)
