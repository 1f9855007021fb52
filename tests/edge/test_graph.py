"""Graph and weights apart make the ONNX file that they were together, and damage is told."""

import base64
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flexrel_edge
from flexrel_edge import Bfloat16, FlexrelError, PackError, graph, inspect
from flexrel_edge.cli import main
from flexrel_edge.graph import DATA_TYPES, Graph, filled, graph_in

WEIGHT = np.float32([[1, 0, -2], [0, 0.5, 3]])


def metadata(**changed):
    return {**Graph(b"model", {"w": "float32"}).metadata(["w"]), **changed}


def packed(tmp_path, tensors, texts):
    path = tmp_path / "w.flexrel"
    flexrel_edge.write(path, tensors, metadata=texts)
    return path


def test_what_is_written_is_read(tmp_path):
    whole = Graph(bytes(range(256)), {"b": "int64", "a": "bfloat16", "é": "float32"}, 8)
    tensors = dict.fromkeys(("a", "b", "not wanted", "z", "é"), WEIGHT)
    texts = whole.metadata(tensors)

    assert graph_in(inspect(packed(tmp_path, tensors, texts))) == whole
    assert texts["onnx_weights"] == "g7001"  # BFLOAT16 is 16 in onnx.proto, INT64 7, FLOAT 1
    empty = Graph(b"", {})
    assert graph_in(inspect(packed(tmp_path, {}, empty.metadata({})))) == empty


# Worked out by hand from onnx.proto: field 7 of 14 bytes; in it field 5 of 12; in it dims 1 and
# 300 (two bytes: 44 + 128, 2), data_type 2, name "w", raw_data of 0 bytes.
BY_HAND = (
    bytes([7 << 3 | 2, 14, 5 << 3 | 2, 12, 8, 0, 8, 172, 2, 16, 2, 66, 1]) + b"w" + bytes([74, 0])
)


def test_a_weight_is_the_bytes_that_onnx_proto_says():
    pieces = filled(Graph(b"", {"w": "uint8"}), lambda _: np.zeros((0, 300), np.uint8))

    assert b"".join(pieces) == BY_HAND


arrays = st.tuples(
    st.sampled_from(sorted(DATA_TYPES)),
    st.lists(st.integers(0, 200), max_size=2).map(tuple),
    st.text(min_size=1, max_size=200),
)


@settings(max_examples=50)
@given(wanted=st.lists(arrays, max_size=4, unique_by=lambda one: one[2]))
def test_onnx_reads_the_graph_and_every_weight_from_the_pieces(wanted):
    onnx = pytest.importorskip("onnx", reason="it comes with the extra 'export'")
    bare = onnx.helper.make_model(onnx.helper.make_graph([], "net", [], []))
    draw = np.random.default_rng(0)
    tensors = {}
    for dtype, shape, name in wanted:
        storage = graph.STORAGE[dtype]
        bits = draw.bytes(int(np.prod(shape)) * storage.itemsize)
        array = np.frombuffer(bits, storage).reshape(shape)
        tensors[name] = np.asarray(array % 2 == 1) if dtype == "bool" else array
        tensors[name] = Bfloat16(array) if dtype == "bfloat16" else tensors[name]
    weights = {name: dtype for dtype, _, name in wanted}

    data = b"".join(filled(Graph(bare.SerializeToString(), weights), lambda name: tensors[name]))

    read = onnx.ModelProto.FromString(data)
    found = {one.name: one for one in read.graph.initializer}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        array = tensor.bits if isinstance(tensor, Bfloat16) else tensor
        assert found[name].raw_data == array.tobytes()
        assert tuple(found[name].dims) == array.shape
        code = onnx.TensorProto.DataType.Value(ONNX_NAMES.get(weights[name], weights[name].upper()))
        assert found[name].data_type == code
    del read.graph.initializer[:]
    assert read == bare


ONNX_NAMES = {"float32": "FLOAT", "float64": "DOUBLE"}


@pytest.mark.parametrize(
    ("tensor", "wanted", "value"),
    [
        (
            np.float16([0.1, 65504, -0.0]),
            np.float32,
            np.float16([0.1, 65504, -0.0]).astype(np.float32),
        ),
        (np.float32([0.1]), np.float64, np.float32([0.1]).astype(np.float64)),
        (Bfloat16(np.uint16([0x3FC0, 0x8000])), np.float32, np.float32([1.5, -0.0])),
        (Bfloat16(np.uint16([0x3FC0])), np.float64, np.float64([1.5])),
    ],
)
def test_a_narrower_number_is_widened_to_what_the_graph_wants(tensor, wanted, value):
    *_, data = filled(Graph(b"", {"w": np.dtype(wanted).name}), lambda _: tensor)

    assert bytes(data) == value.tobytes()


@pytest.mark.parametrize(
    ("tensor", "wanted"),
    [
        (np.float64([1]), "float32"),
        (np.int32([1]), "int64"),
        (np.int64([1]), "float32"),
        (Bfloat16(np.uint16([1])), "float16"),
        (np.float32([1]), "bfloat16"),
    ],
)
def test_what_can_not_be_widened_is_refused(tensor, wanted):
    with pytest.raises(PackError, match=f"the ONNX graph wants {wanted}"):
        list(filled(Graph(b"", {"w": wanted}), lambda _: tensor))


def deflated(data):
    return base64.b64encode(zlib.compress(data)).decode()


@pytest.mark.parametrize(
    "texts",
    [
        {"onnx": "é"},
        {"onnx": "AAA"},
        {"onnx": "AAAA"},
        {"onnx": ""},
        {"onnx": deflated(b"model")[:-8]},
        {"onnx": deflated(b"model") + "\n"},
        {"onnx": base64.b64encode(zlib.compress(b"model") + b"x").decode()},
        {"onnx": deflated(bytes(graph.MAX_GRAPH + 1))},
        {"onnx_weights": ""},
        {"onnx_weights": "11"},
        {"onnx_weights": "8"},
        {"onnx_weights": "h"},
        {"onnx_weights": "7"},
        {"onnx_samples": "-1"},
        {"onnx_samples": "²"},
        {"onnx_samples": "1" * 5000},
    ],
    ids=lambda texts: str(texts)[:40],
)
def test_a_damaged_graph_is_exit_5_and_nothing_is_written(texts, tmp_path, capsys):
    path = packed(tmp_path, {"w": WEIGHT}, metadata(**texts))
    out = tmp_path / "w.onnx"

    assert main(["unpack", str(path), str(out)]) == 5

    line = capsys.readouterr().err
    assert line.startswith(f"flexrel-edge: {path}: ")
    assert "the ONNX graph" in line
    assert line.count("\n") == 1
    assert not out.exists()


def test_a_file_without_a_graph_says_how_to_get_one(tmp_path, capsys):
    path = packed(tmp_path, {"w": WEIGHT}, {})

    assert main(["unpack", str(path), str(tmp_path / "w.onnx")]) == 1
    assert "flexrel pack --graph DATA" in capsys.readouterr().err


def test_a_network_too_long_for_onnx_is_refused(tmp_path, capsys, monkeypatch):
    path = packed(tmp_path, {"w": WEIGHT}, metadata())
    monkeypatch.setattr(graph, "_MAX_MESSAGE", 40)

    assert main(["unpack", str(path), str(tmp_path / "w.onnx")]) == 1
    assert "more than 40 bytes" in capsys.readouterr().err


def test_a_graph_too_long_for_a_file_is_refused():
    with pytest.raises(FlexrelError, match="bytes without the weights"):
        Graph(bytes(graph.MAX_GRAPH + 1), {}).metadata([])


def test_a_graph_does_not_fill_the_terminal(tmp_path, capsys):
    noise = np.random.default_rng(0).bytes(9000)
    path = packed(tmp_path, {"w": WEIGHT}, Graph(noise, {"w": "float32"}).metadata(["w"]))

    assert main(["inspect", str(path)]) == 0

    assert max(map(len, capsys.readouterr().out.splitlines())) < 300


# --- running ------------------------------------------------------------------------------------


def test_without_onnxruntime_the_extra_is_named(tmp_path, capfd, monkeypatch):
    path = packed(tmp_path, {"w": WEIGHT}, metadata())
    np.save(tmp_path / "x.npy", np.zeros(1))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    assert main(["run", str(path), "--input", str(tmp_path / "x.npy")]) == 1
    assert "pip install 'flexrel-edge[run]'" in capfd.readouterr().err


@pytest.fixture
def network(tmp_path):
    """file = a @ w + b, in a file."""
    onnx = pytest.importorskip("onnx", reason="it comes with the extra 'export'")
    pytest.importorskip("onnxruntime", reason="it comes with the extra 'run'")
    info, float32 = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    nodes = [
        onnx.helper.make_node("MatMul", ["a", "w"], ["aw"]),
        onnx.helper.make_node("Add", ["aw", "b"], ["file"]),
    ]
    inputs = [info("a", float32, ["n", 2]), info("b", float32, [3])]
    net = onnx.helper.make_graph(nodes, "net", inputs, [info("file", float32, ["n", 3])])
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(net, opset_imports=[opset], ir_version=8)
    whole = Graph(model.SerializeToString(), {"w": "float32"})
    tensors = {"w": WEIGHT.astype(np.float16), "other": np.ones(3)}
    return packed(tmp_path, tensors, whole.metadata(tensors))


def test_a_packed_file_runs_on_inputs_by_name(network, tmp_path, capfd):
    given, out = tmp_path / "in.npz", tmp_path / "out.npz"
    np.savez(given, a=np.float32([[1, 2]]), b=np.float64([10, 20, 30]))

    assert main(["run", str(network), "--input", str(given), "--output", str(out)]) == 0

    assert capfd.readouterr().out == "file: float32[1, 3]\n"
    with np.load(out) as arrays:
        assert arrays["file"].tolist() == [[11, 21, 34]]  # [1, 1, 4] + b


def test_session_is_onnxruntime_s_own(network):
    session = flexrel_edge.session(network, threads=1)

    feed = {"a": np.float32([[0, 2]]), "b": np.zeros(3, np.float32)}
    assert session.run(["file"], feed)[0].tolist() == [[0, 1, 6]]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"a": np.float32([[1, 2]])}, r"inputs are \['a', 'b'\], given are \['a'\]"),
        ({"a": np.int64([[1, 2]]), "b": np.complex64([1, 2, 3])}, "input 'b' is float32"),
        (
            {"a": np.float32([[1, 2, 3]]), "b": np.float32([1, 2, 3])},
            r"can't run on these inputs.*takes a \[.*2\], b \[3\], given are a \[1, 3\], b \[3\]",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_told_in_one_line(network, inputs, message, tmp_path, capfd):
    given = tmp_path / "in.npz"
    np.savez(given, **inputs)

    assert main(["run", str(network), "--input", str(given)]) == 1

    line = capfd.readouterr().err
    assert line.count("\n") == 1
    with pytest.raises(FlexrelError, match=message):
        raise FlexrelError(line)


def test_inputs_are_never_unpickled(network, tmp_path, capfd):
    np.save(tmp_path / "x.npy", np.array([print], dtype=object), allow_pickle=True)

    assert main(["run", str(network), "--input", str(tmp_path / "x.npy")]) == 1
    assert "is no file of plain numpy arrays" in capfd.readouterr().err


def test_a_graph_that_onnxruntime_refuses_is_told_with_the_path(tmp_path, capfd):
    pytest.importorskip("onnxruntime", reason="it comes with the extra 'run'")
    path = packed(tmp_path, {"w": WEIGHT}, metadata(onnx=deflated(b"no protobuf")))
    np.save(tmp_path / "x.npy", np.zeros(1))

    assert main(["run", str(path), "--input", str(tmp_path / "x.npy")]) == 1
    err = capfd.readouterr().err
    assert err.startswith(f"flexrel-edge: {path}: onnxruntime can't run the network: ")
    assert err.count("\n") == 1


def test_weights_in_another_file_are_refused_in_one_line(tmp_path, capfd):
    onnx = pytest.importorskip("onnx", reason="it comes with the extra 'export'")
    pytest.importorskip("onnxruntime", reason="it comes with the extra 'run'")
    elsewhere = onnx.TensorProto(
        name="w", dims=[3], data_type=onnx.TensorProto.FLOAT, data_location="EXTERNAL"
    )
    for key, value in (("location", "secret.bin"), ("offset", "0"), ("length", "12")):
        elsewhere.external_data.add(key=key, value=value)
    info, float32 = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    net = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])],
        "net",
        [info("x", float32, [3])],
        [info("y", float32, [3])],
        [elsewhere],
    )
    model = onnx.helper.make_model(
        net, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    path = packed(tmp_path, {"w": WEIGHT}, Graph(model.SerializeToString(), {}).metadata(["w"]))
    np.save(tmp_path / "x.npy", np.zeros(3, np.float32))

    assert main(["run", str(path), "--input", str(tmp_path / "x.npy")]) == 1

    err = capfd.readouterr().err
    assert err.startswith(f"flexrel-edge: {path}: onnxruntime can't run the network: ")
    assert err.count("\n") == 1
