"""The model that is passed in stays as it is, whatever its own code does when it runs."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import flexrel
from networks import random_
from repairs import normal

DATA = [normal(32, 8, seed=seed) for seed in range(2)]


class Remembering(nn.Module):
    """Writes a buffer, attributes and a list of its own in each call."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(8))
        self.seen = []
        self.last = None

    def forward(self, x):
        self.calls += 1
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        self.seen.append(len(x))
        self.last = x.shape
        return self.layers(x)


def state(model):
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    wanted = [(p.requires_grad, p.grad is None, p._version) for p in model.parameters()]
    return values, modes, wanted, copy.copy(model.seen), model.last


def run(model, call, tmp_path):
    if call == "prune":
        flexrel.prune(model, calibration=DATA, budgets=["macs=50%"])
    elif call == "calibrate":
        flexrel.calibrate(model, DATA)
    elif call == "compare":
        result = flexrel.prune(copy.deepcopy(model), calibration=DATA, budgets=["macs=50%"])
        flexrel.compare(result, model, calibration=DATA)
    else:
        flexrel.pack(model, tmp_path / "model.flexrel", "int8", calibration=DATA)


@pytest.mark.parametrize("call", ["prune", "calibrate", "compare", "pack"])
def test_what_forward_writes_is_as_it_was_afterwards(call, tmp_path):
    model = random_(Remembering())
    model.train()
    values, *rest = state(model)

    run(model, call, tmp_path)

    after, *other = state(model)
    assert rest == other
    for name, tensor in values.items():
        assert torch.equal(tensor, after[name]), name


def test_two_threads_may_share_a_model():
    model = random_(nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4))).eval()

    def plan(share):
        return flexrel.prune(model, calibration=DATA, budgets=[flexrel.MACs(share)]).plan

    shares = [0.3, 0.5, 0.7, 0.9]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(plan, shares))

    for share, found in zip(shares, together, strict=True):
        alone = plan(share)
        for name, mask in alone.masks.items():
            assert torch.equal(mask, found.masks[name])
