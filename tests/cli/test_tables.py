"""Tables of numbers in files as data."""

import numpy as np
import pytest
import torch
from torch import nn

import flexrel
from flexrel.cli import main
from flexrel.cli.sources import read_data
from flexrel.errors import ModelError, UsageError


def table(path, text, name="d.csv"):
    (path / name).write_text(text)
    return str(path / name)


@pytest.mark.parametrize(
    ("name", "text", "asked"),
    [
        ("d.csv", "a,b,label\n1,2.5,0\n-3,4e-1,2\n", ""),
        ("d.tsv", "a\ttarget\tb\n1\t0\t2.5\n-3\t2\t4e-1\n", ""),
        ("d.csv", "\ufeffa,b,kind\n1,2.5,0\n-3,0.4,2", "?label=kind"),
        ("d.csv", '"a","b","label"\n"1","2.5","0"\n"-3","0.4","2"\n', ""),
    ],
)
def test_columns_are_inputs_but_for_the_label(tmp_path, name, text, asked):
    ((x, y),) = read_data(table(tmp_path, text, name) + asked, "calibration")

    assert x.dtype == torch.float32
    assert np.array_equal(x.numpy(), np.float32([[1, 2.5], [-3, 0.4]]))
    assert y.tolist() == [0, 2]
    assert y.dtype == torch.int64


def test_columns_may_be_left_out(tmp_path):
    text = "id,a,b,name,label\n7,1,2.5,x,0\n8,-3,4,y,2\n"

    ((x, y),) = read_data(table(tmp_path, text) + "?drop=id,name", "calibration")

    assert x.tolist() == [[1, 2.5], [-3, 4]]
    assert y.tolist() == [0, 2]


def test_a_table_to_evaluate_on_says_which_column_its_label_may_be(tmp_path):
    with pytest.raises(UsageError, match=r"it has 'a', 'kind'; name it, .*d.csv\?label=kind"):
        read_data(table(tmp_path, "a,kind\n1,2\n"), "evaluation")


@pytest.mark.parametrize(("inputs", "rest"), [(4, ""), (3, "; leave out the others, &drop=NAME")])
def test_a_label_among_the_inputs_is_told_from_what_the_network_takes(inputs, rest):
    network = nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, 2))

    with pytest.raises(ModelError) as said:
        flexrel.prune(network, calibration=[torch.randn(64, 5)], budgets="macs=50%")

    assert (
        f"it runs on {inputs} columns, and these are 5: is one the label? of a table name it, "
        f"FILE.csv?label=NAME{rest}; of arrays pass it beside the inputs, (x[:, :-1], x[:, -1])"
    ) in str(said.value)


def test_labels_may_be_values_or_names_or_none(tmp_path):
    ((_, prices),) = read_data(table(tmp_path, "a,y\n1,0.5\n2,7\n"), "evaluation")
    data = read_data(table(tmp_path, "a,class\n1,dog\n2,cat\n"), "evaluation")
    (x,) = read_data(table(tmp_path, "a,b\n1,2\n"), "calibration")

    assert prices.tolist() == [0.5, 7.0]
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [1, 0]
    assert x.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("text", "asked", "says"),
    [
        ("a,b\n1,red\n", "", "column 'b' is an input and has 'red', .*label=b"),
        ("a,b\n1,nan\n", "", "column 'b' is nan in row 1"),
        ("a,b\n1,\n", "", "column 'b' is an input and has '', which is no"),
        ("a,b\n1,2\n", "?label=price", "no column 'price'; it has 'a', 'b'"),
        (",a,label\n0,1,2\n", "", "column 1 has no name, as the index that pandas writes; name it"),
        ("a,b\n1,2\n", "?drop=id", "no column 'id'; it has 'a', 'b'"),
        ("a,b\n1,2\n", "?lable=b", "'lable' is not known; there are label= and drop="),
        ("a,b\n1,2,3\n", "", "its rows have 3 cells; it has 'a', 'b'"),
        ("a,b\n1,2\n3\n", "", "no table that can be read"),
        ("1,2\n3,4\n", "", "its first line has numbers"),
        ("label\n3\n", "", "its rows have 1 cells; it has 'label'"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(tmp_path, text, asked, says):
    with pytest.raises(UsageError, match=says):
        read_data(table(tmp_path, text) + asked, "calibration")


@pytest.mark.parametrize("text", ["", "a,b\n"])
def test_a_table_without_rows_is_refused(tmp_path, text):
    with pytest.raises(UsageError, match="has no row below its names"):
        read_data(table(tmp_path, text), "calibration")


def test_a_network_of_values_is_pruned_and_measured_on_a_table(tmp_path, capsys):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))\n"
    )
    draw = np.random.default_rng(0).standard_normal((40, 3)).round(3)
    rows = "\n".join(",".join(map(str, row)) for row in draw)
    data = table(tmp_path, f"rooms,area,price\n{rows}\n") + "?label=price"

    done = main(
        [
            *("prune", f"{tmp_path}/net.py:make", "--calibration", data, "--evaluation", data),
            *("--budget", "macs=60%", "--criterion", "magnitude", "--out", str(tmp_path / "out")),
        ]
    )

    said = capsys.readouterr().out
    assert done in (0, None)
    assert "mse" in said
    assert "not measured" not in said
