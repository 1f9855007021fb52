"""Accuracy, its uncertainty, and the distance from the dense network, by hand."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from flexrel import Accuracy, ModelError, UsageError
from flexrel.core.distance import Divergence
from flexrel.core.evaluate import Evaluation, standard_error
from networks import Call, bits, same_bits

SCORES = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 5.0], [4.0, 0.0, 1.0]])
identity = nn.Identity()


def linear(*rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    return layer


# --- Accuracy -----------------------------------------------------------------------------------


def test_accuracy_is_the_share_of_inputs_whose_largest_score_is_at_their_label():
    labels = torch.tensor([0, 1, 2, 1])  # the largest are at 0, 1, 2, 0

    assert Accuracy([(SCORES, labels)])(identity) == 3 / 4


def test_the_logits_of_a_mapping_are_the_scores():
    class Classifier(nn.Module):
        def forward(self, x):
            return {"loss": None, "logits": x}

    assert Accuracy([(SCORES, torch.tensor([0, 1, 2, 1]))])(Classifier()) == 3 / 4


def test_batches_of_different_sizes_weigh_by_their_samples():
    wrong, right = (SCORES[:1], torch.tensor([2])), (SCORES[1:], torch.tensor([1, 2, 0]))
    accuracy = Accuracy([wrong, right])

    assert accuracy(identity) == 3 / 4  # not the mean of 0 and 1
    assert accuracy.samples == 4


def test_accuracy_is_taken_in_evaluation_mode_and_leaves_no_trace():
    model = nn.Sequential(nn.Dropout(1.0), nn.BatchNorm1d(3)).train()
    model[1].eval()
    before, state = bits(model), torch.get_rng_state()

    assert Accuracy([(SCORES, torch.tensor([0, 1, 2, 0]))])(model) == 1.0

    assert same_bits(bits(model), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_modes_are_put_back_when_the_model_fails():
    model = nn.Sequential(nn.Linear(5, 2)).train()

    with pytest.raises(ModelError, match="does not run on batch 0"):
        Accuracy([(SCORES, torch.zeros(4, dtype=torch.long))])(model)

    assert model.training


def test_an_evaluation_set_without_batches_or_labels_is_refused():
    with pytest.raises(UsageError, match="evaluation set is empty"):
        Accuracy([])(identity)
    with pytest.raises(UsageError, match="evaluation batch 1 has no labels"):
        Accuracy([(SCORES, torch.zeros(4)), SCORES])(identity)


@pytest.mark.parametrize("shape", [(4, 1), (1, 4), (4, 2), (4, 3, 1)])
def test_labels_that_are_no_class_numbers_are_refused(shape):
    """A column of labels would be compared with every prediction."""
    labels = torch.zeros(shape, dtype=torch.long)

    with pytest.raises(UsageError):
        Accuracy([(SCORES, labels)])(identity)


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (Call(lambda x: x.argmax(1)), r"\[4\]"),
        (Call(lambda x: x[..., None]), r"\[4, 3, 1\]"),
        (
            Call(lambda x: {"scores": x, "boxes": x}),
            r"a mapping of scores \[4, 3\], boxes \[4, 3\]",
        ),
    ],
)
def test_outputs_that_are_no_class_scores_are_refused(model, found):
    with pytest.raises(ModelError, match=f"class scores.*returns {found} for batch 0"):
        Accuracy([(SCORES, torch.zeros(4, dtype=torch.long))])(model)


@pytest.mark.parametrize(
    ("accuracy", "samples", "expected"),
    [(0.5, 100, 0.05), (0.9, 900, 0.01), (1.0, 10, 0.0), (0.0, 10, 0.0)],
)
def test_the_standard_error_of_a_share(accuracy, samples, expected):
    """sqrt(p (1 - p) / n): 0.25 / 100 = 0.05 squared; 0.09 / 900 = 0.01 squared."""
    assert standard_error(accuracy, samples) == pytest.approx(expected)


# --- what a user's evaluate may say -------------------------------------------------------------


@pytest.mark.parametrize("said", [0, 1, 0.25, torch.tensor(0.25), torch.tensor([0.25]), True])
def test_a_number_from_0_to_1_is_taken(said):
    assert Evaluation(lambda _: said)(identity) == {"accuracy": float(said)}


@pytest.mark.parametrize(
    "said",
    [
        *(math.nan, math.inf, 1.2, -0.1, "x", None, 1j, [0.5], {}),
        torch.tensor([0.1, 0.2]),
        torch.empty((), device="meta"),  # a number without a value
    ],
)
def test_anything_else_is_refused_as_wrong_usage(said):
    with pytest.raises(UsageError, match=r"evaluate returned .*; return a number in \[0, 1\]") as e:
        Evaluation(lambda _: said)(identity)

    assert e.value.exit_code == 2


def test_other_metrics_are_taken_by_their_names():
    told = {"loss": torch.tensor(0.25), "perplexity": math.inf, "accuracy": 1}

    assert Evaluation(lambda _: told)(identity) == {
        "loss": 0.25,
        "perplexity": math.inf,
        "accuracy": 1.0,
    }
    assert Evaluation(lambda _: 3.5, alone="loss")(identity) == {"loss": 3.5}


def test_a_number_without_a_name_is_refused_where_several_are_asked_for():
    with pytest.raises(UsageError, match="return a mapping of their names to numbers"):
        Evaluation(lambda _: 0.5, alone=None)(identity)


@pytest.mark.parametrize("told", [{"loss": "x"}, {"loss": None}, {"accuracy": 1.2}])
def test_a_mapping_with_something_else_in_it_is_refused(told):
    with pytest.raises(UsageError, match="evaluate returned"):
        Evaluation(lambda _: told)(identity)


# --- Divergence ---------------------------------------------------------------------------------


def test_divergence_of_class_scores_by_hand():
    """Dense p = softmax(ln 3, 0) = (3/4, 1/4); pruned q = (1/2, 1/2); KL(p, q) in nats."""
    dense, pruned = linear([math.log(3.0)], [0.0]), linear([0.0], [0.0])

    found = Divergence(dense, [torch.ones(5, 1)], "classes")(pruned)

    assert found == pytest.approx(0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))


def test_divergence_is_the_mean_over_samples_not_over_batches():
    dense, pruned = linear([math.log(3.0)], [0.0]), linear([0.0], [0.0])
    one = Divergence(dense, [torch.ones(1, 1)], "classes")(pruned)

    mixed = Divergence(dense, [torch.zeros(3, 1), torch.ones(1, 1)], "classes")(pruned)

    assert mixed == pytest.approx(one / 4)  # the three zeros have the same scores in both


def test_divergence_sees_differences_of_scores_only():
    dense, shifted = linear([1.0], [2.0]), linear([11.0], [12.0])

    assert Divergence(dense, [torch.rand(6, 1)], "classes")(shifted) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("output", ["scores", "one number", "image"])
def test_divergence_of_the_dense_network_is_0(output):
    shape = {"scores": (4, 3), "one number": (4, 1), "image": (4, 2, 3, 3)}[output]
    model = Call(lambda x: x.view(shape).sin())
    batches = [torch.rand(shape).flatten(1), torch.rand(shape).flatten(1)]

    assert Divergence(model, batches)(copy.deepcopy(model)) == 0


def test_divergence_of_other_outputs_is_the_squared_error_over_the_squared_size():
    dense, pruned = linear([3.0]), linear([2.0])  # one number is no class score

    found = Divergence(dense, [torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]])])(pruned)

    # Outputs 3, 6, 9 against 2, 4, 6: (1 + 4 + 9) / (9 + 36 + 81).
    assert found == pytest.approx(14 / 126)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1)])
def test_outputs_that_are_not_finite_are_infinitely_far(value, shape):
    inputs = torch.rand(2, 3)
    broken = Call(lambda x: (x * value).view(shape))

    assert Divergence(Call(lambda x: x.view(shape)), [inputs])(broken) == math.inf


def test_divergence_of_outputs_that_are_all_zero_is_the_error_itself():
    assert Divergence(linear([0.0]), [torch.ones(2, 1)])(linear([3.0])) == pytest.approx(18)


def test_divergence_needs_a_tensor_of_numbers():
    for model in (Call(lambda x: (x.argmax(1), None)), Call(lambda x: x.argmax(1))):
        with pytest.raises(ModelError, match=r"returns a \w+ for batch 0 in which no tensor"):
            Divergence(model, [SCORES])


def test_divergence_of_several_outputs_weighs_each_by_its_own_size():
    dense = Call(lambda x: {"a": x, "b": (2 * x, x.argmax(1))})
    pruned = Call(lambda x: {"a": x + 1, "b": (x, x.argmax(1))})
    x = torch.tensor([[3.0, 4.0]])

    # a: 1 + 1 of 9 + 16; b: 9 + 16 of 36 + 64; the mean of the two
    assert Divergence(dense, [x])(pruned) == pytest.approx((2 / 25 + 25 / 100) / 2)


@pytest.mark.parametrize("size", [1e-6, 1.0, 40.0])
def test_divergence_agrees_with_the_definition_on_random_scores(size):
    """The mean divergence, by a loop over samples, at the best of 4,001 factors of the scores."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(7, 4, generator=draw)
    dense, pruned = torch.randn(5, 4, generator=draw), torch.randn(5, 4, generator=draw)
    pruned = dense + pruned

    found = Divergence(Call(lambda x: x @ dense.T), [inputs[:3], inputs[3:]], "classes")(
        Call(lambda x: x @ pruned.T * size)
    )

    factors = torch.logspace(-3, 3, 4001, dtype=torch.float64)[:, None]
    total = torch.zeros(len(factors), dtype=torch.float64)
    for row in inputs.double():
        p = functional.softmax(dense.double() @ row, 0)
        q = functional.softmax(factors * (pruned.double() @ row), 1)
        total += (p * (p / q).log()).sum(1)
    assert found == pytest.approx(float(total.min()) / 7, rel=1e-4)
    assert float(total.min()) < 0.9 * float(total[2000])  # at a factor of 1


@pytest.mark.parametrize("factor", [1e-4, 0.3, 1.0, 50.0])
def test_how_confident_all_scores_are_is_no_divergence(factor):
    inputs = torch.randn(9, 4)

    assert Divergence(identity, [inputs], "classes")(Call(lambda x: x * factor)) == pytest.approx(
        0, abs=1e-9
    )
    assert Divergence(identity, [inputs], "classes")(Call(lambda x: -x * factor)) > 0.1


def test_no_factor_makes_divergence_of_scores_that_are_right_by_chance():
    """Scores that say nothing of the dense ones do best all alike: ln 2 less the entropy of p."""
    dense = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0]])
    chance = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    found = Divergence(Call(lambda _: dense), [torch.ones(2, 1)], "classes")(Call(lambda _: chance))

    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert found == pytest.approx(math.log(2) - entropy, rel=1e-4)


def test_evaluation_batches_that_are_gone_after_one_use_are_refused():
    with pytest.raises(UsageError, match="gone after one use"):
        Accuracy(iter([(torch.ones(1, 2), torch.zeros(1))]))


@pytest.mark.parametrize("moved", [1e-6, 1e-5, 1e-4, 1e-2])
@pytest.mark.parametrize("seed", range(5))
def test_divergence_of_scores_that_hardly_differ_is_above_0(moved, seed):
    """Of order moved squared: by a second-order expansion half of the variance of the change.

    Less what a factor of the scores makes up for: of the change, that which goes with them.
    """
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(8, 10, generator=draw)
    change = moved * torch.randn(8, 10, generator=draw)
    divergence = Divergence(identity, [scores], "classes")(Call(lambda x: x + change))

    f, d = scores.double(), (scores + change).double() - scores.double()
    p = f.softmax(1)

    def together(a, b):
        return float(((p * a * b).sum(1) - (p * a).sum(1) * (p * b).sum(1)).mean())

    left = together(d, d) - together(d, f) ** 2 / together(f, f)
    assert divergence == pytest.approx(left / 2, rel=0.1)
