"""Arrays in files, and tensors that a factory returns whole, as data."""

import numpy as np
import pytest
import torch
from torch import nn

from flexrel.cli import main
from flexrel.cli.arrays import array_data, arrays_of
from flexrel.cli.sources import read_data
from flexrel.core.batches import read_batch
from flexrel.errors import UsageError

X = np.arange(20, dtype=np.float32).reshape(10, 2)
Y = np.arange(10) % 3


def batches(spec, names=()):
    return list(array_data(str(spec), 4, names))


@pytest.mark.parametrize(
    ("held", "asked"),
    [
        ({"x": X, "y": Y}, ""),
        ({"X": X.astype(np.float64), "labels": Y}, ""),
        ({"features": X, "target": Y, "more": Y}, ""),
        ({"x_train": X + 1, "x_test": X, "y_test": Y}, "?x=x_test&y=y_test"),
    ],
)
def test_inputs_and_labels_are_found_as_people_name_them(tmp_path, held, asked):
    np.savez(tmp_path / "d.npz", **held)

    found = batches(f"{tmp_path}/d.npz{asked}")

    assert [len(x) for x, _ in found] == [4, 4, 2]
    assert torch.equal(torch.cat([x for x, _ in found]), torch.from_numpy(X))
    assert torch.equal(torch.cat([y for _, y in found]), torch.from_numpy(Y))


@pytest.mark.parametrize("labels", [{}, {"y": Y}])
def test_several_inputs_are_named_in_the_order_that_the_network_takes_them_in(tmp_path, labels):
    table = X[:, :1].astype(np.float64)
    np.savez(tmp_path / "d.npz", image=X, table=table, **labels)

    found = [
        read_batch(raw, 0, torch.device("cpu"))
        for raw in batches(f"{tmp_path}/d.npz?x=table,image")
    ]

    assert [one.samples for one in found] == [4, 4, 2]
    for at, array in enumerate((table.astype(np.float32), X)):
        assert torch.equal(torch.cat([one.args[at] for one in found]), torch.from_numpy(array))
    told = [one.labels for one in found]
    assert torch.equal(torch.cat(told), torch.from_numpy(Y)) if labels else told == [None] * 3


def test_inputs_of_other_numbers_of_samples_are_refused(tmp_path):
    np.savez(tmp_path / "d.npz", a=X, b=X[:3])

    with pytest.raises(UsageError, match="has 10 of the first input, 3 of another"):
        batches(f"{tmp_path}/d.npz?x=a,b")
    with pytest.raises(UsageError, match=r"but a, b; name those that .* inputs .x=NAME,NAME"):
        batches(tmp_path / "d.npz")
    with pytest.raises(UsageError, match="no array 'c'; it has a, b"):
        batches(f"{tmp_path}/d.npz?x=a,c")


@pytest.mark.parametrize("kind", ["npy", "pt", "pair.pt", "named.pt"])
def test_other_files_of_arrays_are_data(tmp_path, kind):
    path, x, y = tmp_path / f"d.{kind}", torch.from_numpy(X), torch.from_numpy(Y)
    if kind == "npy":
        np.save(path, X)
    else:
        torch.save({"pt": x, "pair.pt": (x, y), "named.pt": {"inputs": x, "labels": y}}[kind], path)

    found = batches(path)

    first = found[0] if kind in ("npy", "pt") else found[0][0]
    assert torch.equal(first, x[:4])
    assert kind in ("npy", "pt") or torch.equal(found[0][1], y[:4])


def test_labels_that_are_texts_have_the_numbers_of_their_names(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=np.array(["dog", "cat", "dog", "cat", "cat"] * 2))

    data = array_data(str(tmp_path / "d.npz"), 64)
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [1, 0, 1, 0, 0] * 2
    data = array_data(str(tmp_path / "d.npz"), 64, ("bird", "Dog", "cat"))
    assert data.labels.tolist() == [1, 2, 1, 2, 2] * 2
    assert data.classes == ("bird", "Dog", "cat")
    with pytest.raises(UsageError, match=r"'dog' are no names.*: cat, cow; give --class"):
        array_data(str(tmp_path / "d.npz"), 64, ("cat", "cow"))


class _Any:
    """What only a pickle holds."""


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ({"a": X, "b": Y}, r"has no array 'x', but a, b; name those that count: .*d\.npz\?x=NAME"),
        ({"x": X, "y": Y[:3]}, "10 inputs but 3 labels"),
        ({"x": np.array(["a", "b"])}, "inputs are no numbers"),
        ({"x": np.array([_Any()])}, "no file of plain arrays"),
    ],
)
def test_arrays_that_are_no_data_are_refused_with_what_there_is(tmp_path, held, says):
    np.savez(tmp_path / "d.npz", **held)

    with pytest.raises(UsageError, match=says):
        batches(tmp_path / "d.npz")


def test_files_that_hold_objects_are_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "d.pt")

    with pytest.raises(UsageError, match="holds pickled objects"):
        batches(tmp_path / "d.pt")
    np.savez(tmp_path / "d.npz", x=X)
    with pytest.raises(UsageError, match="has no array 'z'; it has x"):
        batches(f"{tmp_path}/d.npz?x=z")


def test_a_factory_may_return_all_inputs_or_inputs_and_labels(tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\nX = torch.arange(200.).reshape(100, 2)\nPAIR = (X, torch.arange(100))\n"
    )

    alone = list(read_data(f"{tmp_path}/own.py:X", "calibration"))
    pair = list(read_data(f"{tmp_path}/own.py:PAIR", "evaluation"))

    assert [len(x) for x in alone] == [len(y) for _, y in pair] == [64, 36]


def test_two_batches_are_no_inputs_and_labels():
    one = torch.zeros(4, 2)

    assert arrays_of((one, one), "own", 64) is None
    assert arrays_of((one, one[:2]), "own", 64) is None
    assert arrays_of([one, torch.zeros(4)], "own", 64) is None
    with pytest.raises(UsageError, match="own returned 4 inputs but 3 labels"):
        arrays_of((one, torch.zeros(3)), "own", 64)


def test_prune_takes_texts_for_labels_and_reports_them(tmp_path, capsys):
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 2))\n"
        "torch.manual_seed(1)\nX = torch.randn(300, 6)\n"
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 2))
    torch.manual_seed(1)
    x = torch.randn(300, 6)
    said = np.array(["no", "yes"])[model(x).argmax(1).numpy()]
    np.savez(tmp_path / "d.npz", x=x.numpy(), y=said)
    words = f"prune {tmp_path}/net.py:make --calibration {tmp_path}/net.py:X --criterion magnitude"
    how = f"--evaluation {tmp_path}/d.npz --budget macs=20% --recover none --out {tmp_path}/out"

    assert main([*words.split(), *how.split(), "--quiet"]) == 0
    assert main(["inspect", f"{tmp_path}/out/model.flexrel"]) == 0

    assert "2: no, yes" in capsys.readouterr().out
    assert ">yes<" in (tmp_path / "out" / "report.html").read_text()
