"""`flexrel prune --dry-run`: which budgets are possible, and nothing more."""

import json

import pytest

from flexrel.cli import main

NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))

def inputs():
    return [torch.randn(8, 6, generator=torch.Generator().manual_seed(1))]
"""


@pytest.fixture
def dry_run(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(NETWORK)

    def run(*options):
        data = ("--calibration", f"{path}:inputs", "--out", str(tmp_path / "pruned"))
        return main(["prune", f"{path}:make", *data, "--dry-run", *options])

    return run


def test_what_is_possible_and_what_binds_is_a_table(dry_run, tmp_path, capsys):
    code = dry_run("--budget", "macs=50%", "--budget", "parameters=90%")

    out = capsys.readouterr().out
    assert code == 0
    assert "most has to go for MACs" in " ".join(out.split())
    assert "at most 80" in " ".join(out.split())  # of 6 x 16 + 16 x 4 multiply-adds
    assert not (tmp_path / "pruned").exists()


def test_what_is_impossible_has_the_exit_code_of_budgets(dry_run, capsys):
    """With one hidden unit 6 + 4 multiply-adds are left."""
    code = dry_run("--budget", "macs=5", "--json")

    told = json.loads(capsys.readouterr().out)
    assert code == 3
    assert not told["possible"]
    assert told["amounts"][0]["closest"] == 10
    assert dry_run("--budget", "macs=5") == 3
    assert "impossible: asked for at most 5 MACs" in capsys.readouterr().err
