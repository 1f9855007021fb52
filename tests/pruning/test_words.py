"""`prune` takes what the command line takes, and data in the forms in which people have them."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import flexrel
from flexrel import Accuracy, AccuracyDrop, Bytes, MACs, ModelError, UsageError
from flexrel.core.batches import read_batches


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(6 * 16, 10)
        self.last = nn.Linear(10, 3)

    def forward(self, x):
        return self.last(self.hidden(self.norm(self.conv(x)).relu().flatten(1)).relu())


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture
def x():
    return torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels(net, x):
    with torch.no_grad():
        return net(x).argmax(1)


def pruned(net, calibration, **asked):
    asked = {"budgets": ["macs=60%"], "recover": "none", "criterion": "magnitude", **asked}
    return flexrel.prune(net, calibration=calibration, **asked)


def same(one, other):
    return all(torch.equal(one.plan.masks[name], mask) for name, mask in other.plan.masks.items())


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"budgets": "macs=50%"}, {"budgets": [MACs(0.5)]}),
        ({"budgets": MACs("50%")}, {"budgets": [MACs(0.5)]}),
        ({"budgets": ["bytes=3 kB"]}, {"budgets": [Bytes(3000)]}),
        ({"budgets": [Bytes("3 kB")]}, {"budgets": [Bytes(3000)]}),
        ({"criterion": "magnitude"}, {"criterion": flexrel.Magnitude()}),
        ({"criterion": "relevance"}, {"criterion": flexrel.Relevance()}),
    ],
)
def test_the_words_of_the_command_line_mean_the_objects(net, x, written, meant):
    assert same(pruned(net, [x], **written), pruned(net, [x], **meant))


@pytest.mark.parametrize("written", ["accuracy-drop=2%", "2%", "0.02", AccuracyDrop(0.02)])
def test_a_target_is_written_with_its_name_or_without(net, x, labels, written):
    result = pruned(net, [x], evaluate=Accuracy([(x, labels)]), target=written, budgets=())

    assert result.requested["accuracy"] == pytest.approx(0.98)


class Own(Dataset):
    def __init__(self, x, labels):
        self.x, self.labels = x, labels

    def __len__(self):
        return len(self.x)

    def __getitem__(self, at):
        return self.x[at], int(self.labels[at])


class Stream(IterableDataset):
    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x)


@pytest.mark.parametrize("kind", ["dataset", "tensors", "stream", "loader"])
def test_a_data_set_of_samples_calibrates_as_its_batches_do(net, x, labels, kind):
    data = {
        "dataset": Own(x, labels),
        "tensors": TensorDataset(x, labels),
        "stream": Stream(x),
        "loader": DataLoader(TensorDataset(x, labels), 64),
    }[kind]

    result = pruned(net, data, criterion="relevance")

    assert result.calibration_samples == 40
    assert same(result, pruned(net, [(x, labels)], criterion="relevance"))


def test_samples_of_a_data_set_are_read_64_a_batch(net):
    sizes = [batch.samples for batch in read_batches(Stream(torch.zeros(130, 1, 4, 4)), net)]

    assert sizes == [64, 64, 2]


@pytest.mark.parametrize("kind", ["dataset", "loader", "list"])
def test_labelled_data_evaluate_by_accuracy(net, x, labels, kind):
    labels[:10] += 1  # a quarter wrong
    labels %= 3
    data = {
        "dataset": TensorDataset(x, labels),
        "loader": DataLoader(TensorDataset(x, labels), 16),
        "list": [(x, labels)],
    }[kind]

    result = pruned(net, [x], evaluate=data)

    assert result.dense.accuracy == 0.75
    assert result.samples == 40


def test_pack_and_compare_take_labelled_data_too(net, x, labels, tmp_path):
    loader = DataLoader(TensorDataset(x, labels), 16)

    report = flexrel.pack(net, tmp_path / "net.flexrel", evaluate=loader)
    result = pruned(net, [x], evaluate=loader)
    compared = flexrel.compare(result, net, calibration=TensorDataset(x), evaluate=loader)

    assert report.accuracy == 1
    assert compared.curves[0].accuracy == 1


def test_an_evaluation_of_another_kind_says_what_to_pass(net, x, unchecked):
    with pytest.raises(UsageError, match=r"evaluate is a float; pass a function .* a DataLoader"):
        pruned(net, [x], evaluate=0.9)


def test_one_input_may_have_any_name(net, x, labels):
    named = [{"pixel_values": x, "labels": labels}]

    assert same(pruned(net, named), pruned(net, [x]))
    assert Accuracy(named)(net) == 1


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, values, scale=None):
        return self.last(self.hidden(values if scale is None else values * scale).relu())


def test_an_input_under_a_name_that_the_network_takes_stays_there():
    net, x = Named(), torch.randn(5, 4)
    (batch,) = read_batches([{"scale": x}], net)
    (several,) = read_batches([{"a": x, "b": x}], net)

    assert list(batch.kwargs) == ["scale"]
    assert list(several.kwargs) == ["a", "b"]


def test_a_sample_without_an_axis_of_samples_says_what_makes_batches(net, x):
    with pytest.raises(ModelError, match=r"\(1, 4, 4\).*one sample.*DataLoader\(samples"):
        pruned(net, list(x))
    with pytest.raises(ModelError, match=r"'conv' got .* a batch axis.*DataLoader\(samples"):
        flexrel.calibrate(net, list(x))


def test_inputs_and_labels_in_a_pair_say_how_to_pass_them(net, x, labels):
    with pytest.raises(UsageError, match=r"\[\(inputs, labels\)\], or .*TensorDataset"):
        pruned(net, (x, labels))


def test_samples_that_can_not_be_stacked_say_so(net):
    class Odd(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, at):
            return object(), at

    with pytest.raises(UsageError, match=r"\(object, int\), can't be stacked to a batch; give it"):
        pruned(net, Odd())


def test_load_without_a_network_says_what_it_needs(tmp_path):
    with pytest.raises(UsageError, match=r"load needs into=.*flexrel_edge\.read"):
        flexrel.load(tmp_path / "model.flexrel")
