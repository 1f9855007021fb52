"""A layer that one criterion can't score is lost to that criterion alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import flexrel
from flexrel import BudgetError, ModelError
from networks import random_
from repairs import normal


class FrozenBackbone(nn.Module):
    """Its backbone runs under no_grad, so that no relevance comes to it, nor a gradient."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        with torch.no_grad():
            x = self.backbone(x)
        return self.head(x)


class Frozen(FrozenBackbone):
    """All of it."""

    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class Generator(nn.Module):
    """From a code to an image: linear, view, transposed convolutions."""

    def __init__(self):
        super().__init__()
        self.start = nn.Linear(8, 16 * 4)
        self.first = nn.ConvTranspose2d(16, 12, 4, stride=2, padding=1)
        self.second = nn.ConvTranspose2d(12, 3, 4, stride=2, padding=1)

    def forward(self, x):
        x = self.start(x).relu().view(-1, 16, 2, 2)
        return self.second(self.first(x).relu()).tanh()


class UNet(nn.Module):
    """Down, up by a transposed convolution, and across."""

    def __init__(self):
        super().__init__()
        self.down, self.deep = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.join, self.last = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = self.down(x).relu()
        y = self.up(self.deep(functional.max_pool2d(x, 2)).relu())
        return self.last(self.join(torch.cat([y, x], 1)).relu())


DATA = [normal(64, 8, seed=seed) for seed in range(3)]
IMAGES = [normal(32, 2, 4, 4, seed=0)]


def test_a_frozen_backbone_is_pruned_too():
    model = random_(FrozenBackbone()).eval()

    result = flexrel.prune(
        model, calibration=DATA, budgets=["parameters=50%"], granularity="element"
    )

    zeros = {name: float((p == 0).float().mean()) for name, p in result.model.named_parameters()}
    assert result.criterion.name == "magnitude"
    assert zeros["backbone.2.weight"] > 0.3
    total = sum(p.numel() for p in model.parameters())
    left = sum(int((p != 0).sum()) for p in result.model.parameters())
    assert left <= 0.5 * total


@pytest.mark.parametrize(
    ("make", "granularity", "budget"),
    [
        (FrozenBackbone, "element", "parameters=20%"),
        (FrozenBackbone, "channel", "macs=40%"),
        (Generator, "channel", "macs=50%"),
        (Generator, "element", "parameters=30%"),
    ],
)
def test_the_default_meets_what_magnitude_alone_meets_and_diverges_no_more(
    make, granularity, budget
):
    model = random_(make()).eval()

    chosen, alone = (
        flexrel.prune(
            model,
            calibration=DATA,
            budgets=[budget],
            granularity=granularity,
            criterion=criterion,
        )
        for criterion in (None, "magnitude")
    )

    resource = budget.partition("=")[0]
    limit = chosen.requested[resource]
    assert getattr(chosen.achieved, resource) <= limit
    assert chosen.achieved.divergence <= alone.achieved.divergence * (1 + 1e-6)


def test_the_default_meets_what_any_criterion_meets_and_diverges_no_more():
    model = random_(UNet()).eval()
    asked = {"calibration": IMAGES, "budgets": ["parameters=5%"]}

    chosen = flexrel.prune(model, **asked)

    assert chosen.achieved.parameters <= chosen.requested["parameters"]
    for criterion in ("magnitude", "relevance"):
        alone = flexrel.prune(model, criterion=criterion, **asked)
        assert chosen.achieved.divergence <= alone.achieved.divergence * (1 + 1e-6)
    said = r"can score \d of 4 layers, not 'deep': what a refit of up can make up for was not"
    with pytest.raises(BudgetError, match=said):
        flexrel.prune(model, criterion="obs", **asked)


def test_of_weights_too_the_default_diverges_no_more_than_any_criterion_alone():
    model = random_(UNet()).eval()
    asked = {"calibration": IMAGES, "budgets": ["sparsity=50%"], "granularity": "element"}

    chosen = flexrel.prune(model, **asked)

    for criterion in ("magnitude", "relevance", "obs"):
        alone = flexrel.prune(model, criterion=criterion, **asked)
        assert chosen.achieved.divergence <= alone.achieved.divergence * (1 + 1e-6)


def test_what_a_criterion_could_not_score_is_said():
    obs = flexrel.prune(
        random_(FrozenBackbone()).eval(),
        calibration=DATA,
        budgets=["parameters=95%"],
        criterion="obs",
    )
    default = flexrel.prune(random_(Frozen()).eval(), calibration=DATA, budgets=["parameters=80%"])

    assert "backbone.0: what a refit of backbone.2 can make up for was not" in obs.plan.explain()
    assert default.criterion.name == "magnitude"
    untried = [line for line in default.warnings if "was not tried" in line]
    assert [line.split()[1] for line in untried] == ["obs", "flexrel:0.5", "relevance"]


def test_of_n_m_only_those_are_compared_that_score_most_layers():
    model = random_(FrozenBackbone()).eval()

    result = flexrel.prune(model, calibration=DATA, granularity="2:4")

    for name in ("backbone.0", "backbone.2", "head"):
        weight = result.model.get_submodule(name).weight
        groups = (weight != 0).view(len(weight), -1, 4).sum(2)
        assert groups.max() <= 2, name


def test_one_criterion_that_can_score_nothing_is_refused():
    for criterion in ("obs", "relevance"):
        with pytest.raises(ModelError, match="gradient"):
            flexrel.prune(
                random_(Frozen()).eval(),
                calibration=DATA,
                budgets=["macs=50%"],
                criterion=criterion,
            )
