"""What classes are called: as the caller, the data or the network say."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from flexrel import Accuracy
from flexrel.core.class_names import check_class_names, class_names, names_in_data
from flexrel.errors import UsageError

NETWORK = nn.Linear(2, 2)


class Named(TensorDataset):
    classes = ("cat", "dog")


SAMPLES = Named(torch.zeros(4, 2))
FEATURES = SimpleNamespace(features={"label": SimpleNamespace(names=["cat", "dog"])})


@pytest.mark.parametrize(
    "data",
    [
        SAMPLES,
        DataLoader(SAMPLES),
        Accuracy(DataLoader(Subset(Subset(SAMPLES, [0, 1]), [0]))),
        ConcatDataset([SAMPLES, SAMPLES]),
        FEATURES,
    ],
)
def test_data_sets_of_torchvision_and_of_hugging_face_tell_within_whatever_wraps_them(data):
    assert names_in_data(None, [torch.zeros(2)], data) == ("cat", "dog")


def test_data_that_know_no_names_tell_none():
    numbered = SimpleNamespace(classes=[0, 1])

    assert names_in_data([torch.zeros(2)], numbered, lambda model: 0.5) == ()


def with_config(**id2label):
    model = nn.Linear(2, 2)
    model.config = SimpleNamespace(id2label={int(key[1:]): name for key, name in id2label.items()})
    return model


def test_a_configuration_tells_names_but_for_those_that_are_numbers():
    told = with_config(_1="dog", _0="cat")

    assert class_names((), told, (), 2) == (("cat", "dog"), ())
    assert class_names((), with_config(_0="LABEL_0", _1="LABEL_1"), (), 2) == ((), ())


def test_the_caller_goes_before_the_data_and_these_before_the_network():
    model = with_config(_0="0: cat", _1="1: dog")

    assert class_names(["a", "b"], model, (SAMPLES,), 2)[0] == ("a", "b")
    assert class_names((), model, (SAMPLES,), 2) == (("cat", "dog"), ())


def test_data_that_number_classes_otherwise_than_the_network_are_told():
    _, (line,) = class_names((), with_config(_0="dog", _1="cat"), (SAMPLES,), 2)

    assert line.startswith("class 0 is 'cat' in the data and 'dog' in the network's")


def test_names_of_another_number_of_classes_and_what_is_no_list_of_names_are_refused():
    with pytest.raises(UsageError, match="3 names, and the network tells 2 apart"):
        class_names(["a", "b", "c"], NETWORK, (), 2)
    for wrong in ("ab", ["a", 1], ["a", ""], {"a": 1}):
        with pytest.raises(UsageError, match="list of texts"):
            check_class_names(wrong)
