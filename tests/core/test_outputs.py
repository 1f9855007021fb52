"""What outputs are, as labels say it, and the distance that goes with them."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import flexrel
from flexrel import PruneOptions, UsageError
from flexrel.core.distance import Divergence
from flexrel.core.outputs import check_outputs
from networks import Call, random_

DRAW = torch.Generator().manual_seed(0)
INPUTS = torch.randn(12, 4, generator=DRAW)
identity = Call(lambda x: x)


@pytest.mark.parametrize(
    ("labels", "outputs"),
    [
        (torch.arange(12) % 4, "classes"),
        ((torch.arange(12) % 4).float(), "classes"),
        (torch.where(torch.arange(12) % 3 > 0, torch.arange(12) % 4, -100), "classes"),
        (torch.randn(12, 4).softmax(1), "classes"),
        ((torch.randn(12, 4) > 0).float(), "logits"),
        ((torch.randn(12, 4) > 0).long(), "logits"),
        (torch.randn(12, 4).sign().long(), "logits"),
        (functional.one_hot(torch.arange(12) % 4, 4), "classes"),
        (torch.randn(12, 4), "values"),
        (torch.randn(12), "values"),
        (torch.arange(12), "values"),  # 12 classes, of which the network has 4
        (None, "values"),
    ],
)
def test_labels_say_what_outputs_are(labels, outputs):
    batch = INPUTS if labels is None else (INPUTS, labels)

    assert Divergence(identity, [batch]).outputs == outputs


@pytest.mark.parametrize(
    ("labels", "outputs"),
    [
        (torch.arange(12) % 2, "logits"),
        ((torch.arange(12) % 2).float()[:, None], "logits"),
        (torch.arange(12) % 3, "values"),
        (torch.randn(12), "values"),
    ],
)
@pytest.mark.parametrize("shape", [(12,), (12, 1)])
def test_labels_of_one_number_a_sample_say_whether_it_is_a_yes_or_no(labels, outputs, shape):
    model = Call(lambda x: x.sum(1).reshape(shape))

    assert Divergence(model, [(INPUTS, labels)]).outputs == outputs


def test_evaluation_says_it_where_calibration_has_no_labels():
    model = random_(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))).eval()
    labelled = [(INPUTS, model(INPUTS).argmax(1))]

    def outputs_of(evaluate):
        return flexrel.prune(
            model, calibration=[INPUTS], budgets=["macs=50%"], evaluate=evaluate
        ).outputs

    assert outputs_of(flexrel.Accuracy(labelled)) == "classes"
    assert outputs_of(None) == "values"


def test_a_regressor_whose_scale_and_shift_are_off_is_far():
    dense = random_(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))).eval()
    off = Call(lambda x: dense(x) * 0.5 - 7)
    with torch.no_grad():
        goal = dense(INPUTS).double()

    for batches in ([INPUTS], [(INPUTS, torch.randn(12, 3))]):
        found = Divergence(dense, batches)(off)

        error = (goal * 0.5 - 7 - goal).square().sum() / goal.square().sum()
        assert found == pytest.approx(float(error), rel=1e-5)


def test_logits_are_distributions_each_of_its_own():
    other = torch.randn(12, 4, generator=DRAW)
    labels = (torch.randn(12, 4, generator=DRAW) > 0).float()

    found = Divergence(identity, [(INPUTS[:5], labels[:5]), (INPUTS[5:], labels[5:])])
    value = found(Call(lambda x: other[:5] if len(x) == 5 else other[5:]))

    total = 0.0
    for goal, have in zip(INPUTS.flatten().tolist(), other.flatten().tolist(), strict=True):
        p, q = 1 / (1 + math.exp(-goal)), 1 / (1 + math.exp(-have))
        total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert found.outputs == "logits"
    assert value == pytest.approx(total / 12, rel=1e-4)


def test_a_distance_of_ones_own_is_averaged_over_samples():
    found = Divergence(identity, [INPUTS[:4], INPUTS[4:]], lambda a, b: (a - b).abs().mean())

    other = Call(lambda x: x + (1.0 if len(x) == 4 else 4.0))
    assert found(other) == pytest.approx((4 * 1.0 + 8 * 4.0) / 12)


def test_a_small_output_counts_as_much_as_one_of_many_units():
    dense = Call(lambda x: [{"boxes": x[:, :1]}, {"scores": x.repeat(1, 100) * 10}])
    boxes_off = Call(lambda x: [{"boxes": x[:, :1] * 2}, {"scores": x.repeat(1, 100) * 10}])
    scores_off = Call(lambda x: [{"boxes": x[:, :1]}, {"scores": x.repeat(1, 100) * 20}])
    divergence = Divergence(dense, [INPUTS])

    assert divergence(boxes_off) == pytest.approx(0.5)
    assert divergence(scores_off) == pytest.approx(0.5)


def test_batches_may_give_different_numbers_of_tensors():
    """As detectors do, one for each image."""
    found = Divergence(Call(list), [INPUTS[:2], INPUTS[2:3]])(
        Call(lambda x: [row * 2 for row in x])
    )

    assert found == pytest.approx(1.0)


def test_outputs_that_are_not_known_or_do_not_fit_are_refused():
    model = random_(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))).eval()

    def prune(outputs):
        flexrel.prune(
            model,
            calibration=[INPUTS],
            budgets=["macs=50%"],
            options=PruneOptions(outputs=outputs),
        )

    with pytest.raises(UsageError, match="outputs 'class' is not known; there are: auto, classes"):
        check_outputs("class")
    with pytest.raises(UsageError, match=r"'classes' needs scores .*, but .* returns \[3, 1\]"):
        prune("classes")
    with pytest.raises(UsageError, match="must return the mean distance, one number, but returned"):
        prune(lambda goal, found: goal - found)


@pytest.mark.parametrize("kind", ["classes", "logits", "values"])
def test_finetuning_has_the_loss_that_goes_with_the_outputs(kind):
    """The loss before training, by labels alone, is that of torch."""
    model = random_(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))).eval()
    labels, loss = {
        "classes": (torch.arange(12) % 3, functional.cross_entropy),
        "logits": (
            (torch.randn(12, 3) > 0).float(),
            lambda y, t: functional.binary_cross_entropy_with_logits(y, t) * 3,
        ),
        "values": (
            torch.randn(12, 3),
            lambda y, t: functional.mse_loss(y, t) / t.square().mean(),
        ),
    }[kind]
    plan = flexrel.prune(
        model, calibration=[INPUTS], budgets=["parameters=60%"], recover="none"
    ).plan
    network = flexrel.apply(model, plan)

    made = flexrel.FineTune(1, distillation=0.0)(network, model, plan, [(INPUTS, labels)])

    with torch.no_grad():
        expected = loss(network(INPUTS), labels)
    assert made.training.validation[0] == pytest.approx(float(expected), rel=1e-5)


def test_training_that_takes_a_regressor_away_from_the_dense_network_is_undone():
    model = random_(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))).eval()
    wrong = [(INPUTS, model(INPUTS).detach() * -5) for _ in range(4)]  # labels say otherwise

    result = flexrel.prune(
        model,
        calibration=wrong,
        budgets=["macs=60%"],
        recover=flexrel.FineTune(20, distillation=0.0),
    )

    step = result.recovery[-1]
    assert step.name == "finetune:20"
    assert step.after > step.before
    assert not step.kept


def test_relevance_of_several_outputs_weighs_each_by_its_own_size():
    """By hand: that of each output alone, over its mean square."""
    inputs = torch.randn(1, 4, generator=DRAW)
    layers = random_(nn.Linear(4, 5)).eval()

    class Several(nn.Module):
        def __init__(self, *scales):
            super().__init__()
            self.layer, self.scales = layers, scales

        def forward(self, x):
            outputs = {"boxes": self.layer(x)[:, :1], "scores": self.layer(x)[:, 1:]}
            return {key: s * outputs[key] for key, s in zip(outputs, self.scales, strict=True)}

    small, large = (
        flexrel.calibrate(Several(1.0, scale), [inputs])["layer"].output for scale in (1.0, 100.0)
    )

    assert torch.allclose(small, large, rtol=1e-4)


@pytest.mark.parametrize("wrap", [lambda y: (y,), lambda y: {"out": y}, lambda y: [{"out": (y,)}]])
def test_a_container_of_one_tensor_is_that_tensor(wrap):
    layers = random_(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))).eval()

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            return wrap(self.layers(x))

    labels = layers(INPUTS).argmax(1)
    plain, wrapped = (
        flexrel.prune(
            model,
            calibration=[(INPUTS, labels)],
            evaluate=flexrel.Accuracy([(INPUTS, labels)]),
            budgets=["macs=50%"],
            criterion=flexrel.Relevance(output="label"),
        )
        for model in (layers, Wrapped())
    )

    assert plain.outputs == wrapped.outputs == "classes"
    assert wrapped.achieved.accuracy == plain.achieved.accuracy
    assert wrapped.achieved.divergence == pytest.approx(plain.achieved.divergence)
    for one, other in zip(plain.plan.masks.values(), wrapped.plan.masks.values(), strict=True):
        assert torch.equal(one, other)
