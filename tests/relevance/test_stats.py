"""RelevanceStats are a commutative monoid over calibration sets, and survive a file exactly."""

import json
import pickle
from functools import reduce
from operator import add

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flexrel import FlexrelError, PackError, RelevanceStats, UsageError, calibrate
from flexrel.relevance import LayerRelevance

FIELDS = (
    *("input", "output", "input_absolute", "output_absolute"),
    *("input_samples", "output_samples"),
)


def network(seed=0):
    """Grouped convolution -> relu -> flatten -> linear; float64."""
    draw = torch.Generator().manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).double()
    made.requires_grad_(False)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return made


def images(count, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 4, 4, generator=draw, dtype=torch.float64)


def assert_same(one, two, tolerance=0.0):
    """All sums, counts and marks agree; `tolerance` is relative to each vector's largest value."""
    assert set(one) == set(two)
    assert one.samples == pytest.approx(two.samples, rel=tolerance, abs=0)
    assert (one.rule, one.output) == (two.rule, two.output)
    for name in one:
        assert one[name].groups == two[name].groups
        for field in FIELDS:
            a, b = (stats[name].sums()[field] for stats in (one, two))
            assert a.dtype == b.dtype == torch.float64
            assert a.shape == b.shape
            assert (a - b).abs().max() <= tolerance * b.abs().max()


def made(x):
    return calibrate(network(), x, output="predicted")


def test_stats_of_two_sets_add_up_to_those_of_both():
    first, second = images(4), images(3, seed=2)

    assert_same(made([first]) + made([second]), made([first, second]), 1e-12)


@settings(max_examples=15)
@given(cuts=st.sets(st.integers(1, 7)))
def test_any_split_into_batches_gives_the_same(cuts):
    x = images(8)
    batches = torch.tensor_split(x, sorted(cuts))

    assert_same(made(batches), made([x]), 1e-9)


@settings(max_examples=10)
@given(cuts=st.sets(st.integers(1, 7)), order=st.randoms(use_true_random=False))
def test_any_order_and_grouping_of_summands_gives_the_same(cuts, order):
    x = images(8)
    summands = [made([part]) for part in torch.tensor_split(x, sorted(cuts))]
    order.shuffle(summands)

    assert_same(reduce(add, summands), made([x]), 1e-9)


def test_addition_commutes_to_the_bit_and_associates():
    a, b, c = (made([images(3, seed)]) for seed in (1, 2, 3))

    assert_same(a + b, b + a)
    assert_same((a + b) + c, a + (b + c), 1e-12)


def test_samples_are_counted():
    both = made([images(4), images(3)]) + made([images(5)])

    assert both.samples == 12


def test_scaling_scales_every_sum_and_the_count():
    a = made([images(4)])
    half = a.scaled(0.5)

    assert half.samples == 2
    assert_same(half + half, a)  # halves are exact
    for name in a:
        for field in FIELDS:
            assert torch.equal(getattr(half[name], field) * 2, getattr(a[name], field))


def test_twice_the_set_is_twice_the_stats():
    assert_same(made([images(4), images(4)]), made([images(4)]).scaled(2.0), 1e-12)


def test_adding_leaves_the_summands_alone():
    a, b = made([images(3)]), made([images(2)])
    before = a["0"].input.clone()

    _ = a + b

    assert torch.equal(a["0"].input, before)
    assert a.samples == 3


def test_stats_are_a_mapping_of_layer_names_in_order():
    stats = made([images(2)])

    assert list(stats) == ["0", "3"]
    assert len(stats) == 2
    assert "1" not in stats
    with pytest.raises(KeyError):
        stats["1"]


def test_the_parts_fit_each_other():
    # absolute = positive + negative parts, sum = positive - negative
    for layer in made([images(5)]).values():
        parts = ("sum", "positive", "absolute", "sample")
        for plain, positive, absolute, sample in zip(*map(layer.vectors, parts), strict=True):
            assert (positive >= 0).all()
            torch.testing.assert_close(positive - (absolute - positive), plain)
            by_channel = sample.reshape(len(sample), -1)
            assert torch.equal(by_channel, by_channel[:, :1].expand_as(by_channel))
        assert (layer.output_samples >= layer.output.abs() - 1e-12).all()
        assert (layer.output_samples <= layer.output_absolute + 1e-12).all()


# --- what does not add --------------------------------------------------------------------------


def layer(inputs=(2,), outputs=3, groups=1):
    return LayerRelevance(
        torch.ones(inputs, dtype=torch.float64),
        torch.ones(outputs, dtype=torch.float64),
        torch.ones(inputs, dtype=torch.float64),
        torch.ones(outputs, dtype=torch.float64),
        groups,
    )


def stats(rule="gradient-input", output="norm", **layers):
    return RelevanceStats(layers or {"a": layer()}, 1.0, rule, output)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (stats(rule="epsilon"), "'gradient-input'.*'epsilon'"),
        (stats(output="label"), "'norm'.*'label'"),
        (stats(a=layer(), b=layer()), "only one of them has b$"),
        (stats(b=layer()), "only one of them has a, b$"),
        (stats(a=layer(inputs=(4,))), r"\(\(2,\), 3, 1, False\).*\(\(4,\), 3, 1, False\)"),
        (stats(a=layer(outputs=4)), r"\(\(2,\), 3, 1, False\).*\(\(2,\), 4, 1, False\)"),
        (stats(a=layer(inputs=(2, 1))), "different shapes"),
        (stats(a=layer(outputs=4, groups=2)), "different shapes"),
        (stats(a=layer(), b=layer(), c=layer(), d=layer(), e=layer()), r"has b, c, d \.\.\.$"),
    ],
)
def test_strangers_refuse_to_add_and_say_why(other, says, unchecked):
    with pytest.raises(UsageError, match=says) as caught:
        stats() + other
    with pytest.raises(UsageError):
        other + stats()

    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_an_unknown_part_is_refused(unchecked):
    with pytest.raises(
        UsageError, match="'median' of relevance is not one of sum, positive, absolute"
    ):
        layer().vectors("median")


@pytest.mark.parametrize(
    ("inputs", "outputs", "absolutes", "groups"),
    [
        ((2,), (3,), ((3,), (3,)), 1),  # absolute parts of another shape
        ((2,), (3,), ((2,), (4,)), 1),
        ((4, 3), (3,), ((4, 3), (3,)), 2),  # outputs don't divide by groups
        ((3, 3), (4,), ((3, 3), (4,)), 2),  # inputs don't
        ((2,), (3,), ((2,), (3,)), 0),
        ((2,), (3,), ((2,), (3,)), -1),
        ((), (3,), ((), (3,)), 1),
    ],
)
def test_sums_of_no_layer_are_refused(inputs, outputs, absolutes, groups, unchecked):
    tensors = [torch.zeros(shape) for shape in (inputs, outputs, *absolutes)]

    with pytest.raises(UsageError, match="is not that of one layer"):
        LayerRelevance(*tensors, groups)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", range(4))
def test_sums_that_are_not_finite_are_refused(value, at):
    tensors = [torch.zeros(2) for _ in range(4)]
    tensors[at][1] = value

    with pytest.raises(UsageError, match="NaN or an infinity"):
        LayerRelevance(*tensors)


# --- files --------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """RelevanceStats with awkward numbers, and the file that they were saved to."""
    original = made([images(3)]).scaled(1 / 3)
    original.save(tmp_path / "stats")
    return original, tmp_path / "stats"


def test_a_file_gives_back_exactly_what_was_saved(saved):
    original, path = saved

    assert_same(RelevanceStats.load(path), original)
    assert_same(RelevanceStats.load(str(path)), original)


def test_a_file_keeps_the_names_of_layers_whatever_they_are(tmp_path):
    original = stats(**{"": layer(), "a|b": layer((4, 3), 2, 2), "blöck.0": layer()})
    original.save(tmp_path / "stats")

    assert_same(RelevanceStats.load(tmp_path / "stats"), original)


def test_sums_that_share_memory_can_be_saved(tmp_path):
    ones = torch.ones(3, dtype=torch.float64)
    original = stats(a=LayerRelevance(ones, ones, ones, ones))
    original.save(tmp_path / "stats")

    assert_same(RelevanceStats.load(tmp_path / "stats"), original)


def test_the_same_stats_make_the_same_bytes(saved, tmp_path):
    original, path = saved
    RelevanceStats.load(path).save(tmp_path / "again")
    original.save(tmp_path / "stats")  # over a file that was loaded from

    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_stats_that_were_loaded_add(saved):
    original, path = saved

    assert_same(RelevanceStats.load(path) + original, original.scaled(2.0))


@pytest.mark.parametrize("missing", ["nowhere", "."])
def test_a_missing_file_is_named(tmp_path, missing):
    with pytest.raises(UsageError, match="no such file") as caught:
        RelevanceStats.load(tmp_path / missing)

    assert str(tmp_path) in str(caught.value)


def refusal(path, data):
    path.write_bytes(data)
    with pytest.raises(PackError) as caught:
        RelevanceStats.load(path)
    message = str(caught.value)
    assert caught.value.exit_code == 5
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_a_file_cut_short_anywhere_is_refused(saved):
    _, path = saved
    data = path.read_bytes()

    for length in [*range(64), *range(64, len(data), 37), len(data) - 1]:
        refusal(path, data[:length])
    refusal(path, data + b"\0")


def test_other_files_are_refused(saved):
    _, path = saved

    refusal(path, pickle.dumps({"a": 1}))
    refusal(path, safetensors.torch.save({"weight": torch.ones(2)}))
    refusal(path, safetensors.torch.save({"weight": torch.ones(2)}, {"about": "no JSON"}))
    refusal(path, safetensors.torch.save({"weight": torch.ones(2)}, {"about": "[" * 100_000}))


def test_another_version_is_refused_with_both_named(saved):
    _, path = saved

    message = refusal(path, edited(path.read_bytes(), lambda about: about | {"version": 2}))

    assert "flexrel-statistics version 2, expected flexrel-statistics version 3" in message


def edited(data, change):
    """The file with its description changed, and its tensors as they were."""
    tensors = safetensors.torch.load(data)
    length = int.from_bytes(data[:8], "little")
    about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["about"])
    return safetensors.torch.save(tensors, {"about": json.dumps(change(about))})


def kept(groups=1, tied=()):
    return {"groups": groups, "transposed": False, "tied": tied}


@pytest.mark.parametrize(
    "change",
    [
        list,
        lambda about: "text",
        lambda about: None,
        lambda about: {},
        lambda about: about | {"format": "other"},
        lambda about: about | {"samples": "many"},
        lambda about: about | {"samples": float("nan")},
        lambda about: about | {"samples": float("inf")},
        lambda about: about | {"samples": -1},
        lambda about: about | {"rule": 3},
        lambda about: about | {"output": None},
        lambda about: about | {"model": 5},
        lambda about: about | {"layers": ["0", "3"]},
        lambda about: about | {"layers": 5},
        lambda about: about | {"layers": {"0": kept(groups=3), "3": kept()}},
        lambda about: about | {"layers": {"0": kept(groups=0), "3": kept()}},
        lambda about: about | {"layers": {"0": kept(groups=None), "3": kept()}},
        lambda about: about | {"layers": {"0": kept(tied=5), "3": kept()}},
        lambda about: about | {"layers": {"0": {"groups": 1}, "3": kept()}},
        lambda about: about | {"layers": {"0": kept(groups=2), "4": kept()}},
        lambda about: about | {"balances": 5},
        lambda about: about | {"unmeasured": 5},
        lambda about: about | {"balances": [{}]},
        *(lambda about, key=key: {k: v for k, v in about.items() if k != key}
          for key in ("format", "version", "samples", "rule", "output", "layers", "model",
                      "balances", "unmeasured")),
    ],
)  # fmt: skip
def test_a_description_that_does_not_fit_is_refused(saved, change):
    _, path = saved

    refusal(path, edited(path.read_bytes(), change))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.float(),
        lambda tensor: tensor[:-1],
        lambda tensor: tensor / 0,
        lambda tensor: tensor * float("nan"),
    ],
)
@pytest.mark.parametrize("field", FIELDS)
def test_tensors_that_do_not_fit_are_refused(saved, field, change, unchecked):
    _, path = saved
    tensors = safetensors.torch.load(path.read_bytes())
    with safetensors.safe_open(path, framework="pt") as file:
        about = file.metadata()
    tensors[f"3|{field}"] = change(tensors[f"3|{field}"])

    refusal(path, safetensors.torch.save(tensors, about))


def test_a_damaged_byte_is_refused_or_means_just_what_it_says(tmp_path, unchecked):
    path = tmp_path / "stats"
    stats(a=layer((2,), 2)).save(path)
    data = path.read_bytes()

    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x11]) + data[at + 1 :])
        try:
            loaded = RelevanceStats.load(path)
        except FlexrelError as error:
            assert "\n" not in str(error), data  # noqa: PT017 - most are refused, some are not
            continue
        loaded.save(tmp_path / "again")
        assert_same(RelevanceStats.load(tmp_path / "again"), loaded)
