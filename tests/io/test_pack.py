"""Networks to packed files and back: nothing is lost, and what does not fit changes nothing."""

import copy
import functools
import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import flexrel_edge
from flexrel import ModelError, PackError, UsageError, load, pack
from flexrel.cli import main
from flexrel.io import encode, fit
from flexrel.structure import analyse, apply
from flexrel_edge.trust import write_keys
from networks import (
    Call,
    attributes_are_true,
    batch,
    bits,
    images,
    networks,
    random_,
    random_plan,
    same_bits,
    unchecked,
)

INPUTS = torch.linspace(-1, 1, 12).view(4, 3)


def small(seed=0):
    return random_(
        nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)), seed
    ).eval()


def cut(model, granularity, seed=1, inputs=INPUTS):
    return apply(model, random_plan(analyse(model, batch(inputs), granularity), seed))


def same_state(one, two):
    a, b = one.state_dict(), two.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


# --- there and back -----------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["element", "channel"])
def test_a_packed_network_loads_into_a_fresh_dense_one(granularity, tmp_path):
    pruned = cut(small(), granularity)
    size = pack(pruned, tmp_path / "model.flexrel").bytes

    fresh = small(seed=9)
    loaded = load(tmp_path / "model.flexrel", into=fresh)

    assert loaded is fresh
    assert size == (tmp_path / "model.flexrel").stat().st_size
    same_state(loaded, pruned)
    attributes_are_true(loaded)
    assert torch.equal(loaded(INPUTS), pruned(INPUTS))


@settings(max_examples=25, derandomize=True)
@given(
    model=networks(), seed=st.integers(0, 999), granularity=st.sampled_from(["element", "channel"])
)
def test_any_pruned_network_survives_the_file(model, seed, granularity, tmp_path_factory):
    model = model.float()
    fresh = random_(copy.deepcopy(model), seed=77)
    inputs = images().float()
    try:
        pruned = cut(model, granularity, seed, inputs)
    except ModelError:
        return
    path = tmp_path_factory.mktemp("pack") / "model.flexrel"

    pack(pruned, path)
    load(path, into=fresh)

    same_state(fresh, pruned)
    attributes_are_true(fresh)
    assert torch.equal(fresh.eval()(inputs), pruned.eval()(inputs))


def test_the_edge_reads_what_was_packed(tmp_path):
    pruned = cut(small(), "element")
    pack(pruned, tmp_path / "m")

    arrays = flexrel_edge.read(tmp_path / "m")

    assert arrays.keys() == pruned.state_dict().keys()
    for name, tensor in pruned.state_dict().items():
        assert np.array_equal(arrays[name], tensor.numpy())


def test_a_file_with_zeros_is_smaller_and_one_without_channels_too():
    dense = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    sizes = {
        g: len(encode(cut(dense, g, inputs=torch.ones(2, 64)))) for g in ("element", "channel")
    }

    assert max(sizes.values()) < 0.7 * len(encode(dense))  # about half of the units went


def test_tied_weights_are_packed_once_and_stay_tied(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
        model[1].weight = model[0].weight
        return model

    model, untied = tied(), copy.deepcopy(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)))
    size = pack(model, tmp_path / "m").bytes
    fresh = load(tmp_path / "m", into=tied())

    assert size < 0.7 * len(encode(untied))
    assert fresh[1].weight is fresh[0].weight
    same_state(fresh, model)
    same_state(load(tmp_path / "m", into=untied), model)


def test_a_network_is_loaded_from_those_who_are_trusted(tmp_path):
    path, network = tmp_path / "n.flexrel", nn.Linear(3, 2)
    pack(network, path)
    write_keys(tmp_path / "a.key", tmp_path / "a.pub")
    with pytest.raises(PackError, match="is not signed"):
        load(path, nn.Linear(3, 2), trust=tmp_path / "a.pub")

    assert main(["sign", str(path), "--key", str(tmp_path / "a.key")]) == 0

    loaded = load(path, nn.Linear(3, 2), trust=tmp_path / "a.pub")
    assert torch.equal(loaded.weight, network.weight)


def test_tied_layers_that_were_cut_load_tied(tmp_path):
    def tied():
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)), nn.Linear(4, 2))
        model[2].weight = model[1].weight
        return model

    pruned = cut(tied(), "channel", inputs=torch.ones(2, 4))
    assert pruned[1].weight.shape != (4, 4)
    pack(pruned, tmp_path / "m")

    fresh = load(tmp_path / "m", into=tied())

    assert fresh[2].weight is fresh[1].weight
    same_state(fresh, pruned)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_packed_as_they_are(dtype, tmp_path):
    model = small().to(dtype)
    pack(model, tmp_path / "m")

    same_state(load(tmp_path / "m", into=small(3).to(dtype)), model)


def test_buffers_whole_numbers_and_odd_values_survive(tmp_path):
    def odd():
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        model.register_buffer("table", torch.arange(6).view(2, 3))
        model.register_buffer("flags", torch.tensor([True, False]))
        model.register_buffer("empty", torch.zeros(0, 3))
        model.register_buffer("passing", torch.ones(3), persistent=False)
        return model

    model = odd()
    model[1].num_batches_tracked.fill_(12345)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.5, -torch.inf], [1e-42, 0.0]]))
        model[1].running_mean.copy_(torch.tensor([torch.nan, -1.0]))
    pack(model, tmp_path / "m")

    fresh = load(tmp_path / "m", into=odd())

    assert same_bits((bits(fresh)[0], *bits(model)[1:]), bits(model))
    assert "passing" not in flexrel_edge.read(tmp_path / "m")


# --- on the meta device, and wrapped ------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["element", "channel"])
def test_a_network_on_the_meta_device_is_loaded_to_the_cpu(granularity, tmp_path):
    pruned = cut(small(), granularity)
    pack(pruned, tmp_path / "m")
    with torch.device("meta"):
        shell = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))

    fresh = load(tmp_path / "m", into=shell.eval())

    assert fresh is shell
    assert not any(t.is_meta for t in (*fresh.parameters(), *fresh.buffers()))
    same_state(fresh, pruned)
    assert all(p.requires_grad for p in fresh.parameters())
    with torch.no_grad():
        assert torch.equal(fresh(INPUTS), pruned(INPUTS))


def test_tied_weights_on_the_meta_device_stay_one(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model

    model = tied()
    pack(model, tmp_path / "m")
    with torch.device("meta"):
        shell = tied()

    fresh = load(tmp_path / "m", into=shell)

    assert fresh[0].weight is fresh[1].weight
    same_state(fresh, model)


def test_a_buffer_on_the_meta_device_that_no_file_has_is_refused(tmp_path):
    def table():
        model = small()
        model.register_buffer("table", torch.ones(3), persistent=False)
        return model

    pack(table(), tmp_path / "m")
    shell = table().to("meta")

    with pytest.raises(UsageError, match=r"m holds no table, .* make the network on the CPU"):
        load(tmp_path / "m", into=shell)

    assert all(tensor.is_meta for tensor in (*shell.parameters(), *shell.buffers()))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, on compiling
@pytest.mark.parametrize(
    "wrap", [torch.compile, nn.DataParallel, lambda m: torch.compile(nn.DataParallel(m))]
)
def test_a_wrapped_network_is_packed_and_loaded_under_the_names_inside(wrap, tmp_path):
    pruned = cut(small(), "channel")
    pack(pruned, tmp_path / "plain")
    pack(wrap(pruned), tmp_path / "wrapped")
    inside = small(5)
    wrapped = wrap(inside)

    fresh = load(tmp_path / "plain", into=wrapped)

    assert (tmp_path / "plain").read_bytes() == (tmp_path / "wrapped").read_bytes()
    assert fresh is wrapped
    same_state(inside, pruned)


# --- float16 ------------------------------------------------------------------------------------


def test_float16_values_are_within_rounding_and_the_model_stays_float32(tmp_path):
    model = small()
    before = bits(model)
    pack(model, tmp_path / "m", values="float16")

    fresh = load(tmp_path / "m", into=small(5))

    assert same_bits(bits(model), before)
    for name, tensor in model.state_dict().items():
        found = fresh.state_dict()[name]
        assert found.dtype == tensor.dtype
        if tensor.is_floating_point():  # 11 significant bits, or steps of 2^-24 below 2^-14
            bound = torch.clamp(tensor.abs() * 2**-11, min=2**-25)
            assert bool(((found - tensor).abs() <= bound).all())
        else:
            assert torch.equal(found, tensor)


def test_float16_files_are_smaller():
    model = nn.Linear(100, 100)

    assert len(encode(model, "float16")) < 0.6 * len(encode(model))


def test_a_value_that_float16_can_not_hold_is_refused(tmp_path):
    model = small()
    with torch.no_grad():
        model[3].weight[1, 2] = -70_000.0

    with pytest.raises(UsageError, match=r"3\.weight has a value of 7e\+04, which float16"):
        pack(model, tmp_path / "m", values="float16")

    assert not list(tmp_path.iterdir())
    with torch.no_grad():
        model[3].weight[1, 2] = -65_504.0  # the largest
    pack(model, tmp_path / "m", values="float16")


def test_an_unknown_precision_is_refused_with_those_that_are_known():
    with pytest.raises(UsageError, match="'int5' is not known; there are: float32, bfloat16"):
        unchecked(encode)(small(), "int5")


def test_state_that_is_no_tensor_is_refused():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"version": 1}

    with pytest.raises(UsageError, match="_extra_state is a dict; only tensors can be packed"):
        encode(Extra(2, 2))


# --- what does not fit --------------------------------------------------------------------------


def check_that_it_does_not_fit(path, into, message, error=UsageError):
    before = bits(into)

    with pytest.raises(error, match=message) as caught:
        load(path, into=into)

    assert same_bits(bits(into), before)
    return caught.value


def test_missing_and_unexpected_names_are_refused_and_nothing_is_changed(tmp_path):
    pack(small(), tmp_path / "m")
    more = nn.Sequential(*small(), nn.Linear(2, 2))
    fewer = small()[:3]

    error = check_that_it_does_not_fit(
        tmp_path / "m", more, r"it lacks 2 of the 11 tensors in the model: 4\.bias, 4\.weight"
    )
    check_that_it_does_not_fit(
        tmp_path / "m", fewer, r"not, 2 of the 9 tensors in the file: 3\.bias, 3\.weight"
    )

    assert error.exit_code == 2
    assert str(tmp_path / "m") in str(error)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Linear(2, 6), r"0\.weight is \[6, 3\], the model's is \[6, 2\]"),
        (nn.Conv1d(3, 6, 1), r"0\.weight is \[6, 3\], the model's is \[6, 3, 1\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_and_nothing_is_changed(layer, message, tmp_path):
    pack(nn.Sequential(nn.Linear(3, 6)), tmp_path / "m")

    check_that_it_does_not_fit(tmp_path / "m", nn.Sequential(layer), message)


@pytest.mark.parametrize(
    "kind",
    [
        functools.partial(nn.LSTM, num_layers=2, bidirectional=True),
        functools.partial(nn.LSTM, proj_size=1),
        functools.partial(nn.GRU, bias=False),
        nn.RNN,
        nn.LSTMCell,
        nn.GRUCell,
    ],
)
def test_a_recurrent_layer_takes_fewer_units_as_one_that_was_made_so(kind, tmp_path):
    narrow, wide = kind(3, 2), kind(5, 4)
    pack(narrow, tmp_path / "m")
    x = torch.randn(6, 3)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections")
        given, wanted = load(tmp_path / "m", wide)(x), narrow(x)

    assert torch.equal(given[0], wanted[0])
    assert wide.extra_repr() == narrow.extra_repr()


@pytest.mark.parametrize(
    ("name", "axis"),
    [
        ("weight_ih_l0", 0),
        ("weight_hh_l1", 0),
        ("weight_hh_l0", 1),
        ("weight_ih_l1", 1),
        ("bias_hh_l1", 0),
    ],
)
def test_a_recurrent_layer_takes_no_units_that_differ_from_part_to_part(name, axis):
    into = nn.LSTM(6, 4, num_layers=2)
    before = copy.deepcopy(into.state_dict())
    state = nn.LSTM(3, 2, num_layers=2).state_dict()
    state[name] = torch.cat([state[name], state[name]], axis)

    with pytest.raises(UsageError, match=r"LSTM of [24] units, takes \["):
        fit(into, state, "state")

    assert all(torch.equal(before[name], value) for name, value in into.state_dict().items())


def test_a_recurrent_layer_takes_no_weights_of_another_kind(tmp_path):
    pack(nn.GRU(3, 4), tmp_path / "m")

    with pytest.raises(UsageError, match=r"weight_hh_l0 is \[12, 4\].*LSTM of 3 units"):
        load(tmp_path / "m", nn.LSTM(3, 4))


def test_a_recurrent_layer_takes_fewer_inputs_of_both_directions_alike(tmp_path):
    narrow, wide = (nn.GRU(size, 4, bidirectional=True) for size in (3, 5))
    pack(narrow, tmp_path / "m")
    x = torch.randn(2, 6, 3)

    assert torch.equal(load(tmp_path / "m", wide)(x)[0], narrow(x)[0])

    state = {**narrow.state_dict(), "weight_ih_l0_reverse": torch.zeros(12, 2)}
    with pytest.raises(UsageError, match=r"weight_ih_l0_reverse is \[12, 2\].*takes \[12, 3\]"):
        fit(nn.GRU(5, 4, bidirectional=True), state, "state")


def test_two_tensors_for_what_is_one_in_the_model_are_refused(tmp_path):
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    pack(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), tmp_path / "m")

    check_that_it_does_not_fit(tmp_path / "m", tied, r"0\.weight and 1\.weight differ in it")


def test_a_missing_file_is_wrong_usage(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        check_that_it_does_not_fit(path, small(), "no such file")


@settings(max_examples=60, derandomize=True)
@given(data=st.data())
def test_a_damaged_file_is_a_pack_error_and_nothing_is_changed(data, tmp_path_factory):
    whole = bytearray(encode(small()))
    at = data.draw(st.integers(0, len(whole) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "extend"]))
    if how == "flip":
        whole[at] ^= data.draw(st.integers(1, 255))
    damaged = {"flip": whole, "cut": whole[:at], "extend": whole + b"\0"}[how]
    path = tmp_path_factory.mktemp("damaged") / "m"
    path.write_bytes(damaged)

    error = check_that_it_does_not_fit(path, small(4), "^/", PackError)

    assert error.exit_code == 5
    assert str(path) in str(error)


@pytest.mark.parametrize(
    "tied",
    ["{", "[]", "7", '{"0.bias": "none"}', '{"0.bias": ["0.weight"]}', '{"0.bias": {}}', "null"],
)
def test_a_damaged_list_of_tied_tensors_is_a_pack_error(tied, tmp_path):
    arrays = {"0.weight": np.zeros((2, 2), np.float32)}
    flexrel_edge.write(tmp_path / "m", arrays, metadata={"tied": tied})

    into = nn.Sequential(nn.Linear(2, 2))
    check_that_it_does_not_fit(tmp_path / "m", into, "tied tensors is damaged", PackError)


def test_a_failed_write_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "m"
    pack(small(), path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        pack(small(1), path)

    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_encoding_is_a_function_of_the_state_alone():
    model, other = small(), small()
    other.train()
    other[0].weight.requires_grad_(False)

    assert encode(model) == encode(other) == encode(copy.deepcopy(model))
    assert encode(model) != encode(small(1))


def test_tied_names_are_in_the_metadata_as_json():
    model = nn.Sequential(nn.Linear(2, 2), Call(torch.relu), nn.Linear(2, 2))
    model[2].weight = model[0].weight

    packed = flexrel_edge.decode(encode(model))

    assert json.loads(packed.metadata["tied"]) == {"2.weight": "0.weight"}
