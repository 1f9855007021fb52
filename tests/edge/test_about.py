"""What a packed file says of its network to a person."""

import json

import numpy as np
import pytest

import flexrel_edge
from flexrel_edge.about import about, annotated
from flexrel_edge.cli import main
from flexrel_edge.format import decode, describe, encode
from flexrel_edge.graph import Graph

TENSORS = {"layer.weight": np.float32([[0, 1, 0, 0], [0, -2, 0, 0]])}
EVIDENCE = {
    "accuracy": [0.9531, 0.945],
    "samples": 1200,
    "metrics": {"loss": [0.25, 0.3125]},
    "macs": [78400, 37488],
    "parameters": [1324, 659],
    "weights_removed": 0.5085,
    "widths": {"conv1": [64, 23], "conv2": [128, 0]},
}


def told(metadata):
    """Return what each line is of, and all that is said of it."""
    found = {}
    for name, text in about(describe(encode(TENSORS, metadata=metadata))):
        found.setdefault(name, []).append(text)
    return found


def test_inputs_are_told_with_name_type_and_shape():
    inputs = [
        {"name": "ids", "dtype": "int64", "shape": [None, 128]},
        {"name": "scale", "dtype": "float32", "shape": [1, 3]},
    ]

    found = told({"inputs": json.dumps(inputs)})

    assert found["input"] == ["ids int64[samples, 128]", "scale float32[1, 3]"]


def test_evidence_is_told_as_dense_and_now():
    found = told({"pruned": json.dumps(EVIDENCE)})

    assert found["accuracy"] == ["95.31% -> 94.50%, on 1,200 samples"]
    assert found["loss"] == ["0.25 -> 0.3125"]
    assert found["MACs"] == ["78,400 -> 37,488 (47.82% of dense)"]  # 37488 / 78400
    assert found["parameters"] == ["1,324 -> 659 (49.77% of dense)"]
    assert found["weights"] == ["50.85% are gone or zero"]
    assert found["narrower"] == ["conv1 64 -> 23", "conv2 128 -> 0"]


def test_many_narrower_layers_and_labels_are_cut_off_with_their_number():
    widths = {f"layer{at}": [8, 4] for at in range(30)}
    labels = [f"class {at}" for at in range(1000)]

    found = told({"pruned": json.dumps({"widths": widths}), "labels": json.dumps(labels)})

    assert len(found["narrower"]) == 11
    assert found["narrower"][-1] == "and 20 more layers; --json has all"
    (line,) = found["labels"]
    assert line.startswith("1,000: class 0, class 1, ")
    assert line.endswith("class 9 and 990 more")


def test_preparation_and_texts_of_ones_own_are_told():
    preparation = {"size": 224, "mean": [0.485, 0.456], "std": [0.229, 0.224], "resize": None}

    found = told({"preprocessing": json.dumps(preparation), "licence": "MIT"})

    assert found["prepared"] == ["size 224, mean 0.485 0.456, std 0.229 0.224"]
    assert found["licence"] == ["MIT"]


def test_what_loading_needs_and_the_graph_itself_are_not_shown():
    graph = Graph(b"onnx" * 100, {"layer.weight": "float32"}, samples=4)
    metadata = {**graph.metadata(TENSORS), "fingerprint": "0" * 64, "tied": "{}"}

    found = told(metadata)

    assert found == {"graph": ["ONNX, of 4 samples a call"]}
    assert told({})["graph"] == ["none; weights alone, for flexrel.load or flexrel-edge unpack"]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("inputs", "[{}]"),
        ("inputs", "7"),
        ("inputs", '[{"name": 1, "dtype": 2, "shape": ["\\u001b"]}]'),
        ("pruned", "[1, 2]"),
        ("pruned", '{"accuracy": [1]}'),
        ("pruned", '{"macs": ["a", "b"]}'),
        ("pruned", f'{{"macs": [1, {"9" * 5000}]}}'),
        ("pruned", '{"widths": [[1, 2]]}'),
        ("labels", "cat\ndog"),
        ("labels", "[" * 100_000),
        ("preprocessing", "as in training"),
        ("preprocessing", '{"mean": [{}]}'),
        ("\x1b[2J", "\x1b[2J"),
    ],
)
def test_texts_of_another_form_are_told_as_they_are_and_reach_no_terminal(key, text):
    lines = about(describe(encode(TENSORS, metadata={key: text})))

    assert all(part.isprintable() and len(part) < 300 for line in lines for part in line)
    shown = text if text.isprintable() else ascii(text)
    assert lines[0][1].startswith(shown[:200])


def test_the_command_shows_no_base64_to_people_nor_to_programs(tmp_path, capsys):
    graph = Graph(bytes(range(256)) * 40, {"layer.weight": "float32"})
    path = tmp_path / "w.flexrel"
    flexrel_edge.write(path, TENSORS, metadata={**graph.metadata(TENSORS), "by": "us"})
    text = graph.metadata(TENSORS)["onnx"]

    assert main(["inspect", str(path)]) == 0
    people = capsys.readouterr().out
    assert main(["inspect", "--json", str(path)]) == 0
    programs = capsys.readouterr().out

    assert text[:20] not in people + programs
    assert "ONNX, of any number of samples a call" in people
    facts = json.loads(programs)
    assert (facts["metadata"], facts["graph"]) == ({"by": "us"}, {"samples": None})


def test_a_file_takes_further_notes_and_the_same_tensors():
    data = encode(TENSORS, metadata={"by": "us", "pruned": "old"})

    noted = annotated(data, {"pruned": "{}"})

    assert decode(noted).metadata == {"by": "us", "pruned": "{}"}
    assert noted == encode(TENSORS, metadata={"by": "us", "pruned": "{}"})
