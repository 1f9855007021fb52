"""A plan says what it does, is written whole, and is read only if it is what was written."""

import copy
import json
import random
import re
from dataclasses import fields, is_dataclass
from functools import cache

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import flexrel
from families import FAMILIES, family, numbers_are_true
from flexrel import FlexrelError, PackError, Plan, UsageError
from flexrel.cli import main
from flexrel.core import cost
from flexrel.core.plan import changes
from flexrel.core.plan.write import runs
from flexrel.structure import analyse
from networks import (
    attributes_are_true,
    batch,
    bits,
    images,
    macs_by_hooks,
    networks,
    random_,
    random_plan,
    same_bits,
)

INPUTS = images(4).float()


def plan_for(model, seed=1, granularity="channel", inputs=INPUTS, keep=()):
    plan = random_plan(analyse(model, batch(inputs), granularity, keep), seed)
    return Plan(plan.graph, plan.masks)


@pytest.fixture(scope="module")
def plans():
    return all_plans()


@cache
def all_plans():
    """A plan of each family, and one of single weights."""
    made = {name: plan_for(family(name)) for name in FAMILIES}
    return made | {"weights": plan_for(family("grouped"), granularity="element")}


def alike(one, two):
    """Whether two records are equal, field by field, down to the tensors."""
    if isinstance(one, Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return list(one) == list(two) and all(alike(one[key], two[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(two) and all(map(alike, one, two))
    if is_dataclass(one):
        names = [field.name for field in fields(one)]
        return type(one) is type(two) and all(
            alike(getattr(one, n), getattr(two, n)) for n in names
        )
    return type(one) is type(two) and one == two


# --- there and back -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FAMILIES, "weights"])
def test_a_plan_is_read_as_it_was_written(name, plans, tmp_path):
    plan = plans[name]
    plan.save(tmp_path / "plan.json")

    read = Plan.load(tmp_path / "plan.json")

    assert alike(read, plan)
    assert read.encode() == plan.encode() == (tmp_path / "plan.json").read_bytes()


@settings(max_examples=40, derandomize=True)
@given(
    model=networks(), seed=st.integers(0, 99), granularity=st.sampled_from(["element", "channel"])
)
def test_any_plan_makes_the_same_network_again(model, seed, granularity, tmp_path_factory):
    try:
        plan = plan_for(model, seed, granularity, images())
    except flexrel.ModelError:
        assume(False)
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    plan.save(path)

    again = flexrel.apply(copy.deepcopy(model), Plan.load(path))

    assert same_state(again, flexrel.apply(model, plan))
    attributes_are_true(again)


def same_state(one, two):
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_plan_makes_other_weights_of_the_same_network_smaller_too(plans):
    model = family("transformer", seed=5).train()
    before = bits(model)

    pruned = flexrel.apply(nn.DataParallel(model), plans["transformer"])

    assert same_bits(bits(model), before)
    assert pruned.training
    numbers_are_true(pruned)
    whole = plans["transformer"].graph
    assert sum(p.numel() for p in pruned.parameters()) == cost.parameters(
        whole, plans["transformer"].masks
    )


def ranges(found):
    return [value for run in found for value in range(*run)]


@given(st.lists(st.integers(0, 40), unique=True) | st.lists(st.integers(0, 9)))
def test_runs_give_their_values(values):
    assert ranges(runs(torch.tensor(values, dtype=torch.int64).numpy())) == values


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (range(5, 900), [[5, 900]]),
        (range(3, 900, 7), [[3, 906, 7]]),  # 3, 10, ..., 899
        ([4], [[4, 5]]),
        ([0, 1, 2, 9, 10], [[0, 3], [9, 11]]),
        ([1, 5, 6, 7], [[1, 2], [5, 8]]),
        ([9, 6, 3, 0], [[9, -3, -3]]),
        ([], []),
    ],
)
def test_runs_are_few(values, expected):
    assert runs(torch.tensor(list(values), dtype=torch.int64).numpy()) == expected


@pytest.mark.parametrize("turn", [False, True])
def test_a_stripe_of_features_is_one_line(turn, tmp_path):
    """4 channels of 25 features each, one after the other or interleaved: [unit, place]."""
    model = nn.Sequential(nn.Conv2d(3, 4, 4), nn.Flatten(), nn.Linear(100, 2))
    if turn:
        model.insert(1, Last())

    plan = plan_for(model)
    plan.save(tmp_path / "plan.json")

    written = plan.as_json()
    assert alike(Plan.load(tmp_path / "plan.json"), plan)
    (group,) = written["groups"]
    (stripe,) = [part for part in group["members"] if part["role"] == "consumer"]
    assert (stripe["each"], stripe["by"]) == (25, "places" if turn else "units")
    assert stripe["index"] == [[0, 100]]


class Last(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


def test_masks_of_weights_take_a_bit_each():
    model = nn.Sequential(nn.Linear(500, 400))
    plan = plan_for(model, granularity="element", inputs=torch.ones(2, 500))

    assert 500 * 400 / 8 < len(plan.encode()) < 1.4 * 500 * 400 / 8  # base64: 4 letters for 3


# --- what is damaged or foreign -----------------------------------------------------------------


def refused(path, data):
    path.write_bytes(data)

    with pytest.raises(PackError) as caught:
        Plan.load(path)

    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(max_examples=50, derandomize=True)
@given(data=st.data())
def test_a_plan_that_is_cut_short_or_goes_on_is_refused(data, tmp_path_factory):
    whole = all_plans()[data.draw(st.sampled_from(["grouped", "weights"]))].encode()
    path = tmp_path_factory.mktemp("plan") / "plan.json"

    refused(path, whole[: data.draw(st.integers(0, len(whole) - 3))])
    refused(path, whole + b"{")


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "7", "null", "{}", "[" * 100_000, "\xff", "PK\x03\x04"),
        '{"format": "flexrel-plan"}',
        '{"format": "flexrel-plan", "version": 2}',
        '{"format": "flexrel-plan", "version": 1}',
        '{"format": "other", "version": 1}',
        '{"format": 1, "format": 2}',
    ],
)
def test_what_is_no_plan_is_refused(text, tmp_path):
    refused(tmp_path / "plan.json", text.encode("latin-1"))


def places(value, path=()):
    """Yield the path of every value inside a value of JSON."""
    yield path
    if isinstance(value, dict | list):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(entry, (*path, key))


WRONG = [
    None,
    True,
    -1,
    0,
    1,
    7,
    10**13,
    10**400,
    1.5,
    "",
    "x",
    "\ud800",
    [],
    [[]],
    {},
    [1, 2],
    "AAAA",
]


@pytest.mark.parametrize("name", ["grouped", "transformer", "scaled", "weights"])
@settings(max_examples=150, derandomize=True)
@given(seed=st.integers(0, 10**9))
def test_a_plan_in_which_anything_is_wrong_is_refused_or_carried_out(name, seed, tmp_path_factory):
    """No other error, and nothing cut in the model that was given."""
    draw = random.Random(seed)  # noqa: S311 - of a test
    content = holder = json.loads(all_plans()[name].encode())
    *path, last = draw.choice([*places(content)][1:])
    for key in path:
        holder = holder[key]
    if draw.random() < 0.8:
        holder[last] = draw.choice(WRONG)
    else:
        del holder[last]
    file = tmp_path_factory.mktemp("plan") / "plan.json"
    file.write_text(json.dumps(content))
    model = family("grouped" if name == "weights" else name)
    before, caught = bits(model), None

    try:
        read = Plan.load(file)
        read.explain()
        flexrel.apply(model, read)
    except FlexrelError as error:
        caught = error

    assert caught is None or caught.exit_code in {2, 5}
    assert "\n" not in str(caught).encode().decode()
    assert same_bits(bits(model), before)


def edited(plan, change):
    content = json.loads(plan.encode())
    change(content)
    return json.dumps(content).encode()


def part(content, tensor):
    return next(p for s in content["groups"] for p in s["members"] if p["tensor"] == tensor)


def groups(content):
    return next(a for a in content["attributes"] if a["name"] == "groups")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("grouped", lambda c: c["groups"][0].update(kept=1), r"keeps 1, but \d do"),
        ("grouped", lambda c: c["groups"][0].update(keep=[], kept=0), "keeps none"),
        (
            "grouped",
            lambda c: c["groups"][0].update(keep=[[0, 9]]),
            r"run \[0, 9\], of 8 positions",
        ),
        ("grouped", lambda c: c["groups"][0].update(shape=[9]), r"8 units and the shape \[9\]"),
        ("grouped", lambda c: c["groups"].append(c["groups"][0]), "two of its groups"),
        ("grouped", lambda c: c.update(granularity="filter"), "'filter' is not known"),
        ("grouped", lambda c: c.update(more=1), "expected format, version"),
        ("grouped", lambda c: part(c, "stem.weight").update(index=[[1, 9]]), "of 8 positions"),
        ("grouped", lambda c: part(c, "stem.weight").update(index=[[-1, 7]]), "of 8 positions"),
        ("grouped", lambda c: part(c, "stem.weight").update(index=[[0, 7]]), "7 positions for 8"),
        ("grouped", lambda c: part(c, "stem.weight").update(index=[[0, 7], [0, 1]]), "twice"),
        ("grouped", lambda c: part(c, "stem.weight").update(index=[[0, 8, 0]]), "has a run"),
        ("grouped", lambda c: part(c, "stem.weight").update(axis=4), "along axis 4"),
        ("grouped", lambda c: part(c, "stem.weight").update(role="owner"), "'owner'"),
        ("grouped", lambda c: part(c, "norm1.running_mean").update(index=[[0, 2**40]]), "2.* pos"),
        ("grouped", lambda c: c["uses"].append(["nowhere", 1]), "'nowhere', which has no shape"),
        ("grouped", lambda c: c["shapes"].update(more=[2**40]), "larger than any"),
        ("weights", lambda c: c["groups"][0].update(keep="!"), "mask of .* is damaged"),
        ("weights", lambda c: c["groups"][0].update(keep=""), "has not the bits of"),
        (
            "weights",
            lambda c: c["groups"][0].update(keep=c["groups"][1]["keep"]),
            "has not the bits",
        ),
        (
            "weights",
            lambda c: c["groups"][0].update(shape=[2**39], units=2**39),
            f"bits of {2**39} units",
        ),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(name, change, message, plans, tmp_path):
    said = refused(tmp_path / "plan.json", edited(plans[name], change))

    assert re.search(message, said), said


def test_a_missing_plan_is_wrong_usage(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match="no such file"):
            Plan.load(path)


class Wider(FAMILIES["grouped"]):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 4)


class Renamed(FAMILIES["grouped"]):
    def __init__(self):
        super().__init__()
        self.tail = self.head
        del self.head


class Strided(FAMILIES["grouped"]):
    def __init__(self):
        super().__init__()
        self.grouped.stride = (2, 2)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Wider, r"head\.weight is \[4, 8\], the plan's is \[3, 8\]"),
        (Renamed, r"the model lacks head\.bias"),
        (lambda: family("normed"), "the plan does not know first.bias|the model lacks"),
        (Strided, ".*, but its modules are others"),
    ],
)
@pytest.mark.parametrize("name", ["grouped", "weights"])
def test_a_plan_of_another_network_is_refused(name, model, message, plans):
    stranger = model()
    before = bits(stranger)

    with pytest.raises(UsageError, match=f"of another network: ({message})") as caught:
        flexrel.apply(stranger, plans[name])

    assert caught.value.exit_code == 2
    assert same_bits(bits(stranger), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: part(c, "norm1.running_mean").update(index=[[1, 13]]),
            r"norm1\.running_mean is \[12\], without position 12 along axis 0",
        ),
        (lambda c: part(c, "norm1.running_mean").update(tensor="norm1.mean"), "lacks norm1.mean"),
        (lambda c: part(c, "norm1.running_mean").update(axis=1), "along axis 1"),
        (lambda c: groups(c).update(module="x"), r"holds no number x\.groups"),
        (lambda c: groups(c).update(name="bias"), r"no number grouped\.bias"),
        (lambda c: groups(c).update(units=[["reduce", 2]]), "groups is 4, but .* 8 can"),
    ],
)
def test_a_plan_of_what_the_model_has_not_is_refused(change, message, plans, tmp_path):
    path = tmp_path / "plan.json"
    path.write_bytes(edited(plans["grouped"], change))

    with pytest.raises(UsageError, match=message):
        flexrel.apply(family("grouped"), Plan.load(path))


# --- explained ----------------------------------------------------------------------------------


def test_a_plan_explains_itself():
    """By hand: 3 -> 4 -> 2 features, the second of four hidden ones goes."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    plan = plan_for(model, inputs=torch.ones(4, 3))
    plan.masks["0"][:] = torch.tensor([True, False, True, True])

    # weights 12 + 8, biases 4 + 2, norm 4 + 4; each hidden one: 3 + 1 + 2 + 2
    assert plan.explain() == (
        "Plan by channel\n"
        "  1 of 4 units go\n"
        "  parameters 34 -> 26 (76.5 %)\n"
        "  multiply-adds 20 -> 15 (75.0 %)\n"
        "\n"
        "0: keeps 3 of 4 channels\n"
        "  made by 0\n"
        "  along go 1\n"
        "  read by 3\n"
        "\n"
        "Left alone: 1\n"
        "  3: it is the network's output"
    )


def test_weights_are_explained_as_weights():
    model = random_(nn.Linear(3, 2))
    plan = plan_for(model, granularity="element", inputs=torch.ones(4, 3))
    plan.masks[""][:] = torch.tensor([[True, True, False], [True, True, True]])

    assert plan.explain() == (
        "Plan by element\n"
        "  1 of 6 units go\n"
        "  parameters 8 -> 7 (87.5 %)\n"
        "  multiply-adds 6 -> 6 (100.0 %)\n"
        "\n"
        "the model itself: keeps 5 of 6 weights"
    )


def test_groups_heads_and_numbers_are_said(plans):
    texts = {name: plan.explain() for name, plan in plans.items()}
    masks = plans["grouped"].masks["reduce"], plans["transformer"].masks["attention.qkv"]
    groups, heads = (int(mask.sum()) for mask in masks)

    assert f"reduce: keeps {groups} of 4 groups of 3 channels" in texts["grouped"]
    assert f"numbers grouped.groups -{4 - groups}" in texts["grouped"]
    assert f"attention.qkv: keeps {heads} of 4 heads" in texts["transformer"]
    assert f"numbers attention.num_heads -{4 - heads}" in texts["transformer"]
    assert "made by stem, blocks.0.second\n  along go norm\n" in texts["residuals"]
    assert "along go scale\n" in texts["scaled"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_that_shrinks_and_every_layer_left_alone_is_named(name, plans):
    model, plan = family(name), plans[name]
    said = {
        n for p in changes(plan.graph, plan.masks) for n in (*p.makers, *p.followers, *p.readers)
    }
    text = plan.explain()

    cut = flexrel.apply(model, plan)
    before, after = (dict([*m.named_parameters(), *m.named_buffers()]) for m in (model, cut))
    for tensor in before:
        if before[tensor].shape != after[tensor].shape:
            assert tensor in said or tensor.rpartition(".")[0] in said
    for layer in plan.graph.protected:
        assert f"  {layer.name}: {layer.reason}" in text
    assert f"-> {sum(p.numel() for p in cut.parameters()):,} (" in text
    if name in ("residuals", "grouped", "normed", "dense"):  # whose products all have a weight
        assert f"-> {macs_by_hooks(cut, INPUTS):,} (" in text


def test_the_result_explains_its_plan():
    result = flexrel.prune(
        family("dense"),
        calibration=[INPUTS],
        budgets=[flexrel.MACs(0.5)],
        criterion=flexrel.Magnitude(),
    )

    assert f"parameters {result.dense.parameters:,} -> {result.achieved.parameters:,} (" in (
        result.plan.explain()
    )


# --- on the command line ------------------------------------------------------------------------


NETWORK = """
import torch
from families import family

def make():
    return family("grouped")

def odd():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    return net
"""


@pytest.fixture
def files(tmp_path, plans):
    (tmp_path / "net.py").write_text(NETWORK)
    plans["grouped"].save(tmp_path / "plan.json")
    return tmp_path


def test_inspect_shows_a_plan(files, plans, capsys):
    assert main(["inspect", str(files / "plan.json")]) == 0

    shown = capsys.readouterr().out
    kept = int(plans["grouped"].masks["stem"].sum())
    for text in (f"{kept} of 8 channels", "reduce", "grouped", "norm1", "expand", "parameters"):
        assert text in shown
    assert "it is the network's output" in shown


def test_inspect_shows_names_as_they_are(tmp_path, capsys):
    model = nn.Sequential()
    for name, layer in {"[red]a": nn.Linear(3, 4), "[/b]": nn.Linear(4, 2)}.items():
        model.add_module(name, layer)
    plan_for(model, inputs=torch.ones(2, 3)).save(tmp_path / "plan.json")

    assert main(["inspect", str(tmp_path / "plan.json")]) == 0

    shown = capsys.readouterr().out
    assert "[red]a" in shown
    assert "[/b]" in shown


def test_inspect_gives_a_plan_as_one_object(files, plans, capsys):
    assert main(["inspect", str(files / "plan.json"), "--json"]) == 0

    assert json.loads(capsys.readouterr().out) == json.loads(plans["grouped"].encode())


def test_pack_carries_a_plan_out(files, plans, capsys):
    make, plan, out = f"{files}/net.py:make", str(files / "plan.json"), files / "m.flexrel"

    assert main(["pack", make, "--plan", plan, "-o", str(out)]) == 0

    loaded = flexrel.load(out, into=family("grouped", seed=4))
    assert same_state(loaded, flexrel.apply(family("grouped"), plans["grouped"]))


@pytest.mark.parametrize(
    ("factory", "plan", "code", "says"),
    [
        ("make", "none.json", 2, "none.json: no such file"),
        ("make", "net.py", 5, "is no plan"),
        ("odd", "plan.json", 2, "of another network"),
    ],
)
def test_a_plan_that_is_not_there_or_not_right_is_one_line(
    files, capsys, factory, plan, code, says
):
    command = ["pack", f"{files}/net.py:{factory}", "--plan", str(files / plan)]

    assert main([*command, "-o", str(files / "m.flexrel")]) == code

    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (files / "m.flexrel").exists()


def test_a_damaged_plan_is_one_line_and_exit_5(files, capsys):
    (files / "plan.json").write_text("{")

    assert main(["inspect", str(files / "plan.json")]) == 5
    assert capsys.readouterr().err.count("\n") == 1
