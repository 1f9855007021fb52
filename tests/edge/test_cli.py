"""The command: results to stdout, one line to stderr, and the exit code tells which."""

import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

import flexrel_edge
from flexrel_edge import Bfloat16
from flexrel_edge.cli import main

TENSORS = {
    "flag": np.array(True),
    "layer.weight": np.float32([[0, 1, 0, 0], [0, -2, 0, 0]]),
    "steps": np.int64([3, 4]),
}


@pytest.fixture
def packed(tmp_path):
    path = tmp_path / "w.flexrel"
    flexrel_edge.write(path, TENSORS, metadata={"by": "us"})
    return path


def test_inspect_says_what_the_file_holds(packed, capsys):
    assert main(["inspect", str(packed)]) == 0

    out, err = capsys.readouterr()
    assert out.startswith("3 tensors, 5 of 11 elements kept, ")
    assert "by     us" in out.splitlines()
    assert "layer.weight" not in out
    assert err == ""


def test_inspect_lists_tensors_where_that_is_asked(packed, capsys):
    assert main(["inspect", "--tensors", str(packed)]) == 0

    line = "layer.weight  float32[2, 4]  sparse raw+raw  2 of 8 kept  16 bytes"
    assert line in capsys.readouterr().out.splitlines()


def test_inspect_json_says_the_same_to_a_program(packed, capsys):
    assert main(["inspect", "--json", str(packed)]) == 0

    facts = json.loads(capsys.readouterr().out)
    assert facts["bytes"] == packed.stat().st_size
    assert (facts["kept"], facts["total"]) == (5, 11)
    assert facts["metadata"] == {"by": "us"}
    assert facts["tensors"][1] == {
        "name": "layer.weight",
        "dtype": "float32",
        "shape": [2, 4],
        "kind": "sparse",
        "kept": 2,
        "total": 8,
        "values_codec": "raw",
        "values_bytes": 8,
        "positions_codec": "raw",
        "positions_bytes": 8,
        "scales_codec": None,
        "scales_bytes": 0,
        "pattern": None,
        "bytes": 16,
    }


def test_a_name_cannot_reach_the_terminal(tmp_path, capsys):
    path = tmp_path / "w.flexrel"
    flexrel_edge.write(path, {"\x1b[2J\n": np.zeros(1)}, metadata={"a\rb": "\x07"})

    assert main(["inspect", "--tensors", str(path)]) == 0

    out = capsys.readouterr().out
    assert out.replace("\n", "").isprintable()
    assert r"'\x1b[2J\n'" in out


def test_verify_accepts_a_whole_file(packed, capsys):
    assert main(["verify", str(packed)]) == 0
    assert capsys.readouterr().out == f"{packed}: whole, 3 tensors\n"


@pytest.mark.parametrize("command", ["inspect", "verify", "unpack"])
def test_a_damaged_file_is_exit_5_and_one_line_with_its_name(packed, capsys, command, tmp_path):
    packed.write_bytes(packed.read_bytes()[:-1])
    out_path = tmp_path / "out.safetensors"

    assert main([command, str(packed), *([str(out_path)] if command == "unpack" else [])]) == 5

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"flexrel-edge: {packed}: the header declares")
    assert err.count("\n") == 1
    assert not out_path.exists()


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_missing_file_is_exit_2(tmp_path, capsys, command):
    assert main([command, str(tmp_path / "none")]) == 2
    missing = tmp_path / "none"
    assert capsys.readouterr().err == f"flexrel-edge: {missing}: No such file or directory\n"


@pytest.mark.parametrize("argv", [[], ["eat"], ["inspect"], ["unpack", "one"]])
def test_wrong_usage_is_exit_2(argv, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    assert "usage: flexrel-edge" in capsys.readouterr().err


def test_unpack_writes_what_safetensors_reads(packed, tmp_path):
    out = tmp_path / "w.safetensors"

    assert main(["unpack", str(packed), str(out)]) == 0

    read = safetensors.numpy.load_file(out)
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert read[name].tobytes() == tensor.tobytes()
    with safetensors.safe_open(out, "numpy") as file:
        assert file.metadata() == {"by": "us"}


@pytest.mark.parametrize(
    "dtype",
    ["float16", "float64", "int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64"],
)
def test_unpack_knows_every_dtype(tmp_path, dtype):
    tensor = np.array([[0, 1, 100]], dtype)
    path, out = tmp_path / "w.flexrel", tmp_path / "w.safetensors"
    flexrel_edge.write(path, {"w": tensor})

    assert main(["unpack", str(path), str(out)]) == 0

    read = safetensors.numpy.load_file(out)["w"]
    assert (read.dtype, read.tolist()) == (tensor.dtype, tensor.tolist())


def test_bfloat16_stays_bfloat16_when_unpacked(tmp_path):
    tensor = torch.tensor([1.5, -2.0, 3e38], dtype=torch.bfloat16)
    path, out = tmp_path / "w.flexrel", tmp_path / "w.safetensors"
    flexrel_edge.write(path, {"w": Bfloat16(tensor.view(torch.uint16).numpy())})

    assert main(["unpack", str(path), str(out)]) == 0

    assert torch.equal(safetensors.torch.load_file(out)["w"], tensor)
    assert np.array_equal(flexrel_edge.read(path)["w"], tensor.float().numpy())


def test_a_tensor_that_safetensors_cannot_name_is_exit_1(tmp_path, capsys):
    path = tmp_path / "w.flexrel"
    flexrel_edge.write(path, {"__metadata__": np.zeros(1)})

    assert main(["unpack", str(path), str(tmp_path / "out")]) == 1
    assert "'__metadata__'" in capsys.readouterr().err


def test_a_reader_that_has_enough_is_no_error(tmp_path):
    """As in `flexrel-edge inspect FILE | head -1`: the pipe is closed before all is written."""
    file = tmp_path / "w.flexrel"
    flexrel_edge.write(file, {f"layer{n}.weight": np.ones(3) for n in range(3000)})
    code = "import sys; from flexrel_edge.cli import main; sys.exit(main())"

    with subprocess.Popen(
        [sys.executable, "-c", code, "inspect", file],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        running.stdout.close()
        said = running.stderr.read()

    assert (running.returncode, said) == (0, b"")
