"""A plan that is damaged, contradicts itself or is of another network is refused."""

import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import flexrel
from families import FAMILIES, family
from flexrel import FlexrelError, PackError, Plan, UsageError
from networks import (
    bits,
    same_bits,
)
from planned import all_plans


@pytest.fixture(scope="module")
def plans():
    return all_plans()


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


@pytest.mark.parametrize("use", [flexrel.apply, flexrel.MaskHolder])
def test_what_is_no_plan_is_refused_and_the_way_to_one_said(use, unchecked):
    with pytest.raises(
        FlexrelError, match=r"a path; read it with flexrel.Plan.load\('plan.json'\)"
    ):
        use(nn.Linear(2, 2), "plan.json")
    with pytest.raises(FlexrelError, match=r"the plan is a dict; pass result.plan"):
        use(nn.Linear(2, 2), {})


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
        ("weights", lambda c: c["groups"][0].update(name=""), "group '' has shape .* no weight"),
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
