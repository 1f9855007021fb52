"""A folder that a result was saved in: old or new, or its readers say that it is some of each."""

import json
import os
from contextlib import suppress

import pytest
import torch
from torch import nn

import flexrel
import flexrel_edge
from flexrel import MACs, Magnitude, PackError
from flexrel.cli import main


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.fixture(scope="module")
def results(network):
    """Of two budgets."""
    data = [torch.randn(8, 4)]
    return [
        flexrel.prune(network, calibration=data, budgets=[MACs(share)], criterion=Magnitude())
        for share in (0.8, 0.4)
    ]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_save_that_fails_leaves_what_was_there(results, tmp_path, monkeypatch):
    out = tmp_path / "out"
    results[0].save(out)
    before, written = content(out), []

    def full(handle):
        written.append(handle)
        if len(written) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        results[1].save(out)

    assert content(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


class Killed(BaseException):
    """As by SIGKILL."""


@pytest.mark.parametrize("renames", range(5))
def test_a_save_cut_off_between_renames_is_old_or_new_or_said(
    results, tmp_path, monkeypatch, capsys, renames
):
    out, after = tmp_path / "out", tmp_path / "after"
    results[0].save(out)
    results[1].save(after)
    rename, left = os.replace, renames

    def some(*names):
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        rename(*names)

    monkeypatch.setattr("os.replace", some)
    with suppress(Killed):
        results[1].save(out)
    monkeypatch.undo()

    found = content(out)
    made = {name for name, data in content(after).items() if found[name] == data}
    assert len(made) == renames
    known = {name: name in made for name in ("model.flexrel", "plan.json", "result.json")}
    mixed = len(set(known.values())) == 2
    assert main(["report", str(out)]) == (5 if mixed else 0)
    assert ("saving was cut off" in capsys.readouterr().err) == mixed
    if known["model.flexrel"] == known["plan.json"]:
        flexrel.Plan.load(out / "plan.json")
    else:
        with pytest.raises(PackError, match="saving was cut off"):
            flexrel.Plan.load(out / "plan.json")
    results[1].save(out)
    assert content(out) == content(after)


def test_a_record_beside_a_model_that_it_was_not_saved_with_is_refused(network, results, tmp_path):
    path = tmp_path / "plan.json"
    results[0].save(tmp_path)
    sha256 = flexrel_edge.inspect(tmp_path / "model.flexrel").sha256
    flexrel.pack(network, tmp_path / "other.flexrel")
    (tmp_path / "other.flexrel").replace(tmp_path / "model.flexrel")

    with pytest.raises(PackError, match=r"plan\.json: was saved with .* folder of its own"):
        flexrel.Plan.load(path)
    assert main(["report", str(tmp_path)]) == 5

    (tmp_path / "model.flexrel").unlink()
    assert flexrel.Plan.load(path).encode() == path.read_bytes()
    assert main(["report", str(tmp_path)]) == 0
    assert json.loads(path.read_bytes()) == results[0].plan.as_json() | {"model": sha256}
    assert json.loads((tmp_path / "result.json").read_bytes())["model"] == sha256


def test_a_signature_leaves_records_that_fit(results, tmp_path):
    results[0].save(tmp_path)
    flexrel_edge.trust.write_keys(tmp_path / "a.key", tmp_path / "a.pub")
    flexrel_edge.sign(tmp_path / "model.flexrel", tmp_path / "a.key")

    flexrel.Plan.load(tmp_path / "plan.json")
    assert main(["report", str(tmp_path)]) == 0


@pytest.mark.skipif(os.name != "posix", reason="modes as POSIX has them")
def test_files_of_a_folder_keep_their_modes(results, tmp_path):
    results[0].save(tmp_path)
    (tmp_path / "model.flexrel").chmod(0o600)
    (tmp_path / "mine").touch()

    results[1].save(tmp_path)

    assert (tmp_path / "model.flexrel").stat().st_mode & 0o777 == 0o600
    assert len(content(tmp_path)) == 5


def test_packing_over_the_model_of_a_result_is_refused_before_it_makes_its_plan_useless(
    network, results, tmp_path
):
    results[0].save(tmp_path)
    before = content(tmp_path)
    plan = flexrel.Plan.load(tmp_path / "plan.json")

    with pytest.raises(flexrel.UsageError, match=r"plan\.json beside it .* another name or folder"):
        flexrel.pack(flexrel.apply(network, plan), tmp_path / "model.flexrel", values="float16")

    assert content(tmp_path) == before
    assert flexrel.Plan.load(tmp_path / "plan.json").as_json() == plan.as_json()


@pytest.mark.parametrize("name", ["half.flexrel", "model.flexrel"])
def test_packing_elsewhere_is_not_refused(network, results, tmp_path, name):
    results[0].save(tmp_path / "result")
    folder = tmp_path / ("result" if name == "half.flexrel" else "other")
    folder.mkdir(exist_ok=True)
    (tmp_path / "other").mkdir(exist_ok=True)
    results[0].plan.save(tmp_path / "other" / "plan.json")  # belongs to no model

    for _ in range(2):
        flexrel.pack(network, folder / name)

    flexrel.Plan.load(tmp_path / "result" / "plan.json")
    flexrel.Plan.load(tmp_path / "other" / "plan.json")
