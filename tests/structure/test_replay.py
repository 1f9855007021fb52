"""A cut network comes back from its file, and from its plan, whatever was cut in it."""

import copy
import json
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import flexrel
import flexrel_edge
from families import FAMILIES, family, numbers_are_true
from flexrel import Magnitude, PackError, UsageError
from flexrel.io import encode, fit
from flexrel.structure import analyse, cut_changes
from graphs import Images, Tokens, sentences, sizes_are_true
from networks import batch, bits, images, random_, random_plan, same_bits

INPUTS = images(4).float()


def cut(name, seed=1, model=None):
    model = model or family(name)
    return flexrel.apply(model, random_plan(analyse(model, batch(INPUTS), "channel"), seed))


def same_network(one, two):
    """The same tensors, unsaved buffers too, and the same outputs, bit by bit."""
    tensors = [dict([*m.named_parameters(), *m.named_buffers()]) for m in (one, two)]
    assert tensors[0].keys() == tensors[1].keys()
    for name in tensors[0]:
        assert torch.equal(tensors[0][name], tensors[1][name]), name
    assert torch.equal(one.eval()(INPUTS), two.eval()(INPUTS))


def trains(model):
    """Take a step of training: every weight moves, and the network still runs."""
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    model(INPUTS).square().sum().backward()
    optimizer.step()
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert moved
    assert {p.requires_grad for p in model.parameters()} == {True}
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())
    assert model.eval()(INPUTS).isfinite().all()


# --- from the packed file -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_cut_network_loads_into_a_fresh_one(name, seed, tmp_path):
    pruned = cut(name, seed)
    flexrel.pack(pruned, tmp_path / "m")

    loaded = flexrel.load(tmp_path / "m", into=family(name, seed=9))

    same_network(loaded, pruned)
    numbers_are_true(loaded)
    assert cut_changes(loaded)[0] == cut_changes(pruned)[0]
    assert encode(loaded) == encode(pruned)  # so that it can be packed and loaded on and on
    trains(loaded)


def pruned_family(name, **options):
    return flexrel.prune(
        family(name),
        calibration=[INPUTS],
        budgets=[flexrel.MACs(0.6)],
        criterion=Magnitude(),
        recover="none",
        **options,
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_prune_saves_what_loads_and_what_its_plan_makes_again(name, tmp_path):
    result = pruned_family(name)
    result.save(tmp_path)

    same_network(flexrel.load(tmp_path / "model.flexrel", family(name, seed=9)), result.model)
    replayed = flexrel.apply(family(name), flexrel.Plan.load(tmp_path / "plan.json"))
    same_network(replayed, result.model)
    numbers_are_true(replayed)
    assert sum(p.numel() for p in replayed.parameters()) == result.achieved.parameters


def test_each_family_is_cut_in_its_own_way():
    """Else the tests above would prove less than they say."""
    numbers = {"grouped": "groups", "normed": "num_groups", "transformer": "num_heads"}
    for name, number in {**numbers, "transposed": "groups"}.items():
        assert number in {place.name for place in cut_changes(cut(name))[0]}
    told = {str(place) for place in cut_changes(cut("separable"))[0]}  # by no shape
    assert told == {"doubled.groups", "norm2.num_features"}
    assert set(cut_changes(cut("scaled"))[1]) == {"scale"}
    assert cut_changes(cut("residuals")) == ({}, {})


def test_a_network_that_was_cut_twice_loads_into_a_dense_one(tmp_path):
    once = cut("transformer", 1, cut("transformer", 3))
    assert cut_changes(once)[0] != cut_changes(cut("transformer", 3))[0]
    flexrel.pack(once, tmp_path / "m")

    same_network(flexrel.load(tmp_path / "m", family("transformer", seed=9)), once)


def test_a_cut_network_may_be_copied_and_built_into_another(tmp_path):
    def around(body):
        return nn.Sequential(nn.Identity(), body).eval()

    whole = around(copy.deepcopy(cut("grouped")))
    flexrel.pack(whole, tmp_path / "m")

    same_network(flexrel.load(tmp_path / "m", around(family("grouped", seed=9))), whole)


@pytest.mark.parametrize("name", ["scaled", "transformer"])
def test_rounded_networks_load_as_they_are_too(name, tmp_path):
    result = pruned_family(name, values="float16")
    result.save(tmp_path)

    same_network(flexrel.load(tmp_path / "model.flexrel", family(name, seed=9)), result.model)


class Sizes(NamedTuple):
    heads: int
    per_head: int


@pytest.mark.parametrize("sizes", [(4, 5), [4, 5], Sizes(4, 5)])
def test_numbers_in_tuples_and_lists_come_back_in_their_kind(sizes, tmp_path):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.sizes = copy.copy(sizes)
            self.first, self.last = nn.Linear(3, 20), nn.Linear(20, 2)

        def forward(self, x):
            split = self.first(x).view(len(x), *self.sizes)
            return self.last((split * split.mean(2, keepdim=True)).flatten(1))

    inputs = torch.linspace(-1, 1, 12).view(4, 3)
    model = Heads().eval()
    graph = analyse(model, batch(inputs), "channel")
    pruned = flexrel.apply(model, random_plan(graph, 1))
    assert pruned.sizes != model.sizes
    flexrel.pack(pruned, tmp_path / "m")

    loaded = flexrel.load(tmp_path / "m", into=Heads())

    assert (type(loaded.sizes), loaded.sizes) == (type(sizes), pruned.sizes)
    assert torch.equal(loaded(inputs), pruned(inputs))


# --- what the file says -------------------------------------------------------------------------


def test_the_edge_reads_files_with_numbers_as_any_other(tmp_path):
    pruned = cut("transformer")
    flexrel.pack(pruned, tmp_path / "m")

    arrays = flexrel_edge.read(tmp_path / "m")

    assert all(np.array_equal(arrays[k], v.numpy()) for k, v in pruned.state_dict().items())
    metadata = flexrel_edge.inspect(tmp_path / "m").metadata
    heads = pruned.attention.num_heads
    numbers = {"attention": {"num_heads": heads, "all_heads": 5 * heads}}
    assert json.loads(metadata["attributes"]) == numbers


def test_a_file_without_such_numbers_says_nothing_of_them():
    for model in (family("transformer"), cut("residuals")):
        assert flexrel_edge.decode(encode(model)).metadata.keys() == {"fingerprint"}


def packed_with(path, model, attributes):
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    flexrel_edge.write(path, arrays, metadata={"attributes": attributes})


def check_that_it_is_refused(path, into, error, message):
    before, numbers = bits(into), cut_changes(into)[0]

    with pytest.raises(error, match=message) as caught:
        flexrel.load(path, into=into)

    assert same_bits(bits(into), before)
    assert cut_changes(into)[0] == numbers
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"attention": {"num_heads": 5}}, r"attention\.num_heads is 5, the model's is 4"),
        ({"attention": {"num_heads": 0}}, r"attention\.num_heads is 0, the model's is 4"),
        ({"attention": {"training": 1}}, r"holds no number attention\.training"),
        ({"attention": {"__class__": 1}}, "holds no number"),
        ({"attention": {"num_heads[0]": 1}}, r"holds no number attention\.num_heads\[0\]"),
        ({"attention": {"heads": 1}}, r"holds no number attention\.heads"),
        ({"attention.num_heads": {"real": 1}}, "holds no number"),
        ({"nowhere": {"num_heads": 1}}, r"holds no number nowhere\.num_heads"),
        ({"attention": {"num_heads": 2}, "nowhere": {"x": 1}}, "holds no number"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_and_nothing_is_changed(attributes, message, tmp_path):
    model = family("transformer")
    packed_with(tmp_path / "m", model, json.dumps(attributes))

    check_that_it_is_refused(tmp_path / "m", model, UsageError, message)


@pytest.mark.parametrize(
    "attributes",
    [
        *("{", "[]", "7", "null", '{"a": 1}', '{"a": {"b": "c"}}', '{"a": {"b": true}}'),
        *('{"a": {"b[": 1}}', '{"a": {"": 1}}', '{"a": {"b": 1.5}}', "[" * 100_000),
    ],
)
def test_damaged_numbers_are_a_pack_error(attributes, tmp_path):
    model = family("transformer")
    packed_with(tmp_path / "m", model, attributes)

    check_that_it_is_refused(tmp_path / "m", model, PackError, "attributes is damaged")


def test_constants_in_biases_that_a_cut_made_are_replayed_and_loaded(tmp_path):
    def fresh():
        return nn.Sequential(
            nn.Conv2d(3, 6, 1), nn.Sigmoid(), nn.Conv2d(6, 4, 3, bias=False), nn.Conv2d(4, 2, 1)
        )

    model = random_(fresh())
    with torch.no_grad():
        model[0].weight[[1, 4]] = 0  # their sigmoids never change
    x = torch.randn(2, 3, 6, 6)

    result = flexrel.prune(
        model,
        calibration=[x],
        budgets=[flexrel.Parameters(0.8)],
        criterion=flexrel.Magnitude(),
        recover="none",
    )
    result.save(tmp_path)
    replayed = flexrel.apply(model, flexrel.Plan.load(tmp_path / "plan.json"))
    loaded = flexrel.load(tmp_path / "model.flexrel", into=fresh())

    assert not result.plan.masks["0"][[1, 4]].any()
    assert result.model[2].bias is not None
    for network in (replayed, loaded):
        assert torch.equal(network[2].bias, result.model[2].bias)
        assert torch.equal(network(x), result.model(x))
    wrong = {**result.model.state_dict(), "2.bias": torch.zeros(3)}
    with pytest.raises(UsageError, match=r"2\.bias is \[3\], the layer has 4 outputs"):
        fit(fresh(), wrong, "it")


# --- networks of any blocks ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["identity", "U-Net", "ResNeXt", "group norm", "transposed groups", "groups"]
)
def test_a_cut_image_network_reloads_into_a_fresh_one(name, tmp_path):
    check_a_reload(Images([name]), images(), tmp_path)


@pytest.mark.parametrize("name", ["by number", "stacked", "grouped, expanded"])
def test_a_cut_token_network_reloads_into_a_fresh_one(name, tmp_path):
    check_a_reload(Tokens([name], tied=True), sentences(), tmp_path)


def check_a_reload(model, inputs, folder):
    model = random_(model.double()).float()
    inputs = inputs.float() if inputs.is_floating_point() else inputs
    graph = analyse(model, batch(inputs), "channel")
    smaller = flexrel.apply(model, random_plan(graph, 3))
    flexrel.pack(smaller, folder / "model.flexrel")

    loaded = flexrel.load(folder / "model.flexrel", into=random_(copy.deepcopy(model), seed=9))

    sizes_are_true(loaded)
    with torch.no_grad():
        assert torch.equal(loaded(inputs), smaller(inputs))
