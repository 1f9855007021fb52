"""A network on the machine's accelerator is treated as on the processor.

On a machine without one all of it runs on the processor twice, which must agree with itself.
"""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import flexrel
from flexrel import OBS, FineTune, FlexRel, MACs, Magnitude, Sparsity, prune
from flexrel.io import encode
from flexrel_edge.format import describe
from networks import Convolutional, random_

DEVICE = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, ids):
        return self.head(self.layers(self.embedding(ids)).mean(1))


def images(seed):
    return torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def sentences(seed):
    return torch.randint(50, (40, 12), generator=torch.Generator().manual_seed(seed))


NETWORKS = {"convolutional": (Convolutional, images), "encoder": (Encoder, sentences)}


def here_and_there(name):
    """Return a network and its data on the processor, and both on the accelerator."""
    made, data = NETWORKS[name]
    model, batches = random_(made()).eval(), [data(seed) for seed in range(3)]
    return (model, batches), (copy.deepcopy(model).to(DEVICE), [x.to(DEVICE) for x in batches])


def near(found, expected, tolerance=1e-3):
    apart = (found.cpu().double() - expected.cpu().double()).abs().max()
    return bool(apart <= tolerance * expected.abs().max().clamp_min(1e-12))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rule", ["gradient-input", "epsilon", "composite"])
def test_relevance_is_the_same(name, rule, tmp_path):
    for place, (model, batches) in zip("ab", here_and_there(name), strict=True):
        flexrel.calibrate(model, batches, rule).save(tmp_path / place)

    expected, found = (load_file(tmp_path / place) for place in "ab")
    assert found.keys() == expected.keys()
    assert all(near(found[key], expected[key]) for key in expected)


ASKED = {
    "channels": {"budgets": [MACs(0.75)], "criterion": OBS()},
    "channels, not repaired": {"budgets": [MACs(0.75)], "recover": "none"},
    "channels, int8": {"budgets": [MACs(0.75)], "values": "int8"},
    "weights": {"granularity": "element", "budgets": [Sparsity(0.7)]},
    "weights, int4": {"granularity": "element", "budgets": [Sparsity(0.5)], "values": "int4"},
    "blocks": {"granularity": "block:4x4", "budgets": [Sparsity(0.5)]},
    "2:4": {"granularity": "2:4"},
    "trained": {"budgets": [MACs(0.75)], "recover": FineTune(1, distillation=1.0)},
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_is_cut_and_repaired_and_the_network_stays_where_it_is(name, asked):
    (model, batches), (other, given) = here_and_there(name)
    options = {"criterion": FlexRel()} | ASKED[asked]

    here, there = (
        prune(network, calibration=data, **options)
        for network, data in ((model, batches), (other, given))
    )

    assert {str(t.device) for t in there.model.state_dict().values()} == {str(given[0].device)}
    with torch.no_grad():
        outputs = there.model(given[0]).cpu(), here.model(batches[0])
    assert near(*outputs, 2e-2)  # training and rounding make more of a last bit
    assert there.achieved.macs == here.achieved.macs
    recorded = describe(there.packed).metadata
    assert len(encode(there.model, metadata=recorded)) == there.achieved.bytes


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_on_the_processor_is_trained_on_the_accelerator_and_comes_back(name):
    (model, batches), _ = here_and_there(name)
    options = {"budgets": [MACs(0.75)], "criterion": Magnitude()}

    result = prune(model, calibration=batches, recover="finetune:1", **options)

    assert {str(t.device) for t in result.model.state_dict().values()} == {"cpu"}
    assert [step.name for step in result.recovery] == ["closed-form", "finetune:1"]
