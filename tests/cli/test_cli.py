"""The command line: what is printed where, what is written, and every exit code."""

import hashlib
import json
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.table import Table
from safetensors.torch import save_file

import flexrel
import flexrel_edge
from flexrel.cli import main
from flexrel.cli.show import print_whole

NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(5 * 16, 4),
    )

def inputs():
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(8, 1, 6, 6, generator=draw) for _ in range(3)]

def others():
    return [-x for x in inputs()]

def labelled():
    return [(x, make()(x).argmax(1)) for x in inputs()]

def none():
    return []

def broken():
    return [torch.full((2, 1, 6, 6), float("nan"))]

def number():
    return 3

def crash():
    raise RuntimeError("no disk")
"""


@pytest.fixture
def net(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where results go unless --out says
    path = tmp_path / "net.py"
    path.write_text(NETWORK)
    return path


def prune(net, *options, data="inputs"):
    data = data if data.endswith(".npz") else f"{net}:{data}"
    return main(["prune", f"{net}:make", "--calibration", data, *options])


def one_line(text):
    lines = [line for line in text.splitlines() if not line.startswith(PROGRESS)]
    assert len(lines) == 1, text
    assert lines[0].startswith("flexrel: ")
    return text


PROGRESS = (
    "stage ",
    "loading ",
    "reading ",
    "packing",
    "exporting",
    "writing",
)  # what a busy machine prints while it works


def test_prune_writes_the_directory_and_prints_one_table(net, tmp_path, capsys):
    out = tmp_path / "pruned"

    code = prune(net, "--evaluation", f"{net}:labelled", "--budget", "macs=60%", "--out", str(out))

    assert code == 0
    written = {path.name for path in out.iterdir()}
    assert written == {"model.flexrel", "plan.json", "result.json", "report.html"}
    printed = capsys.readouterr().out
    assert "dense" in printed
    assert str(out) in printed
    result = json.loads((out / "result.json").read_text())
    assert result["achieved"]["macs"] <= result["requested"]["macs"]
    assert result["achieved"]["bytes"] == (out / "model.flexrel").stat().st_size
    assert result["achieved"]["samples"] == 24


@pytest.mark.parametrize("asked", [(), ("--rule", "epsilon"), ("--output", "predicted")])
def test_effort_fast_tries_one_criterion(net, tmp_path, asked):
    out = tmp_path / "out"

    assert prune(net, "--budget", "macs=50%", "--effort", "fast", *asked, "--out", str(out)) == 0

    options = json.loads((out / "result.json").read_text())["options"]
    assert options["chosen_from"] == ["obs", "magnitude"]  # the second where the first can't score


def test_rivals_and_curves_are_measured_only_where_that_is_asked_for(net, tmp_path, capsys):
    asked = ("--evaluation", f"{net}:labelled", "--budget", "macs=60%", "--recover", "none")
    for name, options in (("plain", ()), ("compared", ("--compare",))):
        assert prune(net, *asked, *options, "--out", str(tmp_path / name)) == 0

    plain, compared = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("plain", "compared")
    )

    assert (plain["rivals"], plain["curves"]) == ([], [])
    assert len({point["criterion"] for point in compared["curves"]}) == 3
    assert plain["achieved"] == compared["achieved"]


def test_the_table_marks_the_result_and_says_what_each_number_is(net, capsys):
    asked = ("--budget", "macs=60%", "--recover", "none")
    assert prune(net, *asked, "--evaluation", f"{net}:labelled", "--compare") == 0

    out = capsys.readouterr().out
    heads = next(line for line in out.splitlines() if "network" in line).split()
    told = "network accuracy parameters MACs bytes MB % of dense weights gone"
    assert heads == told.split()
    (marked,) = [line for line in out.splitlines() if line.strip().startswith("> ") and "%" in line]
    result = json.loads(Path("pruned/result.json").read_text())
    achieved = result["achieved"]
    assert marked.split() == [
        ">",
        result["criterion"],
        *f"{achieved['accuracy']:.2%}".replace("%", " %").split(),
        f"{achieved['parameters']:,}",
        f"{achieved['macs']:,}",
        f"{achieved['bytes']:,}",
        f"{achieved['bytes'] / 1e6:.3f}",
        *f"{achieved['bytes'] / achieved['bytes_dense']:.2%}".replace("%", " %").split(),
        *f"{achieved['weights_removed']:.2%}".replace("%", " %").split(),
    ]
    assert "dense is the network as it came, its bytes those of its packed file" in " ".join(
        out.split()
    )
    assert "\u2026" not in out  # nothing is cut off


def test_a_table_wider_than_the_terminal_loses_nothing(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    shown = Table()
    for name in ("network", "parameters", "multiply-adds"):
        shown.add_column(name, no_wrap=True)
    shown.add_row("flexrel:0.333333:product", "25,557,032", "4,089,284,608")

    print_whole(shown)

    out = capsys.readouterr().out
    assert "flexrel:0.333333:product" in out
    assert "4,089,284,608" in out


def test_without_labels_it_says_why_accuracy_is_not_known(net, capsys):
    assert prune(net, "--budget", "macs=60%", "--recover", "none") == 0
    assert "Accuracy was not measured: that takes labelled data" in capsys.readouterr().out


def test_json_has_widths_and_checksums_of_the_files(net, capsys):
    assert prune(net, "--budget", "macs=60%", "--criterion", "magnitude", "--json") == 0

    told = json.loads(capsys.readouterr().out)
    assert told["out"] == "pruned"
    assert set(told["files"]) == {"model.flexrel", "plan.json", "result.json", "report.html"}
    for name, file in told["files"].items():
        data = Path("pruned", name).read_bytes()
        assert file == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    model = flexrel.load("pruned/model.flexrel", into=load_factory(net)())
    widths = {name: (one["kept"], one["of"]) for name, one in told["widths"].items()}
    assert widths == {"0": (model[0].out_channels, 6), "2": (model[2].out_channels, 5)}


@pytest.mark.parametrize(
    ("options", "code", "more"),
    [
        (["--budget", "parameters=3"], 3, {"kind", "resource", "limit", "closest"}),
        (["--budget", "macs=60%", "--keep", "layer9"], 2, {"kind"}),
        (["--budget", "macs=600%"], 2, set()),
    ],
)
def test_errors_are_json_too_where_that_is_asked_for(net, capsys, options, code, more):
    assert prune(net, *options, "--json") == code

    said = capsys.readouterr()
    told = json.loads(said.out)
    assert told.keys() == {"error", "exit_code"} | more
    assert told["exit_code"] == code
    assert f"flexrel: {told['error']}" == one_line(said.err).splitlines()[-1]


def test_a_damaged_file_is_json_too(tmp_path, capsys):
    (tmp_path / "bad.flexrel").write_bytes(b"no such thing")

    assert main(["inspect", str(tmp_path / "bad.flexrel"), "--json"]) == 5
    assert json.loads(capsys.readouterr().out)["kind"] == "PackError"


def test_json_is_one_object_on_stdout(net, capsys):
    assert prune(net, "--budget", "parameters=50%", "--criterion", "magnitude", "--json") == 0

    result = json.loads(capsys.readouterr().out)
    assert (result["criterion"], result["delta"]) == ("magnitude", 0)


def test_the_packed_file_is_the_pruned_network(net, tmp_path, capsys):
    out = tmp_path / "pruned"
    prune(net, "--budget", "parameters=50%", "--out", str(out))
    model = flexrel.load(out / "model.flexrel", into=load_factory(net)())

    small = sum(p.numel() for p in model.parameters())

    assert small == json.loads((out / "result.json").read_text())["achieved"]["parameters"]


def load_factory(net, name="make"):
    space = {}
    exec(net.read_text(), space)  # noqa: S102 - the test's own text
    return space[name]


def test_inspect_and_unpack_read_what_prune_wrote(net, tmp_path, capsys):
    out = tmp_path / "pruned"
    prune(net, "--budget", "bytes=60%", "--granularity", "element", "--out", str(out))
    capsys.readouterr()

    assert main(["inspect", str(out / "model.flexrel"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tensors"]) == 6
    assert main(["unpack", str(out / "model.flexrel"), str(tmp_path / "w.safetensors")]) == 0
    assert (tmp_path / "w.safetensors").stat().st_size > 0


def calibrated(net, data, path):
    assert main(["calibrate", f"{net}:make", "--data", f"{net}:{data}", "-o", str(path)]) == 0
    return flexrel.RelevanceStats.load(path)


def test_statistics_of_two_runs_merge_to_their_sum(net, tmp_path, capsys):
    files = [tmp_path / name for name in ("a", "b", "c")]
    one, two = (calibrated(net, *pair) for pair in zip(("inputs", "others"), files, strict=False))

    assert main(["merge", str(files[0]), str(files[1]), "-o", str(files[2])]) == 0

    both = flexrel.RelevanceStats.load(files[2])
    assert both.samples == 2 * one.samples == 48
    assert all(torch.equal(both[name].input, one[name].input + two[name].input) for name in one)
    assert "2 of 2 files, 3 layers, 48 samples" in capsys.readouterr().out


def test_merge_goes_on_without_what_cant_be_used_and_says_why(net, tmp_path, capsys):
    good, same, merged = (str(tmp_path / name) for name in ("a", "b", "c"))
    calibrated(net, "inputs", good)
    Path(same).write_bytes(Path(good).read_bytes())
    capsys.readouterr()

    assert main(["merge", good, same, "-o", merged]) == 0

    said = capsys.readouterr()
    assert said.err == f"warning: {same} was dropped: is the same as {good}\n"
    assert "1 of 2 files" in said.out
    assert main(["merge", good, "--most-samples", "5", "-o", merged]) == 5
    assert "counts 24 samples" in one_line(capsys.readouterr().err)


def test_prune_takes_relevance_that_was_measured_before(net, tmp_path, capsys):
    stats = calibrated(net, "others", tmp_path / "stats")
    options = ("--budget", "macs=60%", "--criterion", "relevance", "--recover", "none")
    plans = []
    for number, more in enumerate((("--stats", str(tmp_path / "stats")), ())):
        out = tmp_path / f"out{number}"
        assert prune(net, *options, *more, "--out", str(out)) == 0
        plans.append(flexrel.Plan.load(out / "plan.json").masks)

    wanted = flexrel.prune(
        load_factory(net)(),
        calibration=load_factory(net, "inputs")(),
        budgets=["macs=60%"],
        criterion="relevance",
        recover="none",
        options=flexrel.PruneOptions(stats=stats),
    ).plan.masks
    assert all(torch.equal(plans[0][name], wanted[name]) for name in wanted)
    assert any(not torch.equal(plans[1][name], wanted[name]) for name in wanted)
    assert prune(net, *options, "--stats", str(tmp_path / "none")) == 2


def test_report_is_made_again_from_the_records(net, tmp_path, capsys):
    out = tmp_path / "pruned"
    prune(net, "--budget", "macs=60%", "--out", str(out))
    first = (out / "report.html").read_bytes()
    (out / "report.html").unlink()

    assert main(["report", str(out)]) == 0
    assert (out / "report.html").read_bytes() == first
    (out / "plan.json").write_text("{")
    assert main(["report", str(out)]) == 2
    assert main(["report", str(tmp_path)]) == 2


def test_an_npz_is_data(net, tmp_path, capsys):
    x = torch.cat([torch.randn(8, 1, 6, 6) for _ in range(3)])
    np.savez(tmp_path / "d.npz", x=x.numpy(), y=load_factory(net)()(x).argmax(1).numpy())
    path = str(tmp_path / "d.npz")

    code = prune(net, "--evaluation", path, "--budget", "macs=0.6", "--json", data=path)

    assert code == 0
    assert json.loads(capsys.readouterr().out)["achieved"]["samples"] == 24


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.flexrel"])
def test_weights_come_from_three_kinds_of_file(net, tmp_path, capsys, name):
    path, model = tmp_path / name, load_factory(net)()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    if name.endswith(".pt"):
        torch.save({"state_dict": model.state_dict()}, path)
    elif name.endswith(".flexrel"):
        flexrel.pack(model, path)
    else:
        save_file(model.state_dict(), path)
    packed = tmp_path / "out.flexrel"

    assert main(["pack", f"{net}:make", "--weights", str(path), "-o", str(packed)]) == 0

    found = flexrel.load(packed, into=load_factory(net)()).state_dict()
    assert all(torch.equal(found[k], v) for k, v in model.state_dict().items())


def packed_weights(net, path, tmp_path):
    """What `flexrel pack --weights` makes of a file of weights."""
    out = tmp_path / "out.flexrel"
    assert main(["pack", f"{net}:make", "--weights", str(path), "-o", str(out)]) == 0
    return flexrel_edge.read(out)


def other_weights(net):
    return {name: tensor * 3 for name, tensor in load_factory(net)().state_dict().items()}


def same_weights(found, state):
    return found.keys() == state.keys() and all(
        np.array_equal(found[name], tensor.numpy()) for name, tensor in state.items()
    )


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", None])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "network.", "a.net."]
)
def test_weights_are_found_in_checkpoints_and_under_the_names_of_wrappers(
    net, tmp_path, key, prefix
):
    state = other_weights(net)
    named = {prefix + name: tensor for name, tensor in state.items()}
    content = named if key is None else {"epoch": 3, "optimizer": {"lr": 0.1}, key: named}
    torch.save(content, tmp_path / "w.pt")

    assert same_weights(packed_weights(net, tmp_path / "w.pt", tmp_path), state)


def test_weights_that_fit_without_no_holder_are_told_by_the_names_of_the_file(
    net, tmp_path, capsys
):
    save_file({"network.first.weight": torch.ones(2)}, tmp_path / "w.safetensors")

    weights = str(tmp_path / "w.safetensors")
    assert main(["pack", f"{net}:make", "--weights", weights, "-o", "out.flexrel"]) == 2

    assert "the model has not, 1 of the 1 tensors in the file: network.first.weight" in one_line(
        capsys.readouterr().err
    )


def test_weights_of_a_model_that_has_such_names_itself_stay_as_they_are(tmp_path):
    net = tmp_path / "own.py"
    net.write_text(
        "from torch import nn\ndef make():\n    return nn.ModuleDict({'model': nn.Linear(3, 2)})\n"
    )
    state = other_weights(net)
    save_file(state, tmp_path / "w.safetensors")

    assert list(state) == ["model.weight", "model.bias"]
    assert same_weights(packed_weights(net, tmp_path / "w.safetensors", tmp_path), state)


PARTS = """
from torch import nn

def make(wrap=lambda part: part):
    net = nn.Module()
    net.features = wrap(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    net.head = nn.Linear(4, 2)
    return net
"""


@pytest.mark.parametrize("first", ["", "model.", "module.", "model._orig_mod."])
@pytest.mark.parametrize("inner", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_weights_of_parts_that_were_wrapped_alone_are_found(tmp_path, first, inner):
    net = tmp_path / "parts.py"
    net.write_text(PARTS)
    state = other_weights(net)
    named = {
        first + name.replace("features.", f"features.{inner}"): tensor
        for name, tensor in state.items()
    }
    save_file(named, tmp_path / "w.safetensors")

    assert len(named.keys() - state.keys()) in (2, 4)
    assert same_weights(packed_weights(net, tmp_path / "w.safetensors", tmp_path), state)


def test_weights_of_before_a_part_was_wrapped_are_found(tmp_path):
    net = tmp_path / "parts.py"
    net.write_text(PARTS.replace("lambda part: part", "nn.DataParallel"))
    state = other_weights(net)
    named = {name.replace("module.", ""): tensor for name, tensor in state.items()}
    save_file(named, tmp_path / "w.safetensors")

    assert "features.module.0.weight" in state
    assert "features.0.weight" in named
    assert same_weights(packed_weights(net, tmp_path / "w.safetensors", tmp_path), state)


def test_of_two_weights_that_would_have_one_name_none_is_lost_in_silence(tmp_path, capsys):
    net = tmp_path / "parts.py"
    net.write_text(PARTS)
    state = other_weights(net)
    both = {**state, "features.module.0.weight": state["features.0.weight"] + 1}
    save_file(both, tmp_path / "w.safetensors")
    command = ["--weights", str(tmp_path / "w.safetensors"), "-o", str(tmp_path / "x")]

    assert main(["pack", f"{net}:make", *command]) == 2
    assert "features.module.0.weight" in capsys.readouterr().err


def sharded(state, folder, prefix=""):
    """Two shards of a state, and their index as Hugging Face writes it."""
    named = {prefix + name: tensor for name, tensor in state.items()}
    places = {name: f"part-{at % 2}.safetensors" for at, name in enumerate(named)}
    for file in set(places.values()):
        save_file({name: named[name] for name in named if places[name] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("prefix", ["", "model."])
def test_weights_come_from_an_index_of_shards(net, tmp_path, prefix):
    state = other_weights(net)

    assert same_weights(packed_weights(net, sharded(state, tmp_path, prefix), tmp_path), state)


def test_a_shard_that_is_not_there_or_elsewhere_and_an_index_that_is_none_are_named(
    net, tmp_path, capsys
):
    index = sharded(other_weights(net), tmp_path)
    command = ["pack", f"{net}:make", "--weights", str(index), "-o", str(tmp_path / "x")]

    (tmp_path / "part-1.safetensors").unlink()
    assert main(command) == 2
    assert "shard part-1.safetensors is not beside it; 2 are needed" in capsys.readouterr().err
    save_file({"other": torch.zeros(1)}, tmp_path / "part-1.safetensors")
    assert main(command) == 2
    assert "shard part-1.safetensors has no " in one_line(capsys.readouterr().err)
    for content, said in (
        ({"weight_map": {"a": "../secret.safetensors"}}, "in another folder"),
        ({"weights": {}}, "no index of shards"),
        ([], "no index of shards"),
    ):
        index.write_text(json.dumps(content))
        assert main(command) == 5
        assert said in one_line(capsys.readouterr().err)


def test_a_tied_weight_that_a_file_has_once_is_the_models_under_both_names(tmp_path):
    net = tmp_path / "tied.py"
    net.write_text(
        "from torch import nn\n"
        "def make():\n"
        "    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))\n"
        "    model[1].weight = model[0].weight\n"
        "    return model\n"
    )
    state = {"1.weight": torch.randn(3, 3)}
    save_file(state, tmp_path / "w.safetensors")

    found = packed_weights(net, tmp_path / "w.safetensors", tmp_path)

    assert np.array_equal(found["0.weight"], state["1.weight"].numpy())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 3, "net": {}}, "it has 'epoch': int, 'net': dict"),
        ({}, "it has nothing"),
        ({"model": {"0.weight": torch.ones(6, 1, 3, 3), "extra": 5}}, "'extra': int"),
    ],
)
def test_a_checkpoint_without_a_state_says_what_it_has(net, tmp_path, capsys, content, said):
    torch.save(content, tmp_path / "w.pt")

    assert prune(net, "--weights", str(tmp_path / "w.pt"), "--budget", "macs=60%") == 2
    assert said in one_line(capsys.readouterr().err)


def test_weights_of_other_names_say_what_the_file_has(net, tmp_path, capsys):
    state = {f"head{name}": tensor for name, tensor in other_weights(net).items()}
    save_file(state, tmp_path / "w.safetensors")

    assert prune(net, "--weights", str(tmp_path / "w.safetensors"), "--budget", "macs=60%") == 2
    said = one_line(capsys.readouterr().err)
    assert "it lacks 6 of the 6 tensors in the model: 0.bias, 0.weight, 2.bias ..." in said
    assert "it has, and the model has not, 6 of the 6 tensors in the file: head0.bias" in said


def test_pack_rounds_on_the_calibration_data(net, tmp_path, capsys):
    expected, packed = tmp_path / "expected.flexrel", tmp_path / "out.flexrel"
    make, inputs = load_factory(net), load_factory(net, "inputs")
    done = flexrel.pack(make(), expected, "int4", calibration=inputs())
    options = ("--values", "int4", "--calibration", f"{net}:inputs")

    assert main(["pack", f"{net}:make", "-o", str(packed), *options]) == 0

    assert packed.read_bytes() == expected.read_bytes()
    assert f"{done.bytes:,} bytes" in capsys.readouterr().out
    assert main(["pack", f"{net}:make", "-o", str(packed), "--values", "int4"]) == 0
    assert packed.read_bytes() != expected.read_bytes()


def test_pack_says_what_a_precision_costs_and_finds_one(net, tmp_path, capsys):
    packed = tmp_path / "out.flexrel"
    data = ("--calibration", f"{net}:inputs", "--evaluation", f"{net}:labelled")
    options = ("--values", "auto", "--target", "accuracy-drop=100%", "--metadata", "licence=MIT")

    assert main(["pack", f"{net}:make", "-o", str(packed), *data, *options]) == 0

    said = capsys.readouterr().out
    assert "int4" in said
    assert "accuracy" in said
    assert "divergence" in said
    assert flexrel_edge.inspect(packed).metadata["licence"] == "MIT"


class Evil:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize("content", ["object", "pickle", "cut short", "list"])
def test_a_pickle_offered_as_weights_is_refused_and_not_run(net, tmp_path, capsys, content):
    path = tmp_path / "w.pt"
    if content == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
    else:
        torch.save([1, 2] if content == "list" else Evil(), path)
    if content == "cut short":
        path.write_bytes(path.read_bytes()[:40])

    code = prune(net, "--weights", str(path), "--budget", "macs=60%")

    said = capsys.readouterr()
    assert code == 5
    assert "save_file" in one_line(said.err)
    assert "run" not in said.out


def test_damaged_files_exit_5_and_leave_nothing(net, tmp_path, capsys):
    good, bad = tmp_path / "good.flexrel", tmp_path / "bad.flexrel"
    main(["pack", f"{net}:make", "-o", str(good)])
    data = bytearray(good.read_bytes())
    data[-5] ^= 1
    bad.write_bytes(data)
    (tmp_path / "bad.safetensors").write_bytes(b"no such thing")
    (tmp_path / "stats").write_bytes(b"no such thing")
    out = tmp_path / "out"
    capsys.readouterr()

    for weights in ("bad.flexrel", "bad.safetensors"):
        command = ("--weights", str(tmp_path / weights), "--budget", "macs=60%", "--out", str(out))
        assert prune(net, *command) == 5
        assert weights in one_line(capsys.readouterr().err)
    assert main(["merge", str(tmp_path / "stats"), "-o", str(out)]) == 5
    assert main(["inspect", str(bad)]) == 5
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "data", "code", "says"),
    [
        ([], "inputs", 2, "nothing to prune to"),
        (["--budget", "macs=60%"], "none", 2, "calibration set is empty"),
        (["--budget", "macs=60%"], "broken", 2, "batch 0"),
        (["--budget", "macs=60%"], "number", 2, "int"),
        (["--budget", "macs=60%"], "crash", 2, "no disk"),
        (["--budget", "macs=60%"], "missing", 2, "it has make, inputs"),
        (["--budget", "macs=60%", "--output", "label"], "inputs", 2, "needs labels"),
        (["--budget", "macs=60%", "--output", "x"], "inputs", 2, "predicted"),
        (["--budget", "macs=60%", "--rule", "x"], "inputs", 2, "gradient-input"),
        (["--budget", "macs=60%", "--keep", "layer9"], "inputs", 2, "layer9"),
        (
            ["--budget", "macs=60%", "--granularity", "filter"],
            "inputs",
            2,
            "element, channel, head",
        ),
        (["--budget", "macs=60%", "--criterion", "best"], "inputs", 2, "flexrel:DELTA"),
        (["--budget", "macs=60%", "--values", "int3"], "inputs", 2, "float32"),
        (["--budget", "macs=60%", "--recover", "magic"], "inputs", 2, "none"),
        (["--budget", "macs=60%", "--allocation", "x"], "inputs", 2, "per-layer"),
        (["--budget", "speed=5ms"], "inputs", 2, "bytes=500kB"),
        (["--budget", "latency=5ms@java"], "inputs", 2, "onnxruntime"),
        (["--budget", "link=8s"], "inputs", 2, "link=8s@1Mbit/s"),
        (["--budget", "flops=50%"], "inputs", 2, "did you mean macs=50%?"),
        (["--budget", "macs=none"], "inputs", 2, "macs=50%"),
        (["--budget", "bytes=10 parsecs"], "inputs", 2, "500kB"),
        (["--target", "speed=1%"], "inputs", 2, "accuracy-drop"),
        (["--target", "accuracy-drop=1"], "inputs", 2, "0.01"),
        (["--target", "accuracy-drop=1%"], "inputs", 2, "--evaluation"),
        (["--budget", "parameters=3"], "inputs", 3, "closest possible"),
        (["--budget", "bytes=10"], "inputs", 3, "closest possible"),
        (["--budget", "macs=60%", "--granularity", "element"], "inputs", 3, "channel"),
        (["--weights", "nowhere.pt", "--budget", "macs=60%"], "inputs", 2, "nowhere.pt"),
    ],
)
def test_a_bad_request_is_one_line_with_its_exit_code(
    unchecked, net, tmp_path, capsys, options, data, code, says
):
    out = tmp_path / "out"

    assert prune(net, *options, "--out", str(out), data=data) == code

    assert says in one_line(capsys.readouterr().err)
    assert not out.exists()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("net", "file.py:factory"),
        ("nowhere.py:make", "no such file"),
        ("no.such.module:make", "can't be imported"),
        ("json:dumps", "missing a required argument"),
    ],
)
def test_a_model_that_is_not_there_exits_2(capsys, spec, says):
    assert main(["prune", spec, "--calibration", "x:y", "--budget", "macs=60%"]) == 2
    assert says in one_line(capsys.readouterr().err)


def test_results_go_to_a_folder_of_their_own_unless_out_names_one(net, capsys):
    assert prune(net, "--budget", "macs=60%", "--criterion", "magnitude") == 0

    assert "Wrote pruned/" in capsys.readouterr().out
    assert Path("pruned/model.flexrel").is_file()


@pytest.mark.parametrize("name", ["model.flexrel", "plan.json", "result.json", "model.onnx"])
def test_results_of_before_are_not_overwritten_unasked_and_no_work_is_done(net, capsys, name):
    Path("pruned").mkdir()
    Path("pruned", name).write_text("mine")

    assert prune(net, "--budget", "macs=60%", data="crash") == 2

    said = one_line(capsys.readouterr().err)
    assert name in said
    assert "--overwrite" in said
    assert Path("pruned", name).read_text() == "mine"
    assert prune(net, "--budget", "macs=60%", "--criterion", "magnitude", "--overwrite") == 0


def test_a_folder_with_other_things_in_it_takes_results(net, capsys):
    Path("pruned").mkdir()
    Path("pruned", "notes.txt").write_text("mine")

    assert prune(net, "--budget", "macs=60%", "--criterion", "magnitude") == 0
    assert Path("pruned", "notes.txt").read_text() == "mine"


def test_a_demo_replaces_an_earlier_demo_but_no_results_that_it_is_pointed_at(net, capsys):
    Path("results").mkdir()
    Path("results", "plan.json").write_text("mine")

    assert main(["demo", "--out", "results"]) == 2
    assert "results/ has results already: plan.json" in one_line(capsys.readouterr().err)


def test_a_place_that_can_not_be_written_is_refused_before_the_work(net, capsys):
    Path("file").write_text("")

    assert prune(net, "--budget", "macs=60%", "--out", "file/inner", data="crash") == 2
    assert "nothing can be written in" in one_line(capsys.readouterr().err)


def press_ctrl_c(*_, **__):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what runs in background
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_is_one_line_that_says_that_nothing_was_written(net, capsys, monkeypatch):
    monkeypatch.setattr("flexrel.pruning.prune", press_ctrl_c)

    assert prune(net, "--budget", "macs=60%") == 130

    assert "nothing was written" in one_line(capsys.readouterr().err)
    assert not Path("pruned").exists()


def test_ctrl_c_while_others_are_measured_keeps_the_result_and_says_so(net, capsys, monkeypatch):
    monkeypatch.setattr("flexrel.pruning.compare", press_ctrl_c)
    asked = ("--evaluation", f"{net}:labelled", "--budget", "macs=60%", "--recover", "none")

    assert prune(net, *asked, "--compare") == 130

    assert "pruned/ has the network and its report" in one_line(capsys.readouterr().err)
    assert flexrel.load("pruned/model.flexrel", into=load_factory(net)())


def test_quiet_prints_nothing_but_warnings(net, capsys):
    assert prune(net, "--budget", "macs=60%", "--criterion", "magnitude", "--quiet") == 0

    said = capsys.readouterr()
    assert said.out == ""
    assert all(line.startswith("warning: ") for line in said.err.splitlines())


def test_a_file_in_the_place_of_the_directory_is_refused_before_the_work(net, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")

    assert prune(net, "--budget", "macs=60%", "--out", str(tmp_path / "out"), data="crash") == 2
    assert "is a file" in one_line(capsys.readouterr().err)
    assert (tmp_path / "out").read_text() == "mine"


def test_what_can_not_be_written_is_one_line(net, tmp_path, capsys):
    path = tmp_path / "nowhere" / "x.flexrel"

    assert main(["pack", f"{net}:make", "-o", str(path)]) == 2
    assert "nowhere" in one_line(capsys.readouterr().err)


def test_a_message_of_several_lines_is_folded_into_one(net, capsys):
    net.write_text(NETWORK + "\ndef make():\n    raise ValueError('one\\ntwo')\n")

    assert prune(net, "--budget", "macs=60%") == 2
    assert "one two" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("content", [b"PK\x03\x04 cut", b"", b"text"])
def test_data_that_are_no_arrays_exit_2(net, tmp_path, capsys, content):
    (tmp_path / "d.npz").write_bytes(content)

    assert prune(net, "--budget", "macs=60%", data=str(tmp_path / "d.npz")) == 2
    assert "d.npz" in one_line(capsys.readouterr().err)


def test_records_that_lack_something_exit_2(tmp_path, capsys):
    for name in ("result.json", "plan.json"):
        (tmp_path / name).write_text("{}")

    assert main(["report", str(tmp_path)]) == 2
    assert "lack" in one_line(capsys.readouterr().err)
    assert not (tmp_path / "report.html").exists()


def test_the_demos_network_takes_no_weights(tmp_path, capsys):
    save_file({"w": torch.zeros(1)}, tmp_path / "w.safetensors")
    weights = str(tmp_path / "w.safetensors")
    command = ["pack", "demo:digits", "--weights", weights, "-o", str(tmp_path / "x")]

    assert main(command) == 2
    assert "trained on the spot" in one_line(capsys.readouterr().err)


def test_a_model_without_a_prunable_layer_exits_4(net, tmp_path, capsys):
    net.write_text(NETWORK + "\ndef make():\n    return nn.Sequential(nn.Flatten())\n")

    assert prune(net, "--budget", "macs=60%") == 4
    assert "can be pruned" in one_line(capsys.readouterr().err)


def test_weights_that_do_not_fit_exit_2(net, tmp_path, capsys):
    save_file({"0.weight": torch.zeros(9, 9)}, tmp_path / "w.safetensors")

    assert prune(net, "--weights", str(tmp_path / "w.safetensors"), "--budget", "macs=60%") == 2
    assert "does not fit" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("argv", [["prune"], ["nonsense"], ["prune", "a", "--nonsense"]])
def test_wrong_words_exit_2(capsys, argv):
    assert main(argv) == 2


def test_help_exits_0(capsys):
    assert main(["--help"]) == 0
    assert "prune" in capsys.readouterr().out


def test_the_installed_command_gives_its_exit_code():
    command = [sys.executable, "-c", "import sys; from flexrel.cli import main; sys.exit(main())"]

    done = subprocess.run([*command, "inspect", "nowhere"], capture_output=True, check=False)

    assert done.returncode == 2
    assert done.stdout == b""


# --- exports ------------------------------------------------------------------------------------


def test_an_export_without_its_extra_is_refused_before_the_work(net, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    out = tmp_path / "out"

    assert prune(net, "--budget", "macs=60%", "--out", str(out), "--export", "onnx") == 2

    assert "pip install 'flexrel[export]'" in one_line(capsys.readouterr().err)
    assert not out.exists()


def test_an_export_that_can_not_be_is_refused_before_the_work(net, capsys):
    assert prune(net, "--budget", "macs=60%", "--export", "tflite") == 2
    assert "write onnx, pt2, graph" in one_line(capsys.readouterr().err)


def test_a_network_is_exported_as_its_packed_file_cuts_it(net, tmp_path, capsys):
    out = tmp_path / "out"
    assert prune(net, "--budget", "macs=60%", "--out", str(out), "--export", "pt2") == 0
    assert "report.html, model.pt2" in capsys.readouterr().out
    again = tmp_path / "again.pt2"
    weights = ["--weights", str(out / "model.flexrel")]

    assert main(["export", f"{net}:make", str(again), "--data", f"{net}:inputs", *weights]) == 0

    x = torch.randn(3, 1, 6, 6)
    one, two = (torch.export.load(path).module()(x) for path in (out / "model.pt2", again))
    assert torch.equal(one, two)


def test_data_without_a_batch_is_no_example(net, tmp_path, capsys):
    out = tmp_path / "net.pt2"

    assert main(["export", f"{net}:make", str(out), "--data", f"{net}:none"]) == 2
    assert "the data hold no batch" in one_line(capsys.readouterr().err)


def test_pack_says_how_many_samples_its_graph_is_fixed_to(net, tmp_path, capsys):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="it comes with the extra 'export'")
    net.write_text(
        NETWORK.replace("nn.Flatten()", "nn.Unflatten(1, (5, 1)), nn.Flatten(0), Rows()").replace(
            "def make",
            "class Rows(nn.Module):\n    def forward(self, x): return x.view(8, 80)\n\ndef make",
        )
    )
    out = tmp_path / "net.flexrel"

    assert main(["pack", f"{net}:make", "-o", str(out), "--graph", f"{net}:inputs"]) == 0
    said = capsys.readouterr().err.splitlines()
    (line,) = (line for line in said if not line.startswith(PROGRESS))
    wanted = f"warning: the ONNX graph in {out} takes inputs of the example's size alone, "
    assert line == f"{wanted}8 samples a call"


def test_an_update_is_written_where_one_says_or_where_devices_look(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, value in (("old", 1), ("new", 2)):
        weights = np.random.default_rng(0).random(4000)
        flexrel_edge.write(name, {"w": np.append(weights, value)})
    base = flexrel_edge.inspect("old").sha256[:16]

    assert main(["diff", "old", "new", "up.fxd"]) == 0
    assert main(["diff", "old", "new", "--beside"]) == 0
    assert main(["patch", "old", "up.fxd", "made"]) == 0

    assert Path(f"new.{base}.fxd").read_bytes() == Path("up.fxd").read_bytes()
    assert Path("made").read_bytes() == Path("new").read_bytes()
    capsys.readouterr()
    assert main(["diff", "old", "new"]) == 2
    assert "update --beside" in capsys.readouterr().err
