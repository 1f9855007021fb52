"""Networks that return a cache, as Hugging Face's do, are pruned and exported without it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import flexrel
from flexrel import MACs, Magnitude, ModelError
from flexrel.cli import main

IDS = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(0))
ANY = {"budgets": [MACs(0.7)], "criterion": Magnitude(), "calibration": [{"ids": IDS}]}


class Cache:
    """An object of a class that torch.export knows nothing of."""

    def __init__(self, keys, values):
        self.keys, self.values = keys, values


class Decoder(nn.Module):
    def __init__(self, form, *, obeys=True):
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(use_cache=True)
        self.form, self.obeys = form, obeys
        self.embed, self.keys, self.queries = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.up, self.head = nn.Linear(8, 32), nn.Linear(32, 11)

    def forward(self, ids):
        x = self.embed(ids)
        keys = self.keys(x)
        x = x + (self.queries(x) @ keys.mT).softmax(-1) @ x
        logits = self.head(self.up(x).relu())
        caches = self.config.use_cache or not self.obeys
        cache = {"past_key_values": self.form(keys, x)} if caches else {}
        return {"logits": logits, **cache}


def tuples(keys, values):
    return ((keys, values),)


@pytest.mark.parametrize("form", [Cache, tuples])
@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_network_that_caches_is_exported_without_its_cache(form, kind, tmp_path):
    model = Decoder(form)
    file = tmp_path / f"net.{kind}"

    flexrel.export(model, {"ids": IDS}, file)

    assert model.config.use_cache
    assert "past_key_values" in model(IDS)
    if kind == "pt2":
        made = torch.export.load(file).module()(ids=IDS)
        assert set(made) == {"logits"}
        assert torch.allclose(made["logits"], model(IDS)["logits"], atol=1e-5)
    else:
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(file.read_bytes())
        (made,) = session.run(None, {session.get_inputs()[0].name: IDS.numpy()})
        assert torch.allclose(torch.from_numpy(made), model(IDS)["logits"], atol=1e-4)


@pytest.mark.parametrize("form", ["module", "exported"])
@pytest.mark.parametrize("kind", [Cache, tuples])
def test_what_a_network_caches_is_no_output_that_has_to_stay(form, kind, tmp_path):
    model = Decoder(kind)

    result = flexrel.prune(model, options=flexrel.PruneOptions(form=form), **ANY)

    cut = {group.name for group in result.plan.graph.groups}
    assert {"embed", "up"} <= cut  # what is embedded is a part of the cache
    assert any("use_cache was turned off while it was pruned" in w for w in result.warnings)
    assert model.config.use_cache
    notes = result.save(tmp_path, ["pt2"])
    made = torch.export.load(tmp_path / "model.pt2").module()(ids=IDS)["logits"]
    answer = result.model(ids=IDS)
    assert torch.allclose(made, answer["logits"], atol=1e-5)
    if form == "module":
        assert "past_key_values" in answer
        assert "model.pt2 returns no cache: config.use_cache was turned off for it" in notes


def test_packing_with_a_graph_says_that_the_cache_is_left_out(tmp_path):
    pytest.importorskip("onnxruntime")
    model = Decoder(Cache)
    (line,) = flexrel.pack(model, tmp_path / "net.flexrel", graph={"ids": IDS}).warnings
    assert "config.use_cache was turned off for it" in line
    assert not flexrel.pack(model, tmp_path / "plain.flexrel").warnings


def test_a_cache_that_no_configuration_turns_off_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"an object of class Cache.*use_cache=False"):
        flexrel.export(Decoder(Cache, obeys=False), {"ids": IDS}, tmp_path / "net.pt2")


def test_the_command_line_says_what_it_left_out(tmp_path, capsys):
    file = tmp_path / "net.py"
    file.write_text(
        "from tests.io.test_caches import IDS, Cache, Decoder\n"
        "def make(): return Decoder(Cache)\n"
        'def data(): return [{"ids": IDS}]\n'
    )
    out = tmp_path / "net.pt2"

    assert main(["export", f"{file}:make", str(out), "--data", f"{file}:data"]) == 0
    assert "warning: net.pt2 returns no cache" in capsys.readouterr().err
