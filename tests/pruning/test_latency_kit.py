"""A network is pruned for another device by the times of a kit that was timed there."""

import json
from zipfile import ZipFile

import pytest
import torch
from torch import nn

import flexrel
import flexrel_edge.profile
from flexrel import BudgetError, Latency, PackError, UsageError
from flexrel.cli import main
from flexrel.cli.show import latency_line
from flexrel.pruning import clock
from flexrel_edge.cli import main as edge

pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
DATA = [torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))]


def network(width=32):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 32, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 9, 10),
    ).eval()


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    path = tmp_path_factory.mktemp("kit") / "kit.zip"
    flexrel.latency_kit(network(), path, calibration=DATA)
    return path


def work(layer):
    """Milliseconds of a layer: one a thousand multiply-adds and something a place."""
    told = json.loads(layer)
    places = 1
    for size, step in zip(told["size"], told["stride"] or [1], strict=False):
        places *= size // step
    kernel = 9 if told["kernel"] else 1
    return 1e-6 * told["outputs"] * told["inputs"] * kernel * max(places, 1) + 1e-4


@pytest.fixture
def profile(kit, tmp_path):
    """What a device would have measured, that takes twice what its layers take alone."""

    def written(**changes):
        index = json.loads(ZipFile(kit).read("index.json"))
        layers = {key: work(key) for key in index["layers"]}
        dense = 2.0
        networks = {"dense": dense}
        content = {
            "format": "flexrel-latency-profile",
            "version": 1,
            "of": {"machine": "a small board", "version": "1.0", "threads": 1},
            "batch": 1,
            "network": index["network"],
            "networks": networks,
            "layers": layers,
            **changes,
        }
        path = tmp_path / "device.json"
        path.write_text(json.dumps(content))
        return str(path)

    return written


def pruned(profile, amount="60%", **asked):
    budgets = [Latency(amount, "onnxruntime", profile=profile)]
    asked = {"criterion": "magnitude", "recover": "none", **asked}
    return flexrel.prune(network(), calibration=DATA, budgets=budgets, **asked)


def test_a_kit_has_layers_at_widths_the_network_and_cuts_and_no_weights(kit):
    index = json.loads(ZipFile(kit).read("index.json"))

    assert len(index["networks"]) == 4
    widths = {json.loads(key)["outputs"] for key in index["layers"]}
    assert {32, 10} <= widths
    assert len(widths) > 4
    assert kit.stat().st_size < 300_000
    model = ZipFile(kit).read(index["networks"]["dense"])
    assert network()[3].weight.detach().numpy().tobytes() not in model


def test_a_network_is_pruned_to_what_the_device_is_expected_to_take(profile, monkeypatch):
    for name in ("dense_time", "layer_times", "network_times", "timed_file"):
        monkeypatch.setattr(clock, name, None)  # nothing is measured here
    result = pruned(profile())

    assert 0.5 * 2.0 <= result.timing.milliseconds <= 0.6 * 2.0
    assert result.timing.dense == 2.0
    assert result.timing.machine == "a small board"
    assert "expected on a small board" in latency_line(result)
    assert any("expected, not measured" in line for line in result.warnings)
    assert result.plan.removed


def test_cuts_that_were_timed_as_a_whole_are_gone_by(kit, profile):
    index = json.loads(ZipFile(kit).read("index.json"))
    slow = dict.fromkeys(index["networks"], 1.9) | {"dense": 2.0}  # nothing saves time there

    with pytest.raises(BudgetError, match="latency"):
        pruned(profile(networks=slow))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"network": "0" * 64}, "of another network"),
        ({"batch": 4}, "batch=4, but the budget asks for batch=1"),
        ({"of": {"machine": "m", "version": "1", "threads": 2}}, "threads=2"),
        ({"layers": {}}, "lacks .* widths of layers"),
    ],
)
def test_times_of_something_else_are_refused(profile, changes, says):
    with pytest.raises(UsageError, match=says):
        pruned(profile(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "other"},
        {"version": 2},
        {"networks": {}},
        {"networks": {"dense": float("nan")}},
        {"layers": {"x": -1}},
        {"layers": None},
        {"batch": "many"},
    ],
)
def test_damaged_times_are_refused(profile, changes):
    with pytest.raises(PackError, match="no latency profile, or it is damaged"):
        pruned(profile(**changes))


def test_a_profile_that_is_not_there_says_what_writes_one(tmp_path):
    with pytest.raises(UsageError, match="flexrel-edge profile writes one"):
        pruned(str(tmp_path / "none.json"))


def test_a_profile_is_of_onnxruntime_alone():
    with pytest.raises(UsageError, match="profile is of onnxruntime"):
        Latency("5 ms", "torch", profile="x.json")


def test_a_device_times_a_kit_and_the_command_line_prunes_by_it(kit, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(flexrel_edge.profile, "_TURNS", 1)
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 4))\n"
        "def data():\n    return [torch.rand(8, 3, 8, 8)]\n"
    )
    monkeypatch.chdir(tmp_path)

    made = ["latency-kit", "net.py:make", "--calibration", "net.py:data", "--out", "kit.zip"]
    assert main(made) == 0
    assert edge(["profile", "kit.zip", "--out", "device.json"]) == 0
    found = json.loads((tmp_path / "device.json").read_text())
    index = json.loads(ZipFile(tmp_path / "kit.zip").read("index.json"))
    assert found["layers"].keys() == index["layers"].keys()
    assert found["networks"].keys() == index["networks"].keys()
    assert all(0 < time < 1000 for time in found["layers"].values())
    capsys.readouterr()
    asked = ["prune", "net.py:make", "--calibration", "net.py:data", "--budget", "latency=100%"]
    assert main([*asked, "--latency-profile", "device.json", "--quiet"]) == 0
    other = [*asked[:-2], "--budget", "macs=50%", "--out", "other"]
    assert main([*other, "--latency-profile", "device.json"]) == 2
    assert "for a budget on latency" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["empty", "no zip", "no index", "another"])
def test_a_device_refuses_what_is_no_kit(damage, kit, tmp_path, capsys):
    path = tmp_path / "kit.zip"
    path.write_bytes(b"" if damage == "empty" else b"PK" * 50)
    if damage in ("no index", "another"):
        with ZipFile(path, "w") as archive:
            archive.writestr("a", b"")
            if damage == "another":
                archive.writestr("index.json", json.dumps({"format": "x", "version": 1}))

    assert edge(["profile", str(path), "--out", str(tmp_path / "out.json")]) == 5
    assert "is no latency kit" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
