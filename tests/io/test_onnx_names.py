"""Names in ONNX: inputs as `forward` has them or as asked, outputs by key, the axis of samples."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import flexrel
import flexrel_edge
from flexrel import UsageError, export, pack
from flexrel.cli import main
from flexrel_edge.graph import graph_in
from networks import random_
from oracles import needs

onnx = pytest.importorskip("onnx", reason="it comes with the extra 'export'")
onnxruntime = pytest.importorskip("onnxruntime", reason="it comes with the extra 'export'")
pytest.importorskip("onnxscript", reason="it comes with the extra 'export'")

IDS = torch.arange(20).reshape(5, 4)
MASK = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


class Keyed(nn.Module):
    """Outputs under keys, in a tuple and a list within, one twice, one an input."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, ids, mask=None):
        y = self.layer(ids.float()) * mask
        return {
            "logits": y,
            "none": None,
            "hidden": (y + 1, [y * 2]),
            "again": y,
            "ids": ids,
        }


class Several(nn.Module):
    """Any number of inputs, a tuple of outputs, and a parameter called as an output would be."""

    def __init__(self):
        super().__init__()
        self.output_0 = nn.Parameter(torch.ones(3))

    def forward(self, *xs):
        return xs[0] * self.output_0, xs[1] * 2


def run(path, *inputs, of=None):
    """Return a session of the file, and its outputs by name, of inputs by place."""
    session = onnxruntime.InferenceSession(path)
    names = of or [node.name for node in session.get_inputs()]
    made = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    return session, dict(zip((node.name for node in session.get_outputs()), made, strict=True))


def shapes(nodes):
    return {node.name: node.shape for node in nodes}


def test_outputs_have_the_keys_that_the_model_returns_them_by(tmp_path):
    model, path = random_(Keyed()).eval(), tmp_path / "m.onnx"

    export(model, {"ids": IDS, "mask": MASK}, path)
    session, made = run(path, IDS[:3], MASK[:3])

    onnx.checker.check_model(onnx.load(path), full_check=True)
    want = model(IDS[:3], MASK[:3])
    assert list(made) == ["logits", "hidden_0", "hidden_1_0", "again", "ids_"]
    for name, value in (
        ("logits", want["logits"]),
        ("hidden_0", want["hidden"][0]),
        ("hidden_1_0", want["hidden"][1][0]),
        ("again", want["again"]),
        ("ids_", want["ids"]),
    ):
        np.testing.assert_allclose(made[name], value.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert shapes(session.get_inputs()) == {"ids": ["batch", 4], "mask": ["batch", 3]}
    assert shapes(session.get_outputs())["hidden_1_0"] == ["batch", 3]


def test_an_output_without_a_key_is_called_output(tmp_path):
    export(nn.Sequential(nn.Linear(4, 3)), torch.randn(5, 4), tmp_path / "m.onnx")

    session, _ = run(tmp_path / "m.onnx", torch.randn(2, 4))

    assert shapes(session.get_inputs()) == {"input": ["batch", 4]}
    assert shapes(session.get_outputs()) == {"output": ["batch", 3]}


def test_a_name_that_a_weight_has_is_the_weights(tmp_path):
    model = Several()
    pack(model, tmp_path / "m", graph=((MASK, MASK), None))

    session = flexrel_edge.session(tmp_path / "m")
    first, second = session.run(None, {"xs_0": MASK.numpy(), "xs_1": MASK.numpy()})

    assert graph_in(flexrel_edge.inspect(tmp_path / "m")).weights == {"output_0": "float32"}
    assert [node.name for node in session.get_outputs()] == ["output_0_", "output_1"]
    np.testing.assert_allclose(first, MASK)
    np.testing.assert_allclose(second, 2 * MASK)
    told = json.loads(flexrel_edge.inspect(tmp_path / "m").metadata["inputs"])
    assert [one["name"] for one in told] == [node.name for node in session.get_inputs()]


@pytest.mark.parametrize("names", [["tokens", "weights"], ["mask", "ids"], ["logits", "add"]])
def test_inputs_have_the_names_that_are_asked_for(names, tmp_path):
    """Also where they are another input's, an output's, or that of something in between."""
    model, path = random_(Keyed()).eval(), tmp_path / "m.onnx"

    export(model, ((IDS, MASK), None), path, input_names=names)
    session, made = run(path, IDS, MASK, of=names)

    assert [node.name for node in session.get_inputs()] == names
    want = model(IDS, MASK)["logits"].detach().numpy()
    np.testing.assert_allclose(next(iter(made.values())), want, rtol=1e-5, atol=1e-6)
    assert len({*names, *made}) == len(names) + len(made)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a"], r"1 names of inputs \(a\) for a network that takes 2: ids, mask"),
        (["a", "a"], "name 'a' of an input is there twice"),
        (["a", ""], "name '' of an input is none"),
        (["a", "layer.bias"], "name 'layer.bias' of an input is a weight's"),
    ],
)
def test_names_that_do_not_do_are_refused(names, told, tmp_path):
    with pytest.raises(UsageError, match=told):
        export(Keyed(), ((IDS, MASK), None), tmp_path / "m.onnx", input_names=names)

    assert list(tmp_path.iterdir()) == []


def test_names_where_nothing_has_them_are_refused(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(UsageError, match=r"inputs can be named \(x\) in ONNX alone"):
        export(model, torch.randn(5, 4), tmp_path / "m.pt2", input_names=["x"])
    with pytest.raises(UsageError, match="in ONNX alone"):
        pack(model, tmp_path / "m", input_names=["x"])

    assert list(tmp_path.iterdir()) == []


def test_a_transformer_of_hugging_face_has_the_names_of_its_library(tmp_path):
    transformers = needs("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
    )
    model = transformers.BertForSequenceClassification(config).eval()
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}

    export(model, batch, tmp_path / "m.onnx")
    session, made = run(tmp_path / "m.onnx", IDS, torch.ones_like(IDS))

    assert shapes(session.get_inputs()) == {
        "input_ids": ["batch", 4],
        "attention_mask": ["batch", 4],
    }
    assert shapes(session.get_outputs()) == {"logits": ["batch", 2]}
    want = model(**batch).logits.detach().numpy()
    np.testing.assert_allclose(made["logits"], want, rtol=1e-4, atol=1e-5)


NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))

def inputs():
    return [torch.randn(8, 4)]
"""


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


def test_the_command_line_names_inputs_of_all_that_it_exports(net, tmp_path):
    out, model, data = tmp_path / "out", f"{net}:make", f"{net}:inputs"
    asked = ["--input-names", "sensors"]

    words = ["--calibration", data, "--budget", "macs=50%", "--criterion", "magnitude", "--quiet"]
    exports = ["--export", "onnx", "--export", "graph"]
    assert main(["prune", model, *words, "--out", str(out), *exports, *asked]) == 0
    assert main(["export", model, str(tmp_path / "m.onnx"), "--data", data, *asked]) == 0
    assert main(["pack", model, "-o", str(tmp_path / "m.flexrel"), "--graph", data, *asked]) == 0

    files = [out / "model.onnx", tmp_path / "m.onnx"]
    sessions = [run(path, torch.ones(2, 4))[0] for path in files]
    packed = [out / "model.flexrel", tmp_path / "m.flexrel"]
    for session in (*sessions, *map(flexrel_edge.session, packed)):
        assert shapes(session.get_inputs()) == {"sensors": ["batch", 4]}
    for path in packed:
        told = json.loads(flexrel_edge.inspect(path).metadata["inputs"])
        assert told == [{"name": "sensors", "dtype": "float32", "shape": [None, 4]}]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--input-names", "a,b", "--export", "onnx"], "2 names of inputs (a, b) for a network"),
        (["--input-names", "a"], "in ONNX alone"),
    ],
)
def test_names_are_refused_before_the_work(net, tmp_path, capsys, monkeypatch, words, told):
    monkeypatch.setattr("flexrel.pruning.prune", lambda *_, **__: pytest.fail("work was done"))
    data = ["--calibration", f"{net}:inputs", "--budget", "macs=50%", "--quiet"]

    assert main(["prune", f"{net}:make", *data, "--out", str(tmp_path / "out"), *words]) == 2

    assert told in capsys.readouterr().err


def test_a_result_names_inputs_in_its_exports(tmp_path):
    result = flexrel.prune(
        nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)),
        calibration=[torch.randn(8, 4)],
        budgets="macs=50%",
        criterion="magnitude",
    )

    result.save(tmp_path, ["onnx"], input_names=["x"])

    session, _ = run(tmp_path / "model.onnx", torch.ones(2, 4))
    assert shapes(session.get_inputs()) == {"x": ["batch", 4]}
    with pytest.raises(UsageError, match="pass a list"):
        result.save(tmp_path, ["onnx"], input_names="x")
