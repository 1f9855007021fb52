"""What docs/over_time.md promises: a process that is killed loses what came after the last save."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch import nn

from flexrel.online import Recalibrator
from networks import random_


def network():
    return random_(nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))).eval()


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
