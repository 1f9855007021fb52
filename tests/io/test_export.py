"""Networks for other programs: they compute what torch does, and packed files need nothing else."""

import numpy as np
import pytest
import torch
from torch import nn

import flexrel
import flexrel_edge
from families import family
from flexrel import ModelError, UsageError, export, load, pack
from flexrel.structure import analyse, apply
from flexrel_edge.cli import main as edge
from flexrel_edge.graph import graph_in
from flexrel_edge.session import run as ran
from networks import Call, batch, bits, random_, random_plan, same_bits

onnx = pytest.importorskip("onnx", reason="it comes with the extra 'export'")
for needed in ("onnxscript", "onnxruntime"):
    pytest.importorskip(needed, reason="it comes with the extra 'export'")

X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(3))


class Encoder(nn.Module):
    """torch's own encoder, and one table for the way in and, transposed, the way out."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.out = nn.Linear(16, 11)
        self.out.weight = self.table.weight

    def forward(self, ids, mask=None):
        hidden = self.table(ids)
        if mask is not None:
            hidden = hidden * mask.unsqueeze(-1)
        return {"logits": self.out(self.encoder(hidden)), "first": hidden[:, 0]}


class Fixed(nn.Module):
    """Fixed to four samples by its code."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x.reshape(4, 3))


class Namesakes(nn.Module):
    """Parameters called as the input, as what an operation gives, and as what is made of that."""

    def __init__(self):
        super().__init__()
        self.x, self.linear = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))
        self.linear_ = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear_(x * self.x) + self.linear


def linear():
    return random_(nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 2)))


def close(have, want):
    np.testing.assert_allclose(have, want.detach().numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("residuals", "float32"),
        ("transformer", "float16"),
        ("separable", "int8"),
        ("grouped", "bfloat16"),
        ("scaled", "int4"),
    ],
)
def test_a_cut_network_runs_from_its_file_alone_as_torch_runs_it(name, values, tmp_path):
    model = family(name)
    cut = apply(model, random_plan(analyse(model, batch(X[:2]), "channel"), 1))
    path, out = tmp_path / "cut.flexrel", tmp_path / "cut.onnx"
    state = bits(cut)

    pack(cut, path, values, graph=(X, torch.zeros(5)))

    same_bits(bits(cut), state)
    want = load(path, into=family(name, seed=9)).eval()(X)
    close(flexrel_edge.session(path).run(None, {"x": X.numpy()})[0], want)
    assert edge(["unpack", str(path), str(out)]) == 0
    onnx.checker.check_model(str(out), full_check=True)
    assert path.stat().st_size < out.stat().st_size


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A network with its file, the inputs it was made with, and what a file without graph has."""
    model = random_(Encoder()).eval()
    path = tmp_path_factory.mktemp("encoder") / "model.flexrel"
    ids, mask = torch.arange(12).view(3, 4) % 11, torch.ones(3, 4)
    mask[1, 2:] = 0
    bare = pack(model, path)
    metadata = flexrel_edge.inspect(path).metadata
    pack(model, path, graph={"ids": ids, "mask": mask, "labels": torch.zeros(3)})
    return model, path, (ids, mask), bare, metadata


def test_the_weights_of_a_graph_are_the_tensors_of_the_file_and_are_in_it_once(encoder):
    _, path, _, bare, metadata = encoder

    found = flexrel_edge.inspect(path)

    assert found.metadata.items() > metadata.items()
    graph = graph_in(found)
    assert graph.weights == dict.fromkeys((entry.name for entry in found.tensors), "float32")
    inline = onnx.ModelProto.FromString(graph.model).graph.initializer
    assert sum(len(constant.raw_data) for constant in inline) < 200
    assert found.bytes - bare.bytes < 4000
    assert "out.weight" in metadata["tied"]


def test_names_inputs_and_outputs_are_those_of_the_model(encoder):
    model, path, (ids, mask), *_ = encoder
    more = {"ids": ids.repeat(2, 1), "mask": mask.repeat(2, 1)}

    session = flexrel_edge.session(path)

    assert [node.name for node in session.get_inputs()] == ["ids", "mask"]
    have = session.run(None, {name: value.numpy() for name, value in more.items()})
    close(have[0], model(**more)["logits"])
    close(have[1], model(**more)["first"])


@pytest.fixture(scope="module")
def convolution(tmp_path_factory):
    """A network of one layer of each kind, and one that reads of a tensor but its shape."""
    unread = nn.Parameter(torch.ones(2))
    layers = (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    model = nn.Sequential(*layers, nn.Linear(144, 2), Call(lambda x: x * torch.ones_like(unread)))
    model.register_parameter("unread", unread)
    path = tmp_path_factory.mktemp("convolution") / "model.flexrel"
    pack(random_(model).eval(), path, graph=X)
    return model, path


def test_a_graph_has_one_operation_a_layer_and_wants_no_tensor_that_none_reads(convolution):
    model, path = convolution

    graph = graph_in(flexrel_edge.inspect(path))

    nodes = onnx.ModelProto.FromString(graph.model).graph.node
    layers = ["Conv", "BatchNormalization", "Relu", "Reshape", "Gemm", "Mul"]
    assert [node.op_type for node in nodes] == layers
    assert graph.weights.keys() == model.state_dict().keys() - {"unread", "1.num_batches_tracked"}


def test_what_run_writes_is_what_the_network_gives(convolution, tmp_path, capsys):
    model, path = convolution
    given, out = tmp_path / "x.npy", tmp_path / "y.npz"
    np.save(given, X.double().numpy())  # numpy's default

    code = edge(["run", str(path), "--input", str(given), "--output", str(out), "--repeat", "3"])

    assert code == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith(": float32[5, 2]")
    assert printed[1].startswith("median of 3 runs: ")
    with np.load(out) as arrays:
        (name,) = arrays.files
        close(arrays[name], model(X))


def test_weights_keep_their_names_where_other_values_have_them_too(tmp_path):
    model, x, path = random_(Namesakes()), torch.randn(3, 8), tmp_path / "model.flexrel"

    pack(model, path, graph=x)

    graph = graph_in(flexrel_edge.inspect(path))
    assert graph.weights.keys() == {"x", "linear", "linear_.weight", "linear_.bias"}
    close(ran(flexrel_edge.session(path), {"x": x.numpy()}).outputs.popitem()[1], model(x))


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_an_exported_network_takes_any_number_of_samples(ending, tmp_path):
    model = family("separable").train()
    modes = [module.training for module in model.modules()]
    path = tmp_path / f"model.{ending}"

    assert export(model, X[:1], path) is None

    assert [module.training for module in model.modules()] == modes
    model.eval()
    for count in (1, 5):
        have = run(path, X[:count])
        close(have, model(X[:count]))


def run(path, x):
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(x).detach().numpy()
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path.read_bytes())
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_one_that_is_fixed_to_its_number_of_samples_says_so(ending, tmp_path):
    model = random_(Fixed())
    x = torch.randn(4, 3)

    assert export(model, x, tmp_path / f"model.{ending}") == 4

    close(run(tmp_path / f"model.{ending}", x), model(x))


def test_a_program_carries_its_graph_too(tmp_path):
    model = family("residuals")
    result = flexrel.prune(
        model,
        calibration=[X, X + 1],
        budgets=[flexrel.MACs(0.6)],
        criterion=flexrel.Magnitude(),
        options=flexrel.PruneOptions(form="exported"),
    )

    assert result.save(tmp_path / "out", export=["observe", "pt2"]) == ()

    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.flexrel", "model.pt2"} <= names
    want = result.model(X)
    told = flexrel_edge.session(tmp_path / "out" / "model.flexrel", observing=True)
    outputs = [node.name for node in told.get_outputs()]
    found = dict(zip(outputs, told.run(None, {"x": X.numpy()}), strict=True))
    first = next(name for name in outputs if name.endswith("|mean"))
    close(torch.from_numpy(found[first]), X.mean((0, 2, 3)))
    close(torch.from_numpy(found[first.replace("mean", "square")]), X.square().mean((0, 2, 3)))
    close(
        flexrel_edge.session(tmp_path / "out" / "model.flexrel").run(None, {"x": X.numpy()})[0],
        want,
    )
    close(run(tmp_path / "out" / "model.pt2", X), want)


def test_a_result_says_what_its_graph_adds_to_a_budget(tmp_path):
    result = flexrel.prune(
        linear(),
        calibration=[torch.randn(8, 3)],
        budgets=[flexrel.Bytes(1200)],
        criterion=flexrel.Magnitude(),
    )

    left_out, note = result.save(tmp_path, export=["graph"])

    assert "does not tell its inputs, accuracy and widths" in left_out
    size = (tmp_path / "model.flexrel").stat().st_size
    assert result.achieved.bytes <= 1200 < size
    assert note.startswith(
        f"model.flexrel has {size:,} bytes with its ONNX graph; the budget of 1,200"
    )


def test_a_program_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    honest = torch.export.export
    monkeypatch.setattr(
        torch.export, "export", lambda _, *rest, **more: honest(Fixed(), *rest, **more)
    )

    with pytest.raises(ModelError, match="computes something else"):
        export(random_(Fixed()), torch.randn(4, 3), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_a_network_of_ones_own_is_refused_where_onnx_has_no_word_for_what_it_does(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.eigh(x @ x.transpose(1, 2))[0]

    with pytest.raises(ModelError, match="can't be exported to ONNX"):
        export(Odd(), torch.randn(2, 3, 3), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    model = linear()
    honest = torch.onnx.export

    def wrong(program, **options):
        made = honest(program, **options)
        (relu,) = [node for node in made.model.graph if node.op_type == "Relu"]
        relu.op_type = "Neg"
        return made

    monkeypatch.setattr(torch.onnx, "export", wrong)

    with pytest.raises(ModelError, match="computes something else"):
        pack(model, tmp_path / "model.flexrel", graph=torch.randn(4, 3))
    assert not list(tmp_path.iterdir())


def test_another_ending_is_refused_before_any_work(tmp_path):
    with pytest.raises(UsageError, match=r"ends in \.onnx or \.pt2"):
        export(linear(), torch.randn(4, 3), tmp_path / "model.pth")
