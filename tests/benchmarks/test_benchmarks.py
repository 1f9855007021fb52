"""The benchmarks of evidence run in a minute on a small network, without any data."""

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from oracles import needs

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script, *arguments, results, **environment):
    """Run a benchmark by itself; return what it printed."""
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script, *arguments],
        env={**os.environ, "FLEXREL_RESULTS": str(results), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def blocks(results, name):
    return json.loads((results / f"{name}.json").read_text())["blocks"]


@pytest.mark.slow
def test_the_papers_experiment_runs(tmp_path):
    printed = run("paper.py", "--quick", results=tmp_path)
    found = blocks(tmp_path, "paper-quick")
    assert [(b["granularity"], b["repair"]) for b in found] == [
        *itertools.product(("channel", "element"), ("none", "closed-form"))
    ]
    for block in found:
        needed = {name: sizes_[0] for name, sizes_ in block["needed"].items()}
        single = min(needed["magnitude"], needed["relevance"])
        ways = ["FlexRel", "FlexRel by labels"]
        ways[1:1] = ["FlexRel without OBS"] if block["granularity"] == "channel" else []
        assert [*block["log_ratio"]] == ways
        for name in ways:
            (log_ratio, _), _mean = block["log_ratio"][name]
            assert log_ratio == pytest.approx(math.log(needed[name] / single), abs=1e-3)
        assert all(0 < size < block["dense"]["bytes"] for size in needed.values())
        assert f"n = {block['samples']} |" in printed


def test_it_takes_a_folder_of_images(tmp_path):
    images = needs("PIL.Image")
    needs("timm")
    draw = np.random.default_rng(0)
    for label, at in itertools.product(range(4), range(6)):
        folder = tmp_path / "val" / f"n{label:08}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (40 + at, 48, 3), dtype=np.uint8)
        images.fromarray(pixels).save(folder / f"{at}.png")
    own = ("--model", "timm:test_resnet", "--untrained", "--data", str(tmp_path / "val"))
    only = ("--granularities", "channel", "--repairs", "none", "--quick")
    run("paper.py", *own, *only, results=tmp_path)
    found = blocks(tmp_path, "paper-timm-test_resnet")
    assert [b["deployment"] for b in found] == ["as trained", "2 classes"]
    assert [b["samples"] for b in found] == [12, 6]  # a half


@pytest.mark.slow
def test_other_libraries_are_run_and_their_failures_are_rows(tmp_path):
    (tmp_path / "nncf.py").write_text("raise ValueError('not on this machine')\n")
    wanted = ("--cases", "weights", "--methods", "torch.nn.utils.prune", "NNCF")
    run("peers.py", "--quick", *wanted, results=tmp_path, PYTHONPATH=str(tmp_path))
    (block,) = blocks(tmp_path, "peers-quick")
    row = block["rows"]["torch.nn.utils.prune"]
    weights = 24 * 9 + 2 * 24 * 24 * 9 + 48 * 24 * 9 + 192 * 64 + 64 * 10
    others = 3 * 2 * 24 + 48 + 64 + 10  # norms and biases
    assert row["parameters"] == 0.2 * weights + others
    assert row["packed"] < block["dense"]["packed"]
    assert block["rows"]["NNCF"] == {"failure": "ValueError: not on this machine"}


@pytest.mark.slow
def test_importance_in_use_is_measured_from_moments_to_what_it_costs(tmp_path):
    printed = run("in_use.py", "--quick", results=tmp_path)
    moments, alarms, overhead = blocks(tmp_path, "in_use-quick")
    rows = moments["rows"]
    assert rows["the requests themselves"]["rank"] == pytest.approx(1)
    near, far = rows["weighed, network in use observed"], rows["calibration data as they are"]
    assert 1 - near["rank"] < (1 - far["rank"]) / 2
    assert near["none"][0] > far["none"][0] + 0.1
    assert moments["bytes"] < 4_000
    assert (alarms["checks"], alarms["alarms"]) == (8, 0)
    step, counted, look = overhead["tracker"]
    assert 0 < counted < look
    assert f"| {(99 * counted + look) / (100 * step):.1%} |" in printed


def test_importance_is_tracked_while_a_network_is_trained(tmp_path):
    printed = run("over_time.py", "--quick", results=tmp_path)
    found = blocks(tmp_path, "over_time-quick")
    assert [(b["granularity"], b["cut"]) for b in found] == [
        *(("channel", "macs=50%"), ("element", "sparsity=80%"))
    ]
    for block in found:
        assert len(block["scores"]) == 3 * 3  # criteria, each by the last network and two averages
        assert all(0.1 < score <= 1 for score in block["scores"].values())
    scores = found[0]["scores"]
    plain, mean = (scores[f"magnitude, {name}"] for name in ("trained network", "mean"))
    assert f"| {100 * plain:.1f} ± 0.0 | {100 * mean:.1f} ± 0.0 | {100 * (mean - plain):+.1f}" in (
        printed
    )


def test_latency_is_measured_in_every_runtime_there_is(tmp_path):
    run("latency.py", "--quick", results=tmp_path)
    (block,) = blocks(tmp_path, "latency-quick")
    assert {row["runtime"] for row in block["rows"]} >= {"torch", "onnxruntime"}
    assert {row["runtime"] for row in block["rows"]} | set(block["failures"]) == {
        "torch",
        "onnxruntime",
        "OpenVINO",
    }


def test_the_accelerators_script_runs_on_the_processor(tmp_path):
    run("accelerator.py", "--quick", results=tmp_path)
    (block,) = blocks(tmp_path, "accelerator-quick")
    kinds = [row[0].partition(",")[0] for row in block["rows"]]
    assert kinds == ["relevance"] * 6 + ["2:4"]  # three rules, in batches and in one


def test_a_network_is_cut_as_it_is(tmp_path):
    printed = run("compatibility.py", "--one", "defined", "u-net", "flexrel", results=tmp_path)
    row = json.loads(printed.splitlines()[-1])
    assert row["outcome"] == "cut"
    assert 0.48 <= row["ratio"] <= 0.5  # by the benchmark's own ruler


def test_a_network_of_a_library_is_taken_as_it_is(tmp_path):
    needs("transformers")
    one = ("transformers", "BertForSequenceClassification", "relevance")
    printed = run("compatibility.py", "--one", *one, results=tmp_path)
    row = json.loads(printed.splitlines()[-1])
    assert row["outcome"] == "measured"
    assert all("ratio" in got for got in row["rules"].values())
    assert row["unread"] == 0


@pytest.mark.parametrize("script", ["wire", "updates"])
def test_files_are_measured_against_others(tmp_path, script):
    run(f"{script}.py", "--quick", results=tmp_path)
    found = blocks(tmp_path, f"{script}-quick")
    assert [block["values"] for block in found] == ["float32", "float16", "int8"]
    whole = "width" if script == "wire" else "full"  # mask and values; the new file
    assert all(0 < block["ours"] < block[whole] for block in found)


@pytest.mark.slow
def test_what_relevance_costs_is_measured(tmp_path):
    run("relevance.py", "--quick", results=tmp_path)
    (block,) = blocks(tmp_path, "relevance-quick")
    (times,) = block["times"]
    rules = ("gradient-input", "epsilon", "gamma", "zplus", "attnlrp")
    assert all(times["ratios"][rule] > 0 for rule in rules)


def test_a_link_that_cannot_be_slowed_down_here_is_said(tmp_path):
    run("link.py", "--quick", results=tmp_path, PATH="")
    assert not list(tmp_path.iterdir())


def test_what_a_default_prune_enters_is_counted(tmp_path):
    line, *files = run("entered.py", "--by-file", results=tmp_path).splitlines()
    counted = [int(row.split()[0]) for row in files]
    assert f"enters {len(files)} files and {sum(counted)} functions" in line
    assert any(row.endswith("pruning/prune.py") for row in files)


@pytest.mark.slow
def test_random_budgets_and_targets_are_met_or_refused(tmp_path):
    printed = run("combinations.py", "--quick", results=tmp_path)
    found = blocks(tmp_path, "combinations-quick")
    assert [block["case"] for block in found] == [*range(6)]
    assert all("slack" in block and not block["faults"] for block in found)
    assert "| all | 6 |" in printed


def test_what_is_promised_is_measured_on_other_samples(tmp_path):
    printed = run("promise.py", "--quick", results=tmp_path)
    found = blocks(tmp_path, "promise-quick")
    assert all(one["aside"] == 5000 and -0.01 < one["true"] < 0.05 for one in found)
    holds = sum(one["true"] <= one["bound"] for one in found)
    assert f"| {holds} of 2 |" in printed
