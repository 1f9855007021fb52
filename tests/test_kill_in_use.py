"""Two devices killed at random moments in use: no file is torn, and what was saved is not lost.

40 kills of each kind of work: observing, with and without torch, while a timer saves; merging;
pulling. docs/over_time.md says so.
"""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

import flexrel_edge
from flexrel.observed import merge_moments
from flexrel.online import Recalibrator
from flexrel_edge import read_moments
from observing import network, requests, write

KILLS = 40  # of each kind of work
EVERY = 0.05  # seconds between two times that the timer saves
DEVICES = ("left", "right")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")]

OBSERVING = f"""
import sys
from pathlib import Path
import numpy
from flexrel_edge import Observer

class Told(Observer):
    def save(self):
        counter, requests = self.moments().counter + 1, self.moments().requests
        super().save()
        print("saved", counter, requests, flush=True)

answer = Told(sys.argv[1], sys.argv[2], share=0.5, every={EVERY}, threads=1)
x = numpy.ones((1, 2, 6, 6), numpy.float32)
print("saved", 0, 0, flush=True)
while True:
    answer(x)
"""
RECALIBRATING = f"""
import sys
import torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from observing import network
from flexrel.online import Recalibrator

class Told(Recalibrator):
    def save(self):
        samples = int(self.stats().samples)
        super().save()
        print("saved", 0, samples, flush=True)

answer = Told(network(), 1e12, 1e15, state=sys.argv[2], save_every={EVERY})
print("saved", 0, 0, flush=True)
while True:
    answer(torch.ones(1, 2, 6, 6))
"""


def moments_in(path):
    found = read_moments(path)
    return found.counter, found.requests


def state_in(path):
    with Recalibrator(network(), state=path, half_life=1e15) as answer:
        return 0, answer.stats().samples


@pytest.mark.parametrize(
    ("code", "read"), [(OBSERVING, moments_in), (RECALIBRATING, state_in)], ids=["edge", "torch"]
)
def test_what_was_saved_is_there_after_a_kill_and_only_what_came_later_is_lost(
    code, read, tmp_path
):
    packed = write(tmp_path / "net.flexrel", network())
    draw, kills = random.Random(0), 0  # noqa: S311 - a test's coin
    before = dict.fromkeys(DEVICES, (0, 0))
    while kills < KILLS:
        files = {name: tmp_path / name for name in DEVICES}
        with ExitStack() as stack:
            running = {}
            for name, file in files.items():
                command = [sys.executable, "-c", code, packed, file]
                process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                running[name] = stack.enter_context(process)
                stack.callback(process.kill)
            told = {}
            for name, process in running.items():
                assert process.stdout.readline() == "saved 0 0\n"
                time.sleep(draw.uniform(0, 8 * EVERY))
                process.send_signal(signal.SIGKILL)
                told[name] = process.communicate()[0]
        kills += len(told)
        for name, text in told.items():
            lines = text.splitlines()[: text.count("\n")]  # the last may be cut off
            saved = max([before[name], *(tuple(map(int, line.split()[1:])) for line in lines)])
            if not files[name].exists():
                assert not lines
                continue
            now = read(files[name])  # whole, or it would be refused
            assert now[0] >= saved[0]
            assert now[1] >= saved[1]
            before[name] = now
    assert before[DEVICES[0]][1] > 0
    assert len([*tmp_path.iterdir()]) <= 1 + 2 * len(DEVICES)  # and what each had under way


def killed(work, seconds, draw):
    """Do the work in two forks that are killed at random moments; return how many were."""
    children = []
    for device in DEVICES:
        child = os.fork()
        if child == 0:
            try:
                work(device)
            finally:
                os._exit(0)
        children.append(child)
    time.sleep(draw.random() * seconds)
    for child in children:
        os.kill(child, signal.SIGKILL)
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return sum(end == -signal.SIGKILL for end in ends)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", ["merge", "pull"])
def test_a_kill_while_merging_or_pulling_leaves_the_old_file_or_the_new_one(kind, tmp_path):
    first = write(tmp_path / "first.flexrel", network())
    changed = network()
    with torch.no_grad():
        changed.head.weight.mul_(1.5)
    second = write(tmp_path / "second.flexrel", changed)
    sent = []
    for at, x in enumerate(requests(6)):
        path = tmp_path / f"{at}.moments"
        with flexrel_edge.Observer(first, path, share=1.0, threads=1) as answer:
            answer(x)
        sent.append(path)
    old = {"merge": merge_moments(sent[:3]).moments.encode(), "pull": first.read_bytes()}[kind]
    new = {"merge": merge_moments(sent).moments.encode(), "pull": second.read_bytes()}[kind]
    places = {name: tmp_path / name / "file" for name in DEVICES}

    def work(device):
        if kind == "merge":
            flexrel_edge.send(merge_moments(sent).moments.encode(), str(places[device]))
        else:
            flexrel_edge.pull(str(second), places[device])

    for place in places.values():
        place.parent.mkdir()
        place.write_bytes(old)
    began = time.perf_counter()
    work(DEVICES[0])
    seconds = time.perf_counter() - began
    draw, kills = random.Random(0), 0  # noqa: S311 - a test's coin
    while kills < KILLS:
        for place in places.values():
            place.write_bytes(old)
        kills += killed(work, 1.5 * seconds, draw)
        for device, place in places.items():
            assert place.read_bytes() in (old, new)
            work(device)  # over what the kill left behind
            assert place.read_bytes() == new
            names = {found.name for found in place.parent.iterdir()}
            assert names <= {"file", "file.previous"}
