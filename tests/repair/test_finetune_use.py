"""Training leaves what it is given alone, takes networks as they come, and refuses the rest."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import flexrel
from flexrel import FineTune, ModelError, UsageError
from flexrel.repair.optimizer import optimizer_of
from flexrel.structure import analyse, exported_program
from networks import Call, batch, bits, random_, random_plan, same_bits
from trainings import (
    labelled,
    perceptron,
    pruned,
    run,
    same,
    weights,
)


def test_neither_network_nor_data_is_changed_and_modes_are_as_they_were():
    dense, data = perceptron(), labelled(6)
    network, plan = pruned(dense)
    network.train()
    network[1].eval()
    dense[3].train()
    before = bits(network), bits(dense), copy.deepcopy(data)

    trained = FineTune(2)(network, dense, plan, data)

    assert same_bits(bits(network), before[0])
    assert same_bits(bits(dense), before[1])
    pairs = zip(data, before[2], strict=True)
    assert all(x.equal(a) and y.equal(b) for (x, y), (a, b) in pairs)
    assert [m.training for m in trained.model.modules()] == before[0][1]
    assert all(p.grad is None for p in trained.model.parameters())


def test_modes_are_put_back_when_an_error_passes():
    dense = perceptron().train()
    network, plan = pruned(dense)
    state = torch.get_rng_state()

    def fails(output, labels):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FineTune(1, loss=fails)(network, dense, plan, labelled(4))

    assert all(module.training for module in dense.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_seed_gives_the_same_network_whatever_the_global_generators_say():
    class Noisy:
        def __iter__(self):
            return ((x + 0.1 * torch.randn(x.shape), y) for x, y in loader)

    loader = DataLoader(TensorDataset(*map(torch.cat, zip(*labelled(4), strict=True))), 8, True)
    settings = {"data": Noisy(), "validation": Noisy()}
    dense = perceptron()
    network, plan = pruned(dense)

    def trained(seed):
        return weights(FineTune(2, **settings, seed=seed)(network, dense, plan, []).model)

    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(trained(7))
        assert torch.equal(torch.get_rng_state(), before)
    assert same(*found)
    assert not same(found[0], trained(8))


def test_frozen_parameters_stay_frozen_and_so_do_the_statistics_of_a_frozen_norm():
    dense = perceptron()
    network, plan = pruned(dense)
    for parameter in (*network[1].parameters(), network[4].bias):
        parameter.requires_grad_(False)

    trained = FineTune(2)(network, dense, plan, labelled(4)).model

    changed = {n for n, t in weights(trained).items() if not t.equal(weights(network)[n])}
    assert changed == {"0.weight", "0.bias", "4.weight"}
    assert not trained[4].bias.requires_grad


def test_statistics_of_norms_follow_the_data():
    network, _, trained = run(3)

    assert trained.training.best > 0
    assert not trained.model[1].running_mean.equal(network[1].running_mean)


@pytest.mark.parametrize("steps", [2, 7, 40, 1000])
def test_the_rate_rises_over_a_twentieth_and_falls_along_a_cosine_to_zero(steps):
    rise = max(round(steps / 20), 1)
    optimizer = optimizer_of(nn.Linear(8, 3), None, steps)
    largest = optimizer.param_groups[0]["initial_lr"]

    for step in range(2 * steps):  # a loader may give more than it said
        share = (step + 1) / (rise + 1)
        if step >= rise:
            share = (1 + math.cos(math.pi * min((step - rise) / (steps - rise), 1))) / 2
        assert optimizer.param_groups[0]["lr"] == pytest.approx(largest * share, abs=1e-9)
        optimizer.step()


# --- networks as they come ------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["element", "channel"])
def test_an_exported_program_is_trained_as_it_is(granularity):
    dense = perceptron()
    example = batch(torch.randn(4, 8))
    program = exported_program(dense, example).graph
    plan = random_plan(analyse(dense, example, granularity, program=program), 0)
    network = flexrel.apply(program, plan)

    trained = FineTune(3)(network, dense, plan, labelled(6))

    assert trained.training.best > 0
    assert trained.model(torch.randn(5, 8)).shape == (5, 3)
    after, before = weights(trained.model), weights(network)
    assert not same(after, before)
    assert after["1.running_mean"].equal(before["1.running_mean"])
    assert ((after["0.weight"] == 0) == (before["0.weight"] == 0)).all()


def test_a_module_that_torch_exported_and_that_has_no_training_mode_is_trained():
    dense = random_(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)))
    network, plan = pruned(dense, "channel")
    exported = torch.export.export(network, (torch.randn(8, 8),)).module()

    trained = FineTune(2)(exported, dense, plan, [x for x, _ in labelled(4)])

    assert trained.training.best > 0


def test_training_under_inference_mode_or_without_gradients_is_training():
    for mode in (torch.inference_mode, torch.no_grad):
        dense = perceptron()
        network, plan = pruned(dense)
        with mode():
            trained = FineTune(2)(network, dense, plan, labelled(6))

        assert trained.training.best > 0


# --- wrong usage, in one line ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs=0; train for 1 epoch or more"),
        ({"distillation": 1.5}, r"distillation=1.5 is no share in \[0, 1\]"),
        ({"distillation": math.nan}, "distillation=nan is no share"),
        ({"validation": 0.0}, r"validation=0.0 is no share in \(0, 1\)"),
        ({"validation": 1}, "validation=1 is no share"),
        ({"temperature": 0.0}, "temperature=0.0; it is a number above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        FineTune(**({"epochs": 1} | arguments))


inputs = [x for x, _ in labelled(3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": []}, "data gives no batch"),
        ({"validation": []}, "validation gives no batch"),
        ({"data": iter(labelled(2))}, "data is an iterator, gone after one use"),
        ({"data": torch.randn(4, 8)}, r"one tensor of shape \(4, 8\)"),
        ({"data": DataLoader(labelled(2))}, "data is a DataLoader, which may order its batches"),
        ({"batches": inputs, "distillation": 0.5}, "has no labels, but 0.5 of the loss comes from"),
        ({"batches": inputs, "loss": functional.cross_entropy}, "batch . has no labels"),
        ({"batches": [*labelled(3), inputs[0]]}, "batch 3 has no labels"),
        ({"batches": [(x, x[:, 0]) for x in inputs], "distillation": 0.0}, "pass loss="),
        ({"loss": lambda o, y: o, "distillation": 0.0}, r"loss= must return one number.*\[8, 3\]"),
        ({"optimizer": lambda p: None}, "optimizer= must return an optimizer, not NoneType"),
        ({"batches": [*labelled(2), (torch.full((2, 8), math.nan), torch.zeros(2).long())]}, "NaN"),
        ({"batches": [{"input": x, "labels": y, "sample_weight": torch.ones(8)}
                      for x, y in labelled(2)], "distillation": 0.0,
          "loss": functional.cross_entropy}, r"one number a sample, \[8\], .* returned \[\] for"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_in_one_line(arguments, message, unchecked):
    with pytest.raises(UsageError, match=message) as found:
        run(1, **arguments)

    assert "\n" not in str(found.value)


def test_a_network_that_is_frozen_whole_is_refused():
    dense = perceptron()
    network, plan = pruned(dense)

    with pytest.raises(UsageError, match="all parameters of the network are frozen"):
        FineTune(1)(network.requires_grad_(requires_grad=False), dense, plan, labelled(2))


def test_a_network_through_which_no_gradient_goes_is_refused():
    dense = perceptron()
    network, plan = pruned(dense)
    cut_off = nn.Sequential(network, Call(lambda x: x.detach()))
    _, plan = pruned(nn.Sequential(dense, nn.Identity()))

    with pytest.raises(ModelError, match="no gradient goes back through the network"):
        FineTune(1)(cut_off, dense, plan, labelled(2))


def test_batches_that_are_gone_after_one_use_are_refused_when_that_is_seen():
    class Once:
        def __init__(self):
            self.batches = iter(labelled(3))

        def __len__(self):
            return 3

        def __iter__(self):
            return self.batches

    once = Once()
    for _ in range(2):  # one is left, which is looked at first
        next(once.batches)

    with pytest.raises(UsageError, match="data gives no batch"):
        run(1, data=once, validation=labelled(1))


def test_progress_is_told_after_each_step_and_each_epoch():
    said = []
    dense = perceptron()
    network, plan = pruned(dense)

    FineTune(3)(network, dense, plan, labelled(3), lambda *told: said.append(told))

    told = []
    for epoch in (1, 2, 3):  # of the three batches one is held out
        told += [(f"epoch {epoch} of 3", step, 2) for step in (1, 2)]
        told.append(("fine-tuning", epoch, 3))
    assert said == told
