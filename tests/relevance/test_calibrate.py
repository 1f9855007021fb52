"""Calibration: what it starts from, what it reads, and what it refuses."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from flexrel import FlexrelError, ModelError, UsageError, calibrate
from probes import IMAGES, assert_same, classifier, fill, normal

# --- what relevance starts from -----------------------------------------------------------------


def two_by_two():
    """Outputs for the samples below: [-3, 11] and [-3, 1]."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight = nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    return layer, torch.tensor([[1.0, 2.0], [-1.0, 1.0]])


@pytest.mark.parametrize(
    ("output", "named", "inputs", "outputs"),
    [
        # a * W[1] = [1*3, 2*4] and [-1*3, 1*4]; b[1] = 11 and 1
        ("predicted", "predicted", [0, 12], [0, 12]),
        ("auto", "predicted", [0, 12], [0, 12]),
        # labels 0 and 1: a * W[0] = [1*1, 2*-2], then [-3, 4]; b[0] = -3, then b[1] = 1
        ("label", "label", [-2, 0], [-3, 1]),
        # a * (b @ W) = [1*30, 2*50] and [-1*0, 1*10]; b * b = [9, 121] and [9, 1]
        ("norm", "norm", [30, 110], [18, 122]),
        # a * W[0] = [1, -4] and [-1, -2]; b[0] = -3 twice
        (lambda out, labels: out[:, 0], "<lambda>", [0, -6], [-6, 0]),
        # the labels arrive: minus the first sample's, plus the second's
        (lambda out, labels: (2 * labels - 1) * out[:, 0], "<lambda>", [-2, 2], [0, 0]),
    ],
)
def test_relevance_starts_from_what_output_says(output, named, inputs, outputs):
    layer, x = two_by_two()

    stats = calibrate(layer, [(x, torch.tensor([0, 1]))], output=output)

    assert stats[""].input.tolist() == inputs
    assert stats[""].output.tolist() == outputs
    assert stats.output == named
    assert stats.rule == "gradient-input"
    assert stats.samples == 2


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64])
def test_labels_may_be_any_whole_numbers(dtype):
    layer, x = two_by_two()

    stats = calibrate(layer, [(x, torch.tensor([0, 1], dtype=dtype))], output="label")

    assert stats[""].output.tolist() == [-3, 1]


@pytest.mark.parametrize(
    "labels",
    [["a", "b"], {"boxes": [1]}, [{"boxes": torch.ones(2)}, {}], torch.ones(5, 6), 3],
)
def test_labels_that_are_not_needed_may_be_anything(labels):
    layer, x = nn.Linear(2, 2), torch.ones(2, 2)

    found, expected = (calibrate(layer, [batch], output="predicted") for batch in ((x, labels), x))

    assert found[""].input.tolist() == expected[""].input.tolist()
    assert found.samples == 2


def test_the_third_entry_of_a_tuple_weighs_nothing():
    """Data sets give the index of each sample there: the first would count 0 times."""
    layer, x, labels = nn.Linear(2, 2), torch.randn(3, 2), torch.tensor([0, 1, 0])

    found = calibrate(layer, [(x, labels, torch.arange(3))], output="label")

    expected = calibrate(layer, [(x, labels)], output="label")
    assert found[""].input.tolist() == expected[""].input.tolist()
    assert found.samples == 3


def test_labels_may_be_a_list():
    layer, x = two_by_two()

    assert calibrate(layer, [[x, [0, 1]]], output="label")[""].output.tolist() == [-3, 1]


@pytest.mark.parametrize(
    ("head", "chosen"),
    [
        (nn.Identity(), "predicted"),  # [samples, 3]
        (nn.Linear(3, 1).double(), "norm"),  # [samples, 1]: no classes to choose from
        (nn.Unflatten(1, (1, 3)), "norm"),  # [samples, 1, 3]
        (nn.Sequential(nn.Linear(3, 1).double(), nn.Flatten(0)), "norm"),  # [samples]
    ],
)
def test_auto_starts_from_the_predicted_class_only_where_there_are_class_scores(head, chosen):
    stats = calibrate(nn.Sequential(classifier(), head), [IMAGES, IMAGES])

    assert stats.output == chosen


def test_a_callable_is_named_in_the_stats():
    def second(out, labels):
        return out[:, 1]

    assert calibrate(classifier(), [IMAGES], output=second).output == "second"


def test_a_predictor_of_one_number_a_sample_has_the_relevance_of_its_square():
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Flatten(0))
    model[0].weight = nn.Parameter(torch.tensor([[2.0, -1.0]]))

    layer = calibrate(model, [torch.tensor([[1.0, 1.0], [3.0, 2.0]])])["0"]

    assert layer.output.tolist() == [1 + 16]  # b * b of b = 1 and 4
    assert layer.input.tolist() == [2 + 24, -1 - 8]  # a * b * w


# --- forms of batches ---------------------------------------------------------------------------


class Named(nn.Module):
    """Takes its inputs by name, as Hugging Face's models do."""

    def __init__(self):
        super().__init__()
        self.inner = classifier()

    def forward(self, pixels, scale=None, labels=None):
        if labels is not None:
            raise TypeError("labels were passed on")
        return self.inner(pixels if scale is None else pixels * scale)


def test_dicts_tuples_and_tensors_give_the_same():
    labels = torch.tensor([0, 2, 1, 1])
    model = Named()
    expected = calibrate(model, [(IMAGES, labels)], output="label")

    assert_same(calibrate(model, [{"pixels": IMAGES, "labels": labels}], output="label"), expected)
    assert_same(calibrate(model, [{"label": labels, "pixels": IMAGES}], output="label"), expected)
    assert_same(calibrate(model, [[IMAGES, labels]], output="label"), expected)
    assert_same(calibrate(model, [IMAGES]), calibrate(model, [(IMAGES,)]))


def test_arguments_that_are_no_tensors_are_passed_on():
    assert_same(
        calibrate(Named(), [{"pixels": IMAGES, "scale": 2.0}]), calibrate(Named(), [2 * IMAGES])
    )


def test_layers_may_be_called_by_keyword():
    class ByKeyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, x):
            return self.inner(input=x)

    model = fill(ByKeyword())
    x = normal(4, 3)

    usual = nn.Sequential(OrderedDict(inner=model.inner))
    assert_same(calibrate(model, [x]), calibrate(usual, [x]))


def test_batches_are_read_once_and_told_to_progress():
    told = []

    stats = calibrate(
        classifier(), iter([IMAGES, IMAGES[:1]]), progress=lambda *step: told.append(step)
    )

    assert stats.samples == 5
    assert told == [("calibrating", done, 2) for done in range(3)]


def test_a_stream_of_unknown_length_is_told_without_and_max_batches_is_the_most():
    told = []
    stream = (IMAGES for _ in range(5))

    calibrate(classifier(), stream, progress=lambda *step: told.append(step), max_batches=2)
    calibrate(classifier(), (IMAGES for _ in range(1)), progress=lambda *step: told.append(step))

    assert told[:3] == [("calibrating", done, 2) for done in range(3)]
    assert told[3:] == [("calibrating", 0, None), ("calibrating", 1, None)]


# --- errors -------------------------------------------------------------------------------------


class Returns(nn.Module):
    """A layer, and then whatever is made of its result."""

    def __init__(self, of):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.of = of

    def forward(self, x):
        return self.of(self.layer(x))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Embedding(5, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(self.table(x)).mean(1)


def raises(error):
    def of(x):
        raise error

    return of


ROWS = torch.ones(2, 3)
LABELS = torch.tensor([0, 2])


def identity(x):
    return x


@pytest.mark.parametrize(
    ("of", "batches", "options", "says"),
    [
        (identity, [ROWS], {"rule": "delta"}, "rule 'delta' is not known.*gradient-input, epsilon"),
        (identity, [ROWS], {"rule": 3}, "rule= must be a name.*is a int"),
        (
            identity,
            [ROWS],
            {"rule": {"conv*": "gamma"}},
            "no layer fits the pattern 'conv.*'layer'",
        ),
        (identity, [ROWS], {"max_batches": 0}, "max_batches=0 must be a whole number"),
        (identity, [ROWS], {"max_seconds": 0}, "max_seconds=0 must be above 0"),
        (identity, [ROWS], {"output": "logit"}, "output 'logit' is not known.*label, predicted"),
        (identity, [], {}, "calibration set is empty"),
        (identity, ROWS, {}, r"one tensor of shape \(2, 3\); pass an iterable of batches"),
        (identity, [ROWS, ROWS / 0], {}, "batch 1 .*6 NaN or infinite values of 6"),
        (identity, [ROWS * float("nan")], {}, "batch 0 .*6 NaN"),
        (identity, [(ROWS, LABELS), ROWS], {"output": "label"}, "batch 1 has no labels"),
        (identity, [(ROWS, LABELS + 1)], {"output": "label"}, r"labels of batch 0.*0 \.\.\. 2"),
        (identity, [(ROWS, LABELS - 1)], {"output": "label"}, "labels of batch 0"),
        (identity, [(ROWS, LABELS.float())], {"output": "label"}, "whole numbers"),
        (identity, [(ROWS, LABELS[:, None])], {"output": "label"}, "2 whole numbers"),
        (lambda x: x[:1], [(ROWS, LABELS)], {"output": "label"}, "1 whole numbers"),
        (identity, [(ROWS, LABELS[:1])], {"output": "label"}, "2 inputs but 1 labels"),
        (identity, [(ROWS, 1)], {"output": "label"}, "2 inputs but one label"),
        (identity, [(ROWS, ["a", "b"])], {"output": "label"}, "batch 0 has labels that are a list"),
        (identity, [(ROWS, {"a": 1})], {"output": "label"}, "batch 0 has labels that are a dict"),
        (identity, [ROWS], {"output": lambda out, _: out}, r"must return \[2\].*\[2, 3\]"),
        (identity, [ROWS], {"output": lambda out, _: out.sum()}, r"must return \[2\].*\[\]"),
        (identity, [ROWS], {"output": lambda out, _: 1.0}, r"must return \[2\].*float"),
        (identity, ["text"], {}, "batch 0 is a str"),
        (identity, [ROWS, None], {}, "batch 1 is a NoneType"),
        (identity, [{"x": ROWS, "sample_weight": 3}], {}, "weights of batch 0 must be 2 numbers"),
        (identity, [()], {}, "batch 0 is a tuple"),
        (identity, [ROWS[:0]], {}, r"shape \(0, 3\): no sample"),
        (identity, [torch.tensor(1.0)], {}, r"shape \(\): no sample"),
        (identity, [{}], {}, "batch 0 has no input tensor, but nothing"),
        (identity, [("text", LABELS)], {}, "batch 0 has no input tensor, but str"),
    ],
)
def test_a_wrong_request_is_a_usage_error_of_one_line(of, batches, options, says, unchecked):
    with pytest.raises(UsageError, match=says) as caught:
        calibrate(Returns(of), batches, **options)

    assert caught.value.exit_code == 2
    assert isinstance(caught.value, FlexrelError)
    assert "\n" not in str(caught.value)


def best_is_0(x):
    return -(x * torch.tensor([1.0, 0.0, 1.0])).abs()


def breaks_autograd(x):
    y = x.exp()
    y += 1
    return y


@pytest.mark.parametrize(
    ("model", "batch", "options", "says"),
    [
        (
            Returns(lambda x: (x, x)),
            ROWS,
            {"output": "predicted"},
            "returns a tuple, not .*output=",
        ),
        (Returns(lambda x: {"a": x, "b": x}), ROWS, {"output": "label"}, "a dict with a, b, not"),
        (Returns(lambda x: x.argmax(1)), ROWS, {}, "returns a Tensor, not a tensor of scores"),
        (Returns(lambda x: x[..., None]), ROWS, {"output": "predicted"}, r"\[2, 3, 1\]"),
        (Returns(lambda x: x[:, :1]), (ROWS, LABELS), {"output": "label"}, r"\[2, 1\].*'norm'"),
        (Returns(torch.Tensor.detach), ROWS, {}, "no gradient reaches the input"),
        (Returns(torch.ones_like), ROWS, {}, "no gradient reaches the input"),
        (Returns(torch.zeros_like), ROWS, {}, "no gradient reaches the input"),
        (Returns(best_is_0), ROWS, {}, "relevance is 0 in all 1 layers for all 2"),
        (Returns(breaks_autograd), ROWS, {}, "can't go back through the model on batch 0"),
        (Returns(lambda x: x / 0), ROWS, {}, "NaN or infinite in batch 0; it first is in"),
        (Returns(raises(RuntimeError("bad\nluck"))), ROWS, {}, r"\(2, 3\)\): bad$"),
        (Returns(raises(KeyError("a key"))), ROWS, {}, r"\(2, 3\)\): 'a key'$"),
        (Returns(raises(AssertionError())), ROWS, {}, r"\(2, 3\)\): AssertionError$"),
        (Returns(identity), torch.ones(2, 4), {}, r"batch 0 \(inputs of shape \(2, 4\)\): mat1"),
        (Returns(identity), {"u": ROWS, "z": ROWS}, {}, "unexpected keyword argument 'u'"),
        (nn.Conv2d(1, 2, 3), torch.ones(1, 5, 5), {}, "'' got an input of 3 axes; it must have"),
        (nn.Conv1d(1, 2, 3), torch.ones(1, 5), {}, "'' got an input of 2 axes"),
    ],
)
def test_a_network_that_can_not_be_followed_is_a_model_error_of_one_line(
    model, batch, options, says
):
    with pytest.raises(ModelError, match=says) as caught:
        calibrate(model, [batch], **options)

    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_an_error_of_the_model_keeps_its_cause():
    with pytest.raises(ModelError) as caught:
        calibrate(Returns(raises(ArithmeticError("why"))), [ROWS])

    assert isinstance(caught.value.__cause__, ArithmeticError)


def test_a_model_under_no_grad_is_a_model_error():
    class Frozen(nn.Linear):
        @torch.no_grad
        def forward(self, x):
            return super().forward(x)

    with pytest.raises(ModelError, match="no_grad"):
        calibrate(Frozen(3, 2), [ROWS])


def test_a_model_made_in_inference_mode_is_a_model_error():
    with torch.inference_mode():
        model = nn.Linear(3, 2)

    with pytest.raises(ModelError, match="inference_mode"):
        calibrate(model, [ROWS])

    assert model.weight.requires_grad
