"""Accuracy of every kind of labels, counted by hand; what can't be counted is refused."""

import pytest
import torch
from torch import nn

from flexrel import Accuracy, ModelError, UsageError
from networks import Call

identity = nn.Identity()
LOGITS = torch.tensor([2.0, -1.0, 0.5, -0.1, 3.0])
SAID = [1, 0, 1, 0, 1]  # above 0 or not
SCORES = torch.tensor(
    [[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 5.0], [4.0, 0.0, 1.0]]
)  # 0 1 2 0
SEVERAL = torch.tensor([[1.0, -1.0, 2.0], [-1.0, -1.0, -3.0], [0.1, 0.2, 0.3], [-1.0, 2.0, -1.0]])


def accuracy(scores, labels, **options):
    return Accuracy([(scores, labels)], **options)(identity)


# --- one score a sample -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
@pytest.mark.parametrize("labels_shape", [(5,), (5, 1)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32, torch.bool])
def test_one_score_a_sample_says_1_where_it_is_above_0(shape, labels_shape, dtype):
    right = torch.tensor(SAID).to(dtype).view(labels_shape)
    one_wrong = torch.tensor([1, 0, 1, 1, 1]).to(dtype).view(labels_shape)

    assert accuracy(LOGITS.view(shape), right) == 1.0
    assert accuracy(LOGITS.view(shape), one_wrong) == 4 / 5


def test_one_score_of_one_sample_may_be_squeezed_whole():
    batches = [(LOGITS[:4], torch.tensor([1, 0, 0, 0])), (LOGITS[4:], torch.tensor([1]))]

    assert Accuracy(batches)(Call(lambda x: x.squeeze())) == 4 / 5


def test_probabilities_say_1_above_the_threshold_that_is_given():
    labels = torch.tensor(SAID)

    assert accuracy(LOGITS.sigmoid(), labels, threshold=0.5) == 1.0
    assert accuracy(LOGITS.sigmoid(), labels) == 3 / 5  # all are above 0: the share of ones


def test_minus_one_is_the_other_class_where_no_label_is_0():
    assert accuracy(LOGITS, torch.tensor([1, -1, 1, -1, -1])) == 4 / 5
    assert accuracy(LOGITS, torch.tensor([1.0, -1, -100, -1, 1])) == 1.0


# --- class numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.float64, torch.uint8])
def test_class_numbers_are_whole_numbers_of_any_type(dtype):
    assert accuracy(SCORES, torch.tensor([0, 1, 2, 1]).to(dtype)) == 3 / 4


@pytest.mark.parametrize("ignored", [-1, -100])
def test_ignored_labels_are_left_out_of_the_count(ignored):
    evaluate = Accuracy([(SCORES, torch.tensor([0, ignored, 2, 1])), (SCORES[:1], [ignored])])

    assert evaluate(identity) == 2 / 3  # of three that have a label, two are right
    assert (evaluate.tally(identity).samples, evaluate.tally(identity).ignored) == (3, 2)
    assert evaluate.samples == 5


def test_an_answer_that_is_no_number_is_never_right():
    def broken(x):
        return torch.cat([x[:1] * torch.nan, x[1:]])

    for scores, labels in ((SCORES, [0, 1, 2, 0]), (LOGITS, SAID)):
        for first in (0, 1):
            right = Accuracy([(scores, torch.tensor([first, *labels[1:]]))])(Call(broken))
            assert right == (len(scores) - 1) / len(scores)


# --- several labels a sample --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool])
def test_of_several_labels_all_must_be_right(dtype):
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0]]).to(dtype)

    assert accuracy(SEVERAL, labels) == 3 / 4  # the third is said to be 1 1 1
    assert accuracy(SEVERAL.sigmoid(), labels, threshold=0.5) == 3 / 4


def test_several_labels_agree_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 3, generator=draw)
    labels = ((scores + 0.5 * torch.randn(200, 3, generator=draw)) > 0).long()

    expected = metrics.accuracy_score(labels.numpy(), (scores > 0).long().numpy())

    assert accuracy(scores, labels) == pytest.approx(expected)
    assert 0.3 < expected < 0.9


def test_ignored_ones_of_several_labels_are_left_out():
    labels = torch.tensor([[1, -1, 1], [0, 0, -100], [1, 1, -1], [-1, -1, -1]])

    evaluate = Accuracy([(SEVERAL, labels)])

    assert evaluate(identity) == 1.0
    assert evaluate.tally(identity).samples == 3


def test_labels_of_which_every_sample_has_one_are_classes():
    one_hot = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]])

    assert accuracy(SCORES, one_hot) == 3 / 4  # by the largest score, not by what is above 0
    assert Accuracy([(SCORES, one_hot)]).tally(identity).commonest == 2


# --- what can't be counted ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "labels", "says"),
    [
        (torch.randn(3, 5), [0, 98, 4], "labels go from 0 to 98, the network gives 5 classes"),
        (torch.randn(3, 5), [99, 99, 99], "labels go from 99 to 99, the network gives 5 classes"),
        (torch.randn(3, 5), [1, 5, 2], "labels go from 1 to 5, the network gives 5 classes"),
        (torch.randn(3, 5), [-2, 0, 1], "labels go from -2 to 1, the network gives 5 classes"),
        (torch.randn(3, 1), [0, 9, 1], "labels go from 0 to 9, the network gives one score"),
        (torch.randn(2, 2), [[0, 1], [2, 0]], "labels go from 0 to 2, .* 2 scores for 0 or 1"),
        (torch.randn(3, 5), [-1, -100, -1], "all 3 labels of the evaluation set are -1 or -100"),
        (torch.randn(3, 5), [0.0, 0.25, 1.0], "no whole numbers, such as 0.25"),
        (torch.randn(3, 5), [0.0, torch.nan, 1.0], "no whole numbers"),
        (torch.randn(3, 5), [0.0, torch.inf, 1.0], "no whole numbers"),
        (torch.randn(3, 5), [0j, 1j, 1j], "no whole numbers"),
        (torch.randn(3, 5), ["a", "b", "c"], "evaluation batch 0 has labels that are a list"),
        (torch.randn(3, 5), [0, 1], "evaluation batch 0 has 3 inputs but 2 labels"),
        (torch.randn(3, 5), 1, "evaluation batch 0 has 3 inputs but one label for all"),
    ],
)
def test_labels_that_a_network_cant_give_are_refused_with_what_was_seen(scores, labels, says):
    with pytest.raises(UsageError, match=says) as caught:
        accuracy(scores, labels)

    assert "\n" not in str(caught.value)


def test_batches_of_two_kinds_are_refused():
    one_hot = nn.functional.one_hot(torch.tensor([0, 1, 2, 0]))

    with pytest.raises(UsageError, match="pass one kind"):
        Accuracy([(SCORES, torch.tensor([0, 1, 2, 0])), (SCORES, one_hot)])(identity)
    with pytest.raises(ModelError, match="2 scores a sample, and 3"):
        Accuracy([(SCORES, [0, 1, 1, 0]), (SCORES[:, :2], [0, 1, 1, 0])])(identity)


@pytest.mark.parametrize("answer", [lambda x: x > 0, lambda x: x[:, :0], lambda x: x.long()])
def test_one_answer_that_is_no_score_is_refused(answer):
    """Class numbers that a network gives by itself would be read as yes and no."""
    with pytest.raises(ModelError, match="accuracy needs class scores"):
        Accuracy([(LOGITS[:, None], torch.tensor(SAID))])(Call(answer))


def test_the_commonest_label_is_what_chance_says():
    tally = Accuracy([(SCORES, torch.tensor([0, 0, 2, -1])), (SCORES, [0, 1, 2, 0])]).tally(
        identity
    )

    assert (tally.labels, tally.commonest, tally.chance) == (3, 4, 4 / 7)
