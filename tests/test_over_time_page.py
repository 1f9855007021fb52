"""The code of docs/over_time.md runs as it stands there; a killed process loses one interval."""

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import flexrel
from flexrel.online import Recalibrator
from networks import random_

PAGE = (Path(__file__).parents[1] / "docs" / "over_time.md").read_text()


def network():
    return random_(nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))).eval()


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    model, draw = network(), torch.Generator().manual_seed(0)
    calibration = [torch.randn(16, 4, generator=draw) for _ in range(8)]
    space = {
        "model": model,
        "loader": calibration * 13,
        "inputs": calibration,
        "calibration": calibration,
        "images": calibration[0],
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.0),
    }

    def run(block):
        exec(compile(block, "over_time.md", "exec"), space)  # noqa: S102 - that is what it is for

    run(blocks[0])
    assert space["tracker"].history().measurements == 1
    space["pruned"] = space["result"].model
    run(blocks[1])
    assert flexrel.RelevanceStats.load("device-7.stats").samples == 16
    with Recalibrator(space["pruned"], max_overhead=1e12, dense=model) as space["answer"]:
        for images in calibration:
            space["answer"](images)
            while space["answer"].observed().measured < space["answer"].observed().requests:
                time.sleep(0.001)
    space["result"] = flexrel.prune(
        model, calibration=calibration, budgets=["macs=50%"], criterion="relevance", recover="none"
    )
    run(blocks[2])

    assert len(blocks) == 3
    assert space["found"].chance == 1  # the same inputs


IN_USE = """
import sys
import torch
sys.path.insert(0, sys.argv[2])
from test_over_time_page import network
from flexrel.online import Recalibrator

answer = Recalibrator(network(), 1e12, 1e15, state=sys.argv[1], save_every=0.02)
print("ready", flush=True)
while True:
    answer(torch.ones(2, 4))
"""


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_moment_leaves_a_state_to_go_on_from(tmp_path):
    state, draw, samples = tmp_path / "state", random.Random(0), 0.0  # noqa: S311 - a test's coin
    for _ in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", IN_USE, state, Path(__file__).parent],
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(draw.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
        if state.exists():
            with Recalibrator(network(), state=state) as answer:
                now = answer.stats().samples
            assert now >= samples
            samples = now
    assert samples > 0
    assert len([*tmp_path.iterdir()]) <= 2  # and what the last one had under way
