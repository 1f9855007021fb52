"""What a plan does to each layer, counted by hand and against the network that was cut."""

import pytest
import torch
from torch import nn

import flexrel
from families import FAMILIES, family
from flexrel.core import cost
from flexrel.core.plan import layer_rows
from flexrel.structure import apply
from planned import plan_for


def small():
    """A conv 3 -> 4 on 8 x 8 without bias, batch norm, conv 4 -> 2, linear 72 -> 5."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 2, 3),
        nn.Flatten(),
        nn.Linear(72, 5),
    )


def rows(plan, sizes=None):
    return {row.name: row for row in layer_rows(plan.graph, plan.masks, sizes or {})}


def numbers(row):
    return (
        (row.width_dense, row.width),
        (row.parameters_dense, row.parameters),
        (row.macs_dense, row.macs),
    )


def test_layers_by_hand():
    plan = plan_for(small(), inputs=torch.zeros(2, 3, 8, 8))
    plan.masks["0"][:] = torch.tensor([True, True, True, False])
    plan.masks["2"][:] = torch.tensor([True, False])

    found = rows(plan, {"0.weight": 7, "1.weight": 1, "1.running_mean": 2, "4.bias": 3})

    assert list(found) == ["0", "1", "2", "4"]
    assert numbers(found["0"]) == ((4, 3), (108, 81), (108 * 64, 81 * 64))
    assert numbers(found["1"]) == ((4, 3), (8, 6), (0, 0))
    assert numbers(found["2"]) == ((2, 1), (74, 28), (72 * 36, 27 * 36))
    assert numbers(found["4"]) == ((5, 5), (365, 185), (360, 180))
    assert [row.bytes for row in found.values()] == [7, 3, 0, 3]
    assert [row.reason for row in found.values()] == ["", "", "", "it is the network's output"]


def test_zeros_count_as_gone_parameters_and_leave_widths():
    plan = plan_for(small(), granularity="element", inputs=torch.zeros(2, 3, 8, 8))
    for mask in plan.masks.values():
        mask[:] = True
    plan.masks["0"][0, :2] = False  # two kernels of 3 x 3

    assert numbers(rows(plan)["0"]) == ((4, 4), (108, 90), (108 * 64, 108 * 64))


def test_a_block_that_goes_takes_its_layers_along():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x):
            return x + self.two(self.one(x).relu())

    model = nn.Sequential(nn.Linear(3, 4), Block(), Block(), nn.Linear(4, 2))
    plan = plan_for(model, granularity="depth", inputs=torch.ones(4, 3))
    (mask,) = plan.masks.values()
    mask[:] = torch.tensor([False, True])

    found = rows(plan)

    assert numbers(found["1.one"]) == ((6, 0), (30, 0), (24, 0))
    assert numbers(found["2.one"]) == ((6, 6), (30, 30), (24, 24))


class Tables(nn.Module):
    """A table whose width is another number than its rows; a token that is no module's weight."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 6)
        self.token = nn.Parameter(torch.zeros(6))
        self.up = nn.ConvTranspose1d(6, 8, 1, groups=2)

    def forward(self, ids):
        return self.up((self.words(ids) + self.token).movedim(2, 1)).sum(2)


def test_widths_are_those_of_outputs_whatever_the_layer():
    plan = plan_for(Tables(), granularity="element", inputs=torch.ones(2, 3, dtype=torch.long))

    found = {name: row.width_dense for name, row in rows(plan).items()}

    assert found == {"token": 6, "words": 6, "up": 8}


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_come_to_what_the_network_has_once_it_is_cut(name):
    model = family(name)
    plan = plan_for(model)

    found = layer_rows(plan.graph, plan.masks, {})
    cut = apply(model, plan)

    assert sum(row.parameters for row in found) == sum(p.numel() for p in cut.parameters())
    assert sum(row.parameters_dense for row in found) == sum(p.numel() for p in model.parameters())
    assert sum(row.macs for row in found) <= cost.macs(plan.graph, plan.masks)
    widths = {
        name: module.weight.shape[0]
        for name, module in cut.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm2d | nn.LayerNorm)
        and module.weight is not None
    }
    known = {row.name: row.width for row in found}
    assert {name: known[name] for name in widths if name in known} == widths


def test_a_result_has_its_layers_with_the_bytes_of_its_file():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    result = flexrel.prune(
        model, calibration=[torch.randn(8, 4)], budgets="macs=50%", criterion="magnitude"
    )

    assert [row.width for row in result.layers] == [result.model[0].out_features, 3]
    assert sum(row.parameters for row in result.layers) == result.achieved.parameters
    assert 0 < sum(row.bytes for row in result.layers) < result.achieved.bytes
