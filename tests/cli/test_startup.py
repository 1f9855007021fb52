"""Help and wrong words are answered without torch, and options read as the library reads them."""

import ast
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import typer

import flexrel
from flexrel.cli import choices, main
from flexrel.core.budgets import budget_of
from flexrel.core.deadline import seconds_in
from flexrel.core.granularity import Pattern
from flexrel.core.outputs import OUTPUT_KINDS
from flexrel.core.precision import VALUES
from flexrel.core.targets import targets_of
from flexrel.criteria import ALLOCATIONS
from flexrel.errors import UsageError
from flexrel.io import EXPORTS
from flexrel.io.export import GRAPH, OBSERVE
from flexrel.pruning import EFFORTS, FORMS, criteria_of
from flexrel.pruning.arguments import recoveries
from flexrel.relevance import OUTPUTS, RULES
from flexrel_edge.records import PCODEC, ZSTD

PRUNE = ["prune", "net:make", "--calibration", "net:data"]
WITHOUT_TORCH = """
import json, sys
from flexrel.cli import main
code = main(json.loads(sys.argv[1]))
heavy = [name for name in ("torch", "numpy", "flexrel_edge") if name in sys.modules]
print(json.dumps([code, heavy]))
"""


def without_torch(words):
    """The exit code of a command in a fresh process, what of the slow it loaded, and its words."""
    command = [sys.executable, "-c", WITHOUT_TORCH, json.dumps(words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *said, last = done.stdout.splitlines()
    return (*json.loads(last), "\n".join(said), done.stderr)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("flexrel pru", {"prune"}), ("flexrel prune --out", {"--out", "--output", "--outputs"})],
)
def test_a_shell_completes_commands_and_options(monkeypatch, capsys, typed, meant):
    monkeypatch.setenv("_FLEXREL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))

    with suppress(SystemExit):
        main([])

    assert set(capsys.readouterr().out.split()) == meant


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--help"], 0, "prune"),
        ([], 2, "prune"),
        (["prune", "--help"], 0, "--calibration"),
        (["--version"], 0, flexrel.__version__),
        (["prun"], 2, "'prune'"),
        ([*PRUNE, "--buget", "macs=50%"], 2, "--budget"),
        (["prune", "net:make"], 2, "--calibration"),
        ([*PRUNE, "--budget", "macs=500%"], 2, "macs=50%"),
        ([*PRUNE, "--budget", "macs=50%", "--criterion", "best"], 2, "flexrel:DELTA"),
        (PRUNE, 2, "nothing to prune to"),
        ([*PRUNE, "--target", "accuracy-drop=1%"], 2, "--evaluation"),
        ([*PRUNE, "--target", "top-5>=.9"], 2, "a target on top-5 needs --evaluation"),
        ([*PRUNE, "--target", "loss<=5%"], 2, "loss<=0.35"),
        (["prune", "net.pth", "--calibration", "x:y"], 2, "--weights net.pth"),
        (["prune", "x:y", "--calibration", "nowhere.npz"], 2, "no such file"),
        (["compare", "nowhere", "nor-there"], 2, "nowhere: no such result"),
        (["compare", "--help"], 0, "side by side"),
        (["prune", "x:y", "--calibration", "x:y", "--weights", "w.pt"], 2, "w.pt"),
    ],
)
def test_help_and_wrong_words_are_answered_without_torch(words, code, says):
    found, heavy, out, err = without_torch(words)

    assert (found, heavy) == (code, [])
    assert says in out + err
    if code and words:
        assert err.startswith("flexrel: ")
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    ["calibrate", "compare", "demo", "export", "inspect", "merge", "pack", "report", "sign"],
)
def test_every_command_helps(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"Usage: flexrel {command}" in capsys.readouterr().out


def test_wrong_words_are_json_too_where_that_is_asked_for(capsys):
    assert main([*PRUNE, "--budgte", "macs=50%", "--json"]) == 2

    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == 2
    assert "--budgte" in told["error"]


def test_names_of_options_are_those_that_the_library_knows():
    known = {
        "allocation": tuple(ALLOCATIONS),
        "codec": (PCODEC, ZSTD),
        "export": (*EXPORTS, GRAPH, OBSERVE),
        "effort": EFFORTS,
        "form": FORMS,
        "output": OUTPUTS,
        "outputs": OUTPUT_KINDS,
        "rule": tuple(RULES),
        "values": ("auto", *VALUES),
    }

    assert dict(choices.NAMED) == known


READERS = {
    "granularity": Pattern.of,
    "criterion": lambda text: criteria_of(text, "channel", "none"),
    "recover": lambda text: recoveries(text, 0),
    "budget": budget_of,
    "target": targets_of,
    "time_limit": lambda text: seconds_in(text.replace("_", " ")),
}
TEXTS = {
    "granularity": "element channel head depth 2:4 block:4x4 0:4 x 2:4:8 block:4 block:0x2",
    "criterion": "auto magnitude relevance obs flexrel:0.5 flexrel:.5:product flexrel: best obs:1",
    "time_limit": "90 1.5 90_s 2min 500_ms 0.5h 90s s 2_days -1_s min2 50% x",
    "recover": "none closed-form finetune:3 finetune finetune:-1 finetune:x magic",
    "budget": "macs=50% bytes=500kB bytes=1.5MiB parameters=120k sparsity=.8 macs=0.5 bytes=60% "
    "macs=1.5M bytes=5 flops=50% macs macs= macs=x bytes=5parsecs latency=5ms macs=50kB macs=101%",
    "target": "accuracy-drop=1% accuracy-drop=0.01 accuracy-drop=100% speed=1% accuracy-drop "
    "accuracy-drop=101% accuracy-drop=x accuracy-drop=1 accuracy-drop=0 accuracy-drop=.5 "
    "accuracy-drop=1.0 accuracy-drop=1k 1% 0.01 1 one accuracy>=90% accuracy>=0.9 accuracy-0.01 "
    "loss<=0.35 loss<=-1.5e-3 loss<=5% loss<= <=5 loss<5 loss==5 loss+.1 loss+-1 perplexity+5% "
    "mAP-0.5 mAP-x top-5>=.9 accuracy-drop=-1 accuracy-drop=1%,loss<=0.35,mAP-5% loss<=1, 1%,x",
}


def is_read(reader, text):
    try:
        reader(text)
    except (UsageError, typer.BadParameter):
        return False
    return True


@pytest.mark.parametrize(
    ("option", "text"), [(option, text) for option in TEXTS for text in TEXTS[option].split()]
)
def test_what_can_be_written_is_what_the_library_reads(unchecked, option, text):
    early = is_read(choices.check(option), text.replace("_", " "))

    assert early == is_read(READERS[option], text) or (early and "latency" in text)  # not counted


def test_flops_are_asked_back_for(capsys):
    assert main([*PRUNE, "--budget", "flops=50%"]) == 2
    assert "did you mean macs" in capsys.readouterr().err


def test_the_library_is_imported_without_torch_until_a_name_is_asked_for():
    code = (
        "import sys, flexrel; dir(flexrel); print('torch' in sys.modules, flexrel.prune.__name__)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["False", "prune"]


def test_what_type_checkers_see_is_what_is_imported():
    tree = ast.parse(Path(flexrel.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.name: node.module
        for branch in tree.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom) and node.module != "flexrel"  # of which rooms come
        for alias in node.names
    }

    assert seen.keys() == set(flexrel.__all__) - {"__version__"}
    assert all(
        getattr(sys.modules[home], name) is getattr(flexrel, name) for name, home in seen.items()
    )


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        flexrel.prunes  # noqa: B018


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "3000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_threads_without_work_sleep_soon_unless_the_user_says_otherwise(
    given, expected, monkeypatch
):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # put back at the end, whatever the command sets
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    main(["--version"])

    assert os.environ.get("GOMP_SPINCOUNT") == expected
