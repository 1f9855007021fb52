"""A plan's zeros, held in a training that is not ours."""

import sys
import types

import pytest
import torch
from torch import nn
from torch.nn import functional

import flexrel
from flexrel import MaskHolder, UsageError
from flexrel.core.graph import weight_of
from flexrel.structure import gone_entries
from networks import random_
from oracles import needs
from trainings import Tied, adam, group_plan, labelled, perceptron, pruned, sgd, weights


def zeros_are_held(model, plan):
    """Whether each entry that the plan took is +0.0, and others are not 0 all."""
    for group in plan.graph.groups:
        gone = gone_entries(group, plan)
        weight = model.get_parameter(weight_of(group.name)).detach()
        if not (weight[gone].view(torch.int32) == 0).all() or not weight[~gone].any():
            return False
    return True


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    output = model(x)
    loss = output.square().mean() if output.shape[1] == 8 else functional.cross_entropy(output, y)
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("optimizer", [sgd, adam])
@pytest.mark.parametrize("granularity", ["element", "2:4", "block:4x2", "tied"])
def test_zeros_stay_after_every_step_while_a_hook_holds_them(granularity, optimizer):
    dense = random_(Tied()) if granularity == "tied" else perceptron()
    network, plan = pruned(dense, "element" if granularity == "tied" else granularity)
    if granularity == "2:4":
        plan = group_plan(dense)
        network = flexrel.apply(dense, plan)
    network.train()
    optimizer = optimizer(network.parameters())
    before = weights(network)

    with MaskHolder(network, plan).hold(optimizer):
        for x, y in labelled(4):
            step(network, optimizer, x, y)
            assert zeros_are_held(network, plan)
    assert any(not t.equal(before[n]) for n, t in weights(network).items())

    step(network, optimizer, *labelled(1)[0])
    assert not zeros_are_held(network, plan)


def test_apply_sets_them_once_for_a_loop_of_ones_own():
    dense = perceptron()
    network, plan = pruned(dense)
    holder = MaskHolder(network, plan)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(-1.0)

    holder.apply_()

    assert zeros_are_held(network, plan)
    assert (network[4].bias == -1).all()


@pytest.mark.parametrize("held", [True, False])
def test_packing_says_how_many_zeros_a_plain_loop_filled(held, tmp_path):
    network, plan = pruned(perceptron())
    gone = sum(int(gone_entries(group, plan).sum()) for group in plan.graph.groups)
    optimizer = sgd(network.train().parameters())
    hook = MaskHolder(network, plan).hold(optimizer)
    if not held:
        hook.remove()
    for x, y in labelled(4):
        step(network, optimizer, x, y)
    zeros = sum(int((p == 0).sum()) for p in network.parameters() if p.ndim > 1)

    told = flexrel.pack(nn.DataParallel(network), tmp_path / "m").warnings

    lost = gone - zeros
    said = f"{lost:,} of the {gone:,} zeros that a plan set in the network are other numbers now"
    assert (lost == 0) == held
    assert [line.partition(", as a loop")[0] for line in told] == ([] if held else [said])


def test_zeros_are_forgotten_where_channels_go_after_them(tmp_path):
    network, _ = pruned(perceptron())
    smaller, _ = pruned(network, "channel")

    assert flexrel.pack(smaller, tmp_path / "m").warnings == ()


def test_a_network_that_is_wrapped_is_held_too():
    dense = perceptron()
    network, plan = pruned(dense)
    holder = MaskHolder(nn.DataParallel(network), plan)
    with torch.no_grad():
        network[0].weight.fill_(1.0)

    holder.apply_()

    assert zeros_are_held(network, plan)


def test_there_is_nothing_to_hold_of_channels():
    network, plan = pruned(perceptron(), "channel")
    before = weights(network)

    MaskHolder(network, plan).apply_()

    assert all(t.equal(before[n]) for n, t in weights(network).items())


def test_a_plan_of_another_network_is_refused():
    _, plan = pruned(perceptron())

    with pytest.raises(UsageError, match=r"0.weight is \[5, 8\], the plan's is \[16, 8\]"):
        MaskHolder(nn.Sequential(nn.Linear(8, 5)), plan)
    with pytest.raises(UsageError, match=r"another network: the model lacks 0.weight"):
        MaskHolder(nn.Linear(8, 16), plan)


# --- Lightning ----------------------------------------------------------------------------------


class Module(nn.Module):
    """Stands for a LightningModule: what is trained is a part of it."""

    def __init__(self, network):
        super().__init__()
        self.network = network


def fit(module, batches, callbacks):
    """What Lightning's trainer does, as its documentation says, in the order of its hooks."""
    optimizer = sgd(module.parameters())
    module.train()
    for callback in callbacks:
        callback.on_train_start(None, module)
    for index, (x, y) in enumerate(batches):
        step(module.network, optimizer, x, y)
        for callback in callbacks:
            callback.on_train_batch_end(None, module, {"loss": 0.0}, (x, y), index)


def test_lightning_calls_after_each_batch(monkeypatch):
    stand_in = types.ModuleType("lightning.pytorch")
    stand_in.Callback = type("Callback", (), {})
    monkeypatch.setitem(sys.modules, "lightning", types.ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", stand_in)
    network, plan = pruned(perceptron())

    callback = MaskHolder(network, plan).lightning_callback()
    fit(Module(network), labelled(3), [callback])

    assert isinstance(callback, stand_in.Callback)
    assert zeros_are_held(network, plan)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # of Lightning's own code
def test_lightning_itself_calls_after_each_batch(tmp_path):
    pytorch = needs("lightning.pytorch")
    network, plan = pruned(perceptron())
    network.train()

    class Classifier(pytorch.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network

        def training_step(self, batch):
            return functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return adam(self.parameters())

    before = weights(network)
    trainer = pytorch.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[MaskHolder(network, plan).lightning_callback()],
    )
    trainer.fit(Classifier(), torch.utils.data.DataLoader(labelled(4), batch_size=None))

    assert zeros_are_held(network, plan)
    assert any(not t.equal(before[n]) for n, t in weights(network).items())


def test_without_a_trainer_installed_the_error_names_what_to_install(monkeypatch):
    for name in ("lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not there
    holder = MaskHolder(*pruned(perceptron()))

    with pytest.raises(UsageError, match="needs lightning; install it with: pip install lightning"):
        holder.lightning_callback()
    with pytest.raises(UsageError, match="install it with: pip install transformers"):
        holder.transformers_callback()


# --- Hugging Face -------------------------------------------------------------------------------


def test_transformers_calls_after_each_step():
    """Through the very object that hands a trainer's events to callbacks."""
    handlers = needs("transformers.trainer_callback")
    network, plan = pruned(perceptron())
    optimizer = adam(network.parameters())
    callback = MaskHolder(network, plan).transformers_callback()
    handler = handlers.CallbackHandler([callback], network, None, optimizer, None)
    told = None, handlers.TrainerState(), handlers.TrainerControl()

    handler.on_train_begin(*told)
    for x, y in labelled(3):
        step(network.train(), optimizer, x, y)
        handler.on_step_end(*told)

    assert zeros_are_held(network, plan)


def test_the_trainer_of_transformers_itself_holds_the_zeros(tmp_path):
    needs("accelerate")
    transformers = needs("transformers")
    network, plan = pruned(perceptron())

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x, labels):
            scores = self.network(x)
            return {"loss": functional.cross_entropy(scores, labels), "logits": scores}

    rows = [{"x": x, "labels": y} for batch in labelled(4) for x, y in zip(*batch, strict=True)]
    arguments = transformers.TrainingArguments(
        tmp_path, num_train_epochs=1, use_cpu=True, report_to=[], save_strategy="no"
    )
    before = weights(network)
    transformers.Trainer(
        Classifier(),
        arguments,
        train_dataset=rows,
        callbacks=[MaskHolder(network, plan).transformers_callback()],
    ).train()

    assert zeros_are_held(network, plan)
    assert any(not t.equal(before[n]) for n, t in weights(network).items())
