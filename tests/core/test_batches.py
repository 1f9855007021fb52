"""Every form of batch is read alike, and what can't be read is said with its index."""

import math
from collections import UserDict, namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from flexrel import FlexrelError, ModelError, UsageError
from flexrel.core import batches as batches_module
from flexrel.core.batches import collect, first_samples, missing_labels, read_batches
from flexrel.core.division import divided, joined
from flexrel.core.running import call

X = torch.arange(6.0).view(3, 2)
LABELS = torch.tensor([2, 0, 1])
Pair = namedtuple("Pair", "x y")  # noqa: PYI024 - as loaders make them


def weighted(weights):
    return {"x": X, "labels": LABELS, "sample_weight": weights}


def read(raw):
    (batch,) = read_batches([raw], nn.Module())
    return batch


@pytest.mark.parametrize("raw", [X, (X,), [X], {"x": X}, UserDict(x=X)])
def test_inputs_without_labels_are_read_from_any_form(raw):
    batch = read(raw)

    assert torch.equal(batch.tensors[0], X)
    assert batch.labels is None
    assert batch.samples == 3


@pytest.mark.parametrize(
    "raw",
    [
        (X, LABELS),
        [X, LABELS],
        Pair(X, LABELS),
        (X, [2, 0, 1]),
        (X, np.array([2, 0, 1])),
        {"x": X, "labels": LABELS},
        {"label": LABELS, "x": X},
        UserDict(x=X, labels=LABELS),
    ],
)
def test_inputs_with_labels_are_read_from_any_form(raw):
    batch = read(raw)

    assert torch.equal(batch.tensors[0], X)
    assert len(batch.tensors) == 1
    assert batch.labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    "rest",
    [(torch.tensor([7, 8, 9]),), (["a.png"] * 3,), (None,), (3,), (X + 1, {"id": [1, 2, 3]}, X)],
)
def test_what_follows_the_labels_of_a_tuple_is_left_alone(rest):
    batch = read((X, LABELS, *rest))

    assert [t.tolist() for t in batch.tensors] == [X.tolist()]
    assert batch.labels.tolist() == [2, 0, 1]
    assert batch.weights is None


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["a.png", "b.png", "c.png"], "has labels that are a list, no tensor of numbers"),
        ("abc", "has labels that are a str"),
        ({"boxes": X}, "has labels that are a dict"),
        ([{"boxes": X}, {"boxes": X[:1]}, {}], "has labels that are a list"),
        ([[1], [2, 3], []], "has labels that are a list"),
        (object(), "has labels that are a object"),
        (LABELS[:2], "has 3 inputs but 2 labels"),  # as boxes of all images in one tensor
        (1, "has 3 inputs but one label for all"),
    ],
)
def test_labels_of_any_kind_are_read_and_said_where_they_are_needed(labels, says):
    for raw in ((X, labels), {"x": X, "labels": labels}):
        batch = read(raw)

        assert batch.args or batch.kwargs
        assert (batch.samples, batch.labels) == (3, None)
        assert missing_labels(batch).startswith(f"batch 0 {says}")
        assert missing_labels(first_samples(batch, 1)) == missing_labels(batch)
        assert missing_labels(read(batch)) == missing_labels(batch)


def test_several_inputs_come_in_a_tuple_or_dict_of_their_own():
    other = X + 1

    for raw in (((X, other), LABELS), [[X, other], LABELS, "rest"], ((X, other),)):
        assert [t.tolist() for t in read(raw).args] == [X.tolist(), other.tolist()]
    assert read(((X, other), LABELS)).labels.tolist() == [2, 0, 1]
    named = read(({"x": X, "y": other}, LABELS))
    assert list(named.kwargs) == ["x", "y"]
    assert named.labels.tolist() == [2, 0, 1]
    assert read(({"x": X, "labels": LABELS},)).labels.tolist() == [2, 0, 1]


def test_labels_may_be_called_targets_where_no_input_is():
    for name in ("target", "targets", "y"):
        (batch,) = read_batches([{"left": X, "right": X + 1, name: LABELS}], Both())
        assert batch.labels.tolist() == [2, 0, 1]
        assert list(batch.kwargs) == ["left", "right"]
    (batch,) = read_batches([{"left": X, "y": LABELS, "label": LABELS}], Both())
    assert list(batch.kwargs) == ["left", "y"]
    (batch,) = read_batches([{"ids": X, "target": X}], Targeted())
    assert (list(batch.kwargs), batch.labels) == (["ids", "target"], None)


class Targeted(nn.Module):
    def forward(self, ids, target):
        return ids + target


class Two(nn.Module):
    def forward(self, ids, mask=None):
        return ids if mask is None else ids * mask


class Both(nn.Module):
    def forward(self, left, right):
        return left + right


def test_a_tuple_whose_second_entry_may_be_an_input_is_refused_with_what_to_write():
    with pytest.raises(UsageError, match=r"tuple of 3.*takes ids, mask; pass .*\(\(a, b\), labels"):
        list(read_batches([(X, X > 1, LABELS)], Two()))

    assert len(list(read_batches([(X, LABELS, LABELS), ((X, X), LABELS, 3)], Two()))) == 2
    assert len(list(read_batches([(X, X + 1, LABELS)], nn.Linear(2, 1)))) == 1  # takes one


def test_inputs_that_are_missing_are_said_with_what_to_write():
    with pytest.raises(
        ModelError, match=r"'right'; pass what it takes, left, right: batches \(\(left, right\), "
    ):
        call(Both(), read((X, X + 1, LABELS)))

    assert call(Both(), read(((X, X + 1), LABELS))).tolist() == (2 * X + 1).tolist()


@pytest.mark.parametrize(
    "raw",
    [
        {"x": X, "sample_weight": X[:, 1], "labels": LABELS},
        {"x": X, "mask": X, "labels": LABELS},
    ],
)
def test_a_batch_that_was_read_goes_where_another_model_is(raw):
    (batch,) = read_batches([read(raw)], nn.Linear(2, 1, device="meta"))

    tensors = [t for t in (*batch.tensors, batch.labels, batch.weights) if t is not None]
    assert len(tensors) == 3
    assert all(tensor.is_meta for tensor in tensors)


def test_batches_are_counted_from_zero_and_read_lazily():
    def endless():
        while True:
            yield X

    batches = read_batches(endless(), nn.Module())

    assert [next(batches).index for _ in range(3)] == [0, 1, 2]


def test_a_dict_keeps_its_arguments_in_order_and_what_is_no_tensor():
    batch = read({"x": X, "mask": X > 1, "scale": 3, "labels": LABELS})

    assert list(batch.kwargs) == ["x", "mask", "scale"]
    assert [t.dtype for t in batch.tensors] == [torch.float32, torch.bool]


def test_whole_numbers_are_not_searched_for_nan():
    assert read(torch.ones(2, 3, dtype=torch.long)).samples == 2


def test_inputs_go_where_the_model_is():
    model = nn.Linear(2, 2, device="meta")  # the one other device that every machine has

    (batch,) = read_batches([{"x": torch.ones(3, 2, dtype=torch.long), "labels": LABELS}], model)

    assert batch.tensors[0].device.type == "meta"
    assert batch.labels.device.type == "meta"


def test_tensors_of_inference_mode_become_ordinary_ones():
    with torch.inference_mode():
        raw = {"x": X * 1, "labels": LABELS * 1}

    batch = read(raw)

    assert not any(tensor.is_inference() for tensor in (*batch.tensors, batch.labels))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ("text", "is a str; a batch is a tensor, a tuple"),
        (None, "is a NoneType"),
        (np.ones((2, 2)), "is a ndarray"),
        ((), "is a tuple"),
        (weighted(X), r"weights of batch 2 must be 3 numbers .* are \[3, 2\] of float32"),
        (weighted([1.0, 2.0]), r"are \[2\] of float32"),
        (weighted([0.0, 0.0, 0.0]), "not all 0"),
        (weighted([1.0, -1.0, 0.0]), "from 0 on"),
        (weighted([1.0, math.nan, 0.0]), "from 0 on"),
        (weighted([True, False, True]), "of bool"),
        (weighted(3), r"are \[\] of int64"),
        ({"x": X, "sample_weight": "abc"}, "weights of batch 2 are a str"),
        ({}, "no input tensor, but nothing"),
        ({"labels": LABELS}, "no input tensor, but nothing"),
        ({"x": 1}, "no input tensor, but int"),
        ((None, LABELS), "no input tensor, but NoneType"),
        (([X, 3], LABELS), "no input tensor, but Tensor, int"),
        (([], LABELS), "no input tensor, but list"),
        (X[:0], r"shape \(0, 2\): no sample"),
        (X[:, :0], r"shape \(3, 0\): no sample"),
        (torch.tensor(3.0), r"shape \(\): no sample"),
        ({"x": X, "y": X[:0]}, r"shape \(0, 2\): no sample"),
        (X / 0, r"6 NaN or infinite values of 6$"),
        ({"x": X, "y": X.where(X < 5, torch.nan)}, "1 NaN or infinite values of 6$"),
    ],
)
def test_what_is_no_batch_is_refused_with_its_index(raw, says):
    with pytest.raises(UsageError, match=says) as caught:
        list(read_batches([X, X, raw], nn.Module()))

    assert "batch 2 " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_one_tensor_is_no_iterable_of_batches():
    with pytest.raises(UsageError, match="a list of one"):
        list(read_batches(X, nn.Module()))


def test_the_first_samples_are_cut_from_all_that_has_the_length_of_the_batch():
    others = {"table": torch.ones(7), "scale": torch.ones(1), "n": 3}
    batch = read({"x": X, "y": X + 1, "label": LABELS} | others)

    cut = first_samples(batch, 2)

    assert cut.samples == 2
    assert cut.kwargs["y"].tolist() == [[1, 2], [3, 4]]
    assert cut.labels.tolist() == [2, 0]
    assert [len(cut.kwargs[name]) for name in ("table", "scale")] == [7, 1]
    assert cut.kwargs["n"] == 3
    assert first_samples(read((X, LABELS)), 1).args[0].tolist() == [[0, 1]]


def test_more_samples_than_there_are_is_the_whole_batch():
    assert first_samples(read(X), 99).samples == 3


def test_a_call_passes_arguments_as_the_batch_has_them():
    class Shows(nn.Module):
        def forward(self, *args, **kwargs):
            return args, kwargs

    args, kwargs = call(Shows(), read({"x": X, "scale": 3, "labels": LABELS}))

    assert args == ()
    assert list(kwargs) == ["x", "scale"]
    assert call(Shows(), read((X, LABELS)))[0][0] is X


class Raises(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("first\nsecond"), "first"),
        (TypeError("  padded\n"), "padded"),
        (KeyError("k"), "'k'"),
        (AssertionError(), "AssertionError"),
        (ZeroDivisionError("by zero"), "by zero"),
        (AttributeError("no such"), "no such"),
    ],
)
def test_whatever_the_model_raises_is_a_model_error_with_shapes_and_cause(error, says):
    with pytest.raises(ModelError) as caught:
        call(Raises(error), read(X))

    prefix = "the model does not run on batch 0 (inputs of shape (3, 2)): "
    assert str(caught.value) == prefix + says
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), UsageError("ours")])
def test_interrupts_and_our_own_errors_pass_as_they_are(error):
    with pytest.raises((KeyboardInterrupt, SystemExit, FlexrelError)) as caught:
        call(Raises(error), read(X))

    assert caught.value is error


def test_a_batch_that_was_read_is_a_batch_to_read():
    model = nn.Linear(3, 2)
    (once,) = read_batches([(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))], model)

    first, again = read_batches([torch.randn(2, 3), once], model)

    assert (first.index, again.index) == (0, 1)
    assert again.args is once.args
    assert again.labels is once.labels


@pytest.mark.parametrize(
    ("raw", "parts"),
    [
        ([X, X[:1], X[1:]], 1),
        ([(X, LABELS), (X[:2], LABELS[:2])], 1),
        ([{"x": X, "sample_weight": [1, 0, 2]}, {"x": X, "sample_weight": [1, 1, 1]}], 1),
        ([X, (X, LABELS)], 2),  # with labels and without
        ([X, X[:, :1], X[:, :1]], 2),  # of another length, as sentences have
        ([X, X.double(), X], 3),
        ([{"x": X, "scale": torch.ones(2)}] * 2, 2),  # not by samples
        ([{"x": X, "mode": "fast"}] * 2, 2),
        ([{"x": X, "y": X}, {"y": X, "x": X}], 2),
        ([X], 1),
        ([], 0),
    ],
)
def test_neighbours_are_joined_where_all_that_they_hold_is_by_samples(raw, parts):
    batches = list(read_batches(raw, nn.Module()))

    found = joined(batches)

    assert len(found) == parts
    assert sum(batch.samples for batch in found) == sum(batch.samples for batch in batches)
    if parts == 1:
        for place, tensor in enumerate(found[0].tensors):
            assert tensor.equal(torch.cat([batch.tensors[place] for batch in batches]))
        for name in ("labels", "weights"):
            given = [getattr(batch, name) for batch in batches]
            if given[0] is not None:
                assert getattr(found[0], name).equal(torch.cat(given))
    elif parts:
        assert found[0] is batches[0]


def test_what_is_divided_and_joined_again_is_all_there_was():
    kept, held = zip(*divided([X, X + 6, X + 12], nn.Module(), 1 / 3), strict=True)

    (rest,), (out,) = (joined(b for b in part if b is not None) for part in (kept, held))

    both = torch.cat([rest.args[0], out.args[0]]).flatten()
    assert both.sort().values.tolist() == list(range(18))
    assert rest.samples == 2 * out.samples == 6


def test_batches_that_would_fill_the_memory_are_refused_before_they_do(monkeypatch):
    monkeypatch.setattr(batches_module, "memory_bytes", lambda: 2 * 4 * 25.0)
    made = []

    def loader():
        for _ in range(100):
            made.append(torch.zeros(10))
            yield (made[-1], None)

    with pytest.raises(UsageError, match=r"3 batches take 1\.2e-07 GB.*islice"):
        collect(loader())
    assert len(made) == 3
    assert len(collect([torch.zeros(10)] * 9)) == 9  # these are there already
