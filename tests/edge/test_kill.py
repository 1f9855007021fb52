"""SIGKILL at random moments of pack, patch and pull: the old file is there or the new one, whole.

What the kill left behind is gone when the work was done once more.

Each time a forked process does the work and is killed within the time that the work takes when it
is left alone.
"""

import functools
import http.server
import os
import random
import signal
import threading
import time
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import flexrel_edge
from flexrel import pack

KILLS = 200  # of each kind of work
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        """Clients that are killed go away without a word."""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@dataclass(frozen=True)
class Setting:
    """A file before and after, and for each kind of work what does it to a path."""

    old: bytes
    new: bytes
    works: dict


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    served = folder / "served"
    served.mkdir()
    first, second = network(), network()
    with torch.no_grad():
        for layer in second[:2]:
            layer.weight.mul_(1 + 1e-3 * torch.randn_like(layer.weight))
    old, new, update = folder / "old", served / "net", folder / "update"
    pack(first, old)
    pack(second, new)
    flexrel_edge.diff(old, new, update)
    server = Server(("127.0.0.1", 0), functools.partial(Quiet, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/net"
    works = {
        "pack": lambda path: pack(second, path),
        "patch": lambda path: flexrel_edge.patch(
            path, update if path.read_bytes() == old.read_bytes() else new, path
        ),
        "pull": lambda path: flexrel_edge.pull(url, path),
    }
    yield Setting(old.read_bytes(), new.read_bytes(), works)
    server.shutdown()
    server.server_close()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 256, 3), nn.Linear(256, 512))


def forked(work, path):
    """Do the work in another process; return its number once it has begun."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.write(writer, b"!")
            work(path)
        finally:
            os._exit(0)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    return process


@pytest.mark.parametrize("kind", ["pack", "patch", "pull"])
def test_a_kill_leaves_the_old_file_or_the_new_one_and_the_work_goes_on(setting, kind, tmp_path):
    work, path = setting.works[kind], tmp_path / "net"
    draw = random.Random(0)  # noqa: S311
    path.write_bytes(setting.old)
    began = time.perf_counter()
    os.waitpid(forked(work, path), 0)
    seconds = time.perf_counter() - began
    assert path.read_bytes() == setting.new
    kills = 0
    while kills < KILLS:
        path.write_bytes(setting.old)
        process = forked(work, path)
        time.sleep(draw.random() * seconds * 1.1)  # the very end too
        os.kill(process, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != -signal.SIGKILL:
            continue  # it was done before
        kills += 1
        found = path.read_bytes()
        assert found in (setting.old, setting.new)
        work(path)  # over what the kill left behind
        assert path.read_bytes() == setting.new
        assert {found.name for found in tmp_path.iterdir()} <= {"net", "net.previous"}
