"""What a packed file records of inputs and of how it came out, and what `inspect` says of it."""

import json

import pytest
import torch
from torch import nn

import flexrel
import flexrel_edge
from flexrel import PruneOptions, UsageError
from flexrel.cli import main
from flexrel.core.batches import read_batch
from flexrel.io import inputs_note

CPU = torch.device("cpu")


def recorded(path, key):
    return json.loads(flexrel_edge.inspect(path).metadata[key])


class Pair(nn.Module):
    """Two inputs, one of them the same for all samples; and any number more."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 16)
        self.down = nn.Linear(16, 3)

    def forward(self, ids, scale, *others):
        return self.down(self.up(ids.float() * scale).relu())


def pair():
    torch.manual_seed(0)
    return Pair()


IDS, SCALE = torch.randint(0, 5, (6, 4)), torch.ones(1, 4, dtype=torch.float32)


@pytest.mark.parametrize(
    ("batch", "names"),
    [
        (((IDS, SCALE), None), ["ids", "scale"]),
        ({"ids": IDS, "scale": SCALE}, ["ids", "scale"]),
        (((IDS, SCALE, IDS, IDS), None), ["ids", "scale", "others_0", "others_1"]),
    ],
)
def test_inputs_have_the_names_of_forward_their_types_and_shapes(batch, names):
    found = json.loads(inputs_note(pair(), read_batch(batch, 0, CPU))["inputs"])

    assert [one["name"] for one in found] == names
    known = {one["name"]: (one["dtype"], one["shape"]) for one in found}
    assert known["ids"] == ("int64", [None, 4])
    assert known["scale"] == ("float32", [1, 4])


def test_of_a_fixed_number_of_samples_that_number_is_told():
    batch = read_batch(torch.zeros(6, 4), 0, CPU)

    found = json.loads(inputs_note(nn.Sequential(nn.Linear(4, 2)), batch, fixed=True)["inputs"])

    assert found == [{"name": "input", "dtype": "float32", "shape": [6, 4]}]


@pytest.fixture(scope="module")
def pruned():
    data = [((IDS, SCALE), torch.arange(6) % 3)]
    return flexrel.prune(
        pair(),
        calibration=data,
        evaluate=data,
        budgets="macs=50%",
        criterion="magnitude",
        options=PruneOptions(metadata={"licence": "MIT"}),
    )


def test_prune_records_inputs_accuracy_amounts_and_widths(pruned, tmp_path):
    pruned.save(tmp_path)
    path = tmp_path / "model.flexrel"

    assert [one["name"] for one in recorded(path, "inputs")] == ["ids", "scale"]
    found, dense, now = recorded(path, "pruned"), pruned.dense, pruned.achieved
    assert found["accuracy"] == pytest.approx([dense.accuracy, now.accuracy], rel=1e-5)
    assert found["samples"] == 6
    assert found["macs"] == [4 * 16 + 16 * 3, 4 * 8 + 8 * 3]
    assert found["parameters"] == [5 * 16 + 17 * 3, 5 * 8 + 9 * 3]
    assert found["widths"] == {"up": [16, 8]}
    assert flexrel_edge.inspect(path).metadata["licence"] == "MIT"
    record = json.loads((tmp_path / "result.json").read_text())
    assert path.stat().st_size == record["achieved"]["bytes"] == now.bytes


def test_what_is_recorded_stays_where_the_graph_goes_along(pruned, tmp_path):
    pruned.save(tmp_path, ["graph"])

    metadata = flexrel_edge.inspect(tmp_path / "model.flexrel").metadata

    assert {"onnx", "inputs", "pruned", "licence"} <= metadata.keys()


def test_inspect_shows_a_person_the_network(pruned, tmp_path, capsys):
    pruned.save(tmp_path, ["graph"])

    assert main(["inspect", str(tmp_path / "model.flexrel")]) == 0

    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["input", "ids int64[samples, 4]"] in lines
    assert ["input", "scale float32[1, 4]"] in lines
    assert ["MACs", "112 -> 56 (50.00% of dense)"] in lines
    assert ["narrower", "up 16 -> 8"] in lines
    assert ["graph", "ONNX, of any number of samples a call"] in lines
    assert not any("up.weight" in text for _, text in lines)


def test_a_budget_goes_before_what_is_recorded_and_that_is_said(tmp_path):
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)), [torch.randn(8, 4)]

    def saved(budgets):
        result = flexrel.prune(model, calibration=data, budgets=budgets, criterion="magnitude")
        notes = result.save(tmp_path)
        size = (tmp_path / "model.flexrel").stat().st_size
        record = json.loads((tmp_path / "result.json").read_text())
        assert record["achieved"]["bytes"] == size
        return result, size, notes, flexrel_edge.inspect(tmp_path / "model.flexrel").metadata

    free, with_all, notes, told = saved("macs=50%")
    assert {"inputs", "pruned"} <= told.keys()
    assert notes == ()
    bare = flexrel.pack(free.model, tmp_path / "bare").bytes
    for budget in (f"bytes={bare}", f"link={bare}ms@8kbit/s"):
        tight, size, notes, told = saved(["macs=50%", budget])
        assert size == tight.achieved.bytes == bare < with_all == free.achieved.bytes
        assert not {"inputs", "pruned"} & told.keys()
        assert any("does not tell its inputs, accuracy and widths" in line for line in notes)


def test_a_text_under_a_name_of_ours_is_refused_before_the_work():
    with pytest.raises(UsageError, match="metadata 'inputs' is a name of FlexRel's own"):
        flexrel.prune(
            pair(),
            calibration=[],
            budgets="macs=50%",
            options=PruneOptions(metadata={"inputs": "mine"}),
        )


def test_pack_records_the_inputs_of_the_data_that_it_is_given(tmp_path):
    model, data = nn.Sequential(nn.Linear(4, 2)), [torch.randn(40, 4)]

    flexrel.pack(model, tmp_path / "a", "int8", calibration=data)
    flexrel.pack(model, tmp_path / "b")

    assert recorded(tmp_path / "a", "inputs") == [
        {"name": "input", "dtype": "float32", "shape": [None, 4]}
    ]
    assert "inputs" not in flexrel_edge.inspect(tmp_path / "b").metadata
