"""Weights go to zero over training as the schedule says, and those cut too early come back."""

import copy
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import flexrel
from flexrel import UsageError
from flexrel.training import GradualPruner
from networks import random_
from oracles import needs

WEIGHTS = ("0.weight", "3.weight")


def network():
    layers = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 5)
    return random_(nn.Sequential(*layers)).train()


def batches(count):
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(6) % 5
    return [(torch.randn(6, 2, 6, 6, generator=draw), labels) for _ in range(count)]


def trained(model, pruner, data, optimizer=None, after=lambda: None):
    optimizer = optimizer or torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2
    )
    for inputs, labels in data:
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        pruner.step()
        after()
    return optimizer


def zeros(model):
    return {name: model.get_parameter(name).detach().numpy() == 0 for name in WEIGHTS}


def share(found):
    return sum(zero.sum() for zero in found.values()) / sum(zero.size for zero in found.values())


@pytest.mark.parametrize("regrow", [0.0, 0.3])
def test_zeros_follow_the_cubic_schedule_and_are_held_between_updates(regrow):
    model, seen = network(), []
    pruner = GradualPruner(model, 0.8, begin=3, end=12, every=2, regrow=regrow)
    trained(model, pruner, batches(16), after=lambda: seen.append(share(zeros(model))))

    whole = 8 * 18 + 5 * 128
    for step, found in enumerate(seen, 1):
        at = 0 if step < 3 else 12 if step >= 12 else step - (step - 3) % 2  # the last update
        due = 0 if at < 3 else 0.8 * (1 - (1 - (at - 3) / 9) ** 3)
        least = round(due * whole) / whole
        assert found >= least  # a weight that came back is zero until it is trained
        assert found <= least + (0 if regrow == 0 else 0.1)
        assert pruner.due(step) >= due
    assert pruner.sparsity == round(0.8 * whole) / whole


def test_one_shot_cuts_all_at_once():
    model, seen = network(), []
    pruner = GradualPruner(model, 0.5, begin=2, end=9, every=3, schedule="one-shot", regrow=0)
    trained(model, pruner, batches(6), after=lambda: seen.append(share(zeros(model))))

    assert seen == [0.0] + [0.5] * 5


@settings(max_examples=25, deadline=None)
@given(
    sparsity=st.floats(0.05, 0.95),
    regrow=st.floats(0, 0.9),
    ties=st.booleans(),
    seed=st.integers(0, 100),
)
def test_each_update_is_what_a_slow_one_makes(sparsity, regrow, ties, seed):
    model = network()
    pruner = GradualPruner(model, sparsity, begin=1, end=5, every=2, regrow=regrow)
    draw = np.random.default_rng(seed)
    gone = np.zeros(8 * 18 + 5 * 128, bool)
    sizes = [8 * 18, 5 * 128]
    for step in range(1, 7):
        weights, gradients = draw.normal(size=(2, len(gone))).astype(np.float32)
        if ties:
            weights, gradients = weights.round(1), gradients.round(0)
        weights[gone] = 0
        place = 0
        for name, size in zip(WEIGHTS, sizes, strict=True):
            tensor = model.get_parameter(name)
            parts = (torch.from_numpy(v[place : place + size].copy()) for v in (weights, gradients))
            with torch.no_grad():
                value, tensor.grad = (part.view(tensor.shape) for part in parts)
                tensor.copy_(value)
            place += size
        if step in (1, 3, 5):
            gone = slow_update(weights, gradients, gone, sizes, sparsity, regrow, (step - 1) / 4)
        pruner.step()
        held = pruner.state_dict()["gone"]
        parts = zip(WEIGHTS, sizes, strict=True)
        none = {name: torch.zeros(size, dtype=torch.bool) for name, size in parts}
        found = torch.cat([{**none, **held}[name].flatten() for name in WEIGHTS]).numpy()
        assert (found == gone).all()


def slow_update(weights, gradients, gone, sizes, sparsity, regrow, part):
    """One weight after the other, as the papers say."""
    share = regrow * (1 + math.cos(math.pi * part)) / 2
    back = min(int(share * (~gone).sum()), gone.sum())
    cut = sorted(np.flatnonzero(gone), key=lambda at: -abs(gradients[at]))
    grown = set(cut[:back])
    size = np.abs(weights)
    for at in range(len(size)):
        if at in grown:
            size[at] = np.inf
        elif gone[at]:
            size[at] = -1
    place = 0
    for length in sizes:  # each layer keeps its largest
        size[place + int(np.argmax(size[place : place + length]))] = np.inf
        place += length
    count = round(sparsity * (1 - (1 - part) ** 3) * len(size))
    new = np.zeros(len(size), bool)
    for at in sorted(range(len(size)), key=lambda at: size[at])[:count]:
        new[at] = size[at] < np.inf
    return new if count else gone


def test_every_layer_keeps_a_weight():
    model = network()
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
    pruner = GradualPruner(model, 0.9, begin=1, end=1, regrow=0)
    pruner.step()

    assert not zeros(model)["0.weight"].all()


def test_layers_that_are_kept_stay():
    model = network()
    pruner = GradualPruner(model, 0.9, begin=1, end=1, regrow=0, keep=["0"])
    pruner.step()

    assert not zeros(model)["0.weight"].any()
    assert zeros(model)["3.weight"].mean() == pytest.approx(0.9)


def test_it_goes_on_to_the_bit_after_a_checkpoint():
    data = batches(14)
    whole = network()
    trained(whole, GradualPruner(whole, 0.8, begin=2, end=12, every=2), data)
    half = network()
    pruner = GradualPruner(half, 0.8, begin=2, end=12, every=2)
    optimizer = trained(half, pruner, data[:7])

    other = copy.deepcopy(half)
    resumed = GradualPruner(other, 0.8, begin=2, end=12, every=2)
    resumed.load_state_dict(pruner.state_dict())
    again = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    again.load_state_dict(optimizer.state_dict())
    trained(other, resumed, data[7:], again)

    for one, two in zip(whole.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_what_it_made_is_packed_small_and_pruned_with_its_zeros(tmp_path):
    model = network()
    trained(model, GradualPruner(model, 0.9, begin=1, end=4, every=1), batches(8))

    report = flexrel.pack(model.eval(), tmp_path / "small.flexrel")
    before = zeros(model)
    inputs = [inputs for inputs, _ in batches(8)]
    cut = flexrel.prune(model, calibration=inputs, budgets=["sparsity=95%"], granularity="element")

    assert report.bytes < 0.4 * sum(4 * p.numel() for p in model.parameters())
    assert all((zeros(cut.model)[name] >= before[name]).all() for name in WEIGHTS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sparsity": 1.0},
        {"sparsity": -0.1},
        {"regrow": 1.0},
        {"begin": 0},
        {"begin": 9, "end": 8},
        {"every": 0},
        {"schedule": "linear"},
        {"keep": ["7"]},
        {"keep": ["0", "3"]},
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_arguments_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UsageError):
        GradualPruner(network(), **{"sparsity": 0.5, "begin": 1, "end": 8, **wrong})


def test_without_gradients_it_says_when_to_call_it():
    model = network()
    pruner = GradualPruner(model, 0.5, begin=1, end=8, every=1)
    pruner.step()
    pruner.step()  # the first that cuts

    with pytest.raises(UsageError, match=r"before zero_grad\(\), or pass regrow=0"):
        pruner.step()


def test_a_state_of_another_model_is_refused():
    pruner = GradualPruner(nn.Linear(4, 4), 0.5, begin=1, end=1)
    pruner.step()

    with pytest.raises(UsageError, match=r"weight is \[4, 4\] there, \[8, 4\] here"):
        GradualPruner(nn.Linear(4, 8), 0.5, begin=1, end=8).load_state_dict(pruner.state_dict())


@pytest.mark.filterwarnings("ignore")  # of Lightning's and transformers' own code
def test_trainers_call_it_with_gradients(tmp_path):
    pytorch, transformers = needs("lightning.pytorch"), needs("transformers")
    needs("accelerate")
    rows = [(x, int(y)) for batch in batches(4) for x, y in zip(*batch, strict=True)]

    class Classifier(pytorch.LightningModule):
        def __init__(self, model):
            super().__init__()
            self.network = model

        def training_step(self, batch):
            return functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model = network()
    pruner = GradualPruner(model, 0.7, begin=1, end=4, every=1)
    trainer = pytorch.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[pruner.lightning_callback()],
    )
    trainer.fit(Classifier(model), torch.utils.data.DataLoader(rows, batch_size=6))
    assert pruner.sparsity == pytest.approx(0.7, abs=1e-3)

    class Scored(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.network = model

        def forward(self, x, labels):
            scores = self.network(x)
            return {"loss": functional.cross_entropy(scores, labels), "logits": scores}

    model = network()
    pruner = GradualPruner(model, 0.7, begin=1, end=4, every=1)
    arguments = transformers.TrainingArguments(
        tmp_path,
        num_train_epochs=1,
        per_device_train_batch_size=6,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    data = [{"x": x, "labels": label} for x, label in rows]
    callback = pruner.transformers_callback()
    transformers.Trainer(Scored(model), arguments, train_dataset=data, callbacks=[callback]).train()
    assert pruner.sparsity == pytest.approx(0.7, abs=1e-3)


def test_without_a_trainer_installed_the_error_names_what_to_install(monkeypatch):
    for name in ("lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    pruner = GradualPruner(network(), 0.5, begin=1, end=8)

    with pytest.raises(UsageError, match="pip install lightning"):
        pruner.lightning_callback()
    with pytest.raises(UsageError, match="pip install transformers"):
        pruner.transformers_callback()
