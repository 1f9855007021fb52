"""What training a pruned network promises, by loops, by hand, and by what must not change."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import flexrel
from flexrel import FineTune
from flexrel.core.graph import weight_of
from flexrel.core.outputs import apart
from flexrel.structure import gone_entries
from networks import random_
from trainings import (
    Tied,
    adam,
    convolutional,
    group_plan,
    labelled,
    perceptron,
    pruned,
    run,
    same,
    sgd,
    weights,
)

drawn = settings(max_examples=12, derandomize=True)


def looking(make, look):
    """Return the optimizer, which calls `look(optimizer)` before each step, so after the last."""

    def looked_at(parameters):
        optimizer = make(parameters)
        optimizer.register_step_pre_hook(lambda *_: look(optimizer))
        return optimizer

    return looked_at


def watching(trained_on, held_out=None):
    """Return a loss that notes which labels it is given, in training and else in validation."""

    def loss(output, labels):
        if torch.is_grad_enabled():
            trained_on.append(id(labels))
        elif held_out is not None:
            held_out.append(id(labels))
        return functional.cross_entropy(output, labels)

    return loss


def positive_zero(tensor):
    return bool((tensor.view(torch.int32) == 0).all())


@pytest.mark.parametrize("distillation", [0.0, 0.3, 1.0])
def test_agrees_with_a_loop_written_by_hand(distillation):
    dense = random_(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)))
    network, plan = pruned(dense, "channel")
    data = held_out = labelled(5)
    order = []
    network.register_forward_pre_hook(lambda m, args: order.append(args[0]) if m.training else None)

    found = FineTune(
        2,
        validation=held_out,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        distillation=distillation,
        temperature=3.0,
    )(network, dense, plan, data)

    student, labels = copy.deepcopy(network).eval(), {id(x): y for x, y in data}
    parameters = list(student.parameters())
    speeds = [torch.zeros_like(p) for p in parameters]
    for x in order:
        loss = slow_loss(student, dense, x, labels[id(x)], distillation, 3.0)
        for p, v, gradient in zip(
            parameters, speeds, torch.autograd.grad(loss, parameters), strict=True
        ):
            v.mul_(0.9).add_(gradient)
            p.data.sub_(0.1 * v)
    assert len(order) == 10
    assert found.training.best == 2
    for name, value in found.model.state_dict().items():
        assert torch.allclose(value, student.state_dict()[name], atol=1e-5), name
    with torch.no_grad():
        losses = [slow_loss(student, dense, x, y, distillation, 3.0) for x, y in held_out]
    assert found.training.validation[-1] == pytest.approx(sum(losses).item() / 5, rel=1e-4)


def slow_loss(student, dense, x, y, distillation, temperature):
    """The definition, sample by sample: -ln p(label), and T² Σ p ln(p / q)."""
    total = 0.0
    for row, label in zip(x, y, strict=True):
        scores, goal = student(row[None])[0], dense(row[None])[0].detach()
        p, q = ((s / temperature).exp() for s in (goal, scores))
        p, q = p / p.sum(), q / q.sum()
        far = temperature**2 * (p * (p / q).log()).sum()
        total += distillation * far - (1 - distillation) * scores.log_softmax(0)[label]
    return total / len(x)


def test_training_brings_back_what_pruning_lost():
    data = labelled(20, samples=16)
    dense = perceptron()
    plan = group_plan(dense)

    trained = FineTune(10, distillation=0.0)(flexrel.apply(dense, plan), dense, plan, data)

    accuracy = flexrel.Accuracy(labelled(4, seed=9))
    assert accuracy(trained.model) > accuracy(flexrel.apply(dense, plan)) + 0.2


def test_order_is_drawn_anew_in_each_epoch_and_each_batch_comes_once():
    data = labelled(6, samples=2)
    seen = []

    run(3, batches=data, validation=labelled(1), loss=watching(seen))

    epochs = [seen[i : i + 6] for i in (0, 6, 12)]
    assert all(sorted(epoch) == sorted(id(y) for _, y in data) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_loader_keeps_its_own_order():
    class Loader:
        def __iter__(self):
            return iter(data)

    data = labelled(4, samples=2)
    seen = []

    run(2, data=Loader(), validation=labelled(1), loss=watching(seen))

    assert seen == [id(y) for _, y in data * 2]


def test_a_loader_may_give_more_batches_than_it_said():
    class Loader:
        def __len__(self):
            return 2

        def __iter__(self):
            return iter(labelled(5))

    _, _, trained = run(2, data=Loader(), validation=labelled(1))

    assert trained.training.stopped == "all epochs were run"


# --- zeros are held -------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [sgd, adam], ids=["momentum", "adam"])
@pytest.mark.parametrize("granularity", ["element", "2:4", "block:2x4", "tied", "convolution"])
def test_zeros_are_plus_zero_after_every_step(granularity, optimizer):
    dense, shape = random_(Tied()) if granularity == "tied" else perceptron(), (8,)
    data = labelled(6)
    if granularity == "convolution":
        dense, shape = convolutional(), (4, 4, 4)
        data = labelled(6, shape=shape)
    kind = {"tied": "element", "convolution": "block:2x4"}.get(granularity, granularity)
    if granularity == "tied":
        data = [x for x, _ in data]
    network, plan = pruned(dense, kind, shape)
    if kind == "2:4":
        plan = group_plan(dense)
        network = flexrel.apply(dense, plan)
    gone = {weight_of(place.name): gone_entries(place, plan) for place in plan.graph.groups}
    steps = []

    def look(optimizer):
        shapes = {tuple(g.shape): g for g in gone.values()}
        for group in optimizer.param_groups:
            for p in group["params"]:
                if tuple(p.shape) in shapes:
                    assert positive_zero(p.detach()[shapes[tuple(p.shape)]])
                    steps.append(tuple(p.shape))

    trained = FineTune(2, validation=data, optimizer=looking(optimizer, look))(
        network, dense, plan, data
    )

    assert len(steps) >= 12  # 6 batches in each of 2 epochs
    assert trained.training.best > 0
    for name, entries in gone.items():
        weight = trained.model.get_parameter(name)
        assert positive_zero(weight.detach()[entries])
        assert (weight.detach()[~entries] != network.get_parameter(name)[~entries]).any()
    if granularity == "tied":
        assert trained.model.encode.weight is trained.model.decode.weight


def test_channels_that_are_gone_need_no_holding():
    network, _, trained = run(granularity="channel")

    assert [p.shape for p in trained.model.parameters()] == [p.shape for p in network.parameters()]
    assert not same(weights(trained.model), weights(network))


# --- the best is taken ----------------------------------------------------------------------------


@drawn
@given(seed=st.integers(0, 99), rate=st.sampled_from([0.01, 0.3, 3.0, 100.0]))
def test_the_network_returned_has_the_lowest_validation_loss_that_was_seen(seed, rate):
    held_out = labelled(2, seed=seed + 1)
    network, _, trained = run(
        4,
        labelled(4, seed=seed),
        validation=held_out,
        optimizer=lambda p: torch.optim.SGD(p, lr=rate),
        distillation=0.0,
        seed=seed,
    )

    found = trained.training
    losses = [functional.cross_entropy(trained.model(x), y).item() for x, y in held_out]
    assert found.best == found.validation.index(min(found.validation))
    assert sum(losses) / 2 == pytest.approx(min(found.validation), rel=1e-4)
    if found.best == 0:
        assert same(weights(trained.model), weights(network))


def test_a_learning_rate_that_ruins_returns_the_network_as_it_was_given():
    dense = perceptron()
    network, plan = pruned(dense, "channel")
    data = labelled(6)

    found = FineTune(3, optimizer=lambda p: torch.optim.SGD(p, lr=1e3), distillation=1.0)(
        dense, dense, plan, data
    )

    assert found.training.best == 0
    assert found.training.validation[0] == pytest.approx(0, abs=1e-6)
    assert same(weights(found.model), weights(dense))
    assert network is not found.model


def test_validation_is_the_mean_over_samples_in_evaluation_mode():
    held_out = [*labelled(1, samples=2), *labelled(1, samples=6, seed=4)]
    network, _, trained = run(1, validation=held_out, distillation=0.0)

    assert network.training is False
    x, y = (torch.cat(part) for part in zip(*held_out, strict=True))
    before = functional.cross_entropy(network(x), y).item()
    assert trained.training.validation[0] == pytest.approx(before, rel=1e-5)


def test_a_share_of_the_batches_is_held_out_and_never_trained_on():
    data = labelled(10, samples=2)
    trained_on, held_out = [], []

    loss = watching(trained_on, held_out)
    _, _, trained = run(2, batches=data, validation=0.25, loss=loss)

    assert len(set(trained_on)) == 8  # round(2.5) is 2
    assert len(set(held_out)) == 2
    assert not set(trained_on) & set(held_out)
    assert trained.training.validated_on == "2 of 10 batches, held out"


def test_what_a_validation_loader_draws_is_the_same_each_time():
    noises = []

    class Noisy:
        def __iter__(self):
            for x, y in labelled(1):
                noises.append(torch.randn(x.shape))
                yield x + noises[-1], y

    run(2, validation=Noisy())

    assert len(noises) == 3  # before and after each epoch
    assert all(noise.equal(noises[0]) for noise in noises)


@pytest.mark.parametrize(("count", "share", "said"), [(2, 0.99, "1 of 2"), (9, 0.01, "1 of 9")])
def test_at_least_one_batch_is_held_out_and_one_is_left(count, share, said):
    _, _, trained = run(1, labelled(count), validation=share)

    assert trained.training.validated_on == f"{said} batches, held out"


def test_one_batch_is_trained_and_validated_on_and_the_record_says_so():
    _, _, trained = run(1, labelled(1))

    assert trained.training.validated_on == "the training data, which is one batch"


# --- what is not finite ---------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_training_with_the_best_so_far():
    calls = []

    def loss(output, labels):
        calls.append(1)
        scale = math.nan if len(calls) == 12 else 1.0  # in epoch 2: 3 + 1 batches, validated first
        return functional.cross_entropy(output, labels) * scale

    network, _, trained = run(5, labelled(4), loss=loss, distillation=0.0)

    found = trained.training
    assert found.stopped.startswith("the loss was nan in step ")
    assert "of epoch 3" in found.stopped
    assert len(found.validation) == 1 + 2  # before, and after each epoch that was run whole
    assert all(tensor.isfinite().all() for tensor in weights(trained.model).values())
    assert network.training is False


def test_weights_that_overflow_do_not_come_back():
    network, _, trained = run(4, optimizer=lambda p: torch.optim.SGD(p, lr=1e38), distillation=0.0)

    assert "finite" in trained.training.stopped or "nan" in trained.training.stopped
    assert same(weights(trained.model), weights(network))


def test_a_network_that_was_broken_from_the_start_is_returned_as_it_is():
    dense = perceptron()
    broken, plan = pruned(dense, "channel")
    with torch.no_grad():
        broken[0].bias.fill_(math.nan)

    found = FineTune(2)(broken, dense, plan, labelled(4)).training

    assert found.validation == (math.inf,)
    assert found.stopped == "the loss was nan in step 1 of epoch 1"


# --- the dense network's outputs ------------------------------------------------------------------


def test_without_labels_all_of_the_loss_is_the_distance_from_the_dense_network():
    dense = perceptron()
    network, plan = pruned(dense)
    data = [x for x, _ in labelled(8)]

    trained = FineTune(20)(network, dense, plan, data)

    assert trained.training.distillation == 1.0
    distance = flexrel.core.distance.Divergence(dense, [x for x, _ in labelled(4, seed=5)])
    assert distance(trained.model) < distance(network)


def test_the_share_is_what_fits_the_data_unless_it_is_told():
    regressor = random_(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1)))
    network, plan = pruned(regressor, "channel")
    data = [(x, y.float()[:, None]) for x, y in labelled(3)]

    def share(**settings):
        return FineTune(1, **settings)(network, regressor, plan, data).training.distillation

    assert run(1)[2].training.distillation == 0.5
    assert run(1, distillation=0.2)[2].training.distillation == 0.2
    assert share() == 0.5  # values, whose loss is the squared error
    assert share(outputs=lambda goal, found: (goal - found).abs().mean()) == 1.0
    assert share(loss=lambda output, labels: (output - labels).square().mean()) == 0.5


def test_weights_say_how_often_a_sample_counts_in_training_and_not_in_validation():
    x, y = labelled(1, samples=4)[0]
    w = torch.tensor([2.0, 0.0, 1.0, 1.0])
    twice = [0, 0, 2, 3]
    dense = random_(nn.Linear(8, 3))
    network, plan = pruned(dense)

    def trained(batch, held_out):
        tune = FineTune(1, validation=[held_out], optimizer=sgd)
        return tune(network, dense, plan, [batch])

    batch = {"input": x, "labels": y, "sample_weight": w}
    one = trained(batch, batch)
    other = trained((x[twice], y[twice]), (x, y))

    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert one.training.validation == pytest.approx(other.training.validation)


@pytest.mark.parametrize("outputs", ["classes", "logits", "values"])
@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 5), (4, 1)])
def test_a_sample_of_weight_two_is_as_far_as_two_samples(shape, outputs):
    draw = torch.Generator().manual_seed(3)
    goal, have = (torch.randn(shape, generator=draw) for _ in range(2))
    rows = [0, 2, 2, 3]

    weighted = apart(outputs, [goal], [have], weights=torch.tensor([1.0, 0.0, 2.0, 1.0]))
    repeated = apart(outputs, [goal[rows]], [have[rows]])

    assert [float(v) for v in weighted] == pytest.approx([float(v) for v in repeated])


def test_several_outputs_in_a_mapping_are_brought_near_together():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 4), nn.Linear(4, 5)

        def forward(self, x):
            hidden = self.first(x)
            return {"hidden": hidden, "scores": (self.second(hidden),)}

    dense = random_(Two())
    network, plan = pruned(dense)
    data = [{"x": x} for x, _ in labelled(6)]

    found = FineTune(4)(network, dense, plan, data).training

    assert min(found.validation) < found.validation[0]


def test_a_loss_of_one_number_a_sample_is_averaged():
    def each(output, labels):
        return functional.cross_entropy(output, labels, reduction="none")

    settings = {"distillation": 0.0, "seed": 3}
    one = run(2, loss=each, **settings)[2].training
    other = run(2, **settings)[2].training

    assert one.validation == pytest.approx(other.validation)
