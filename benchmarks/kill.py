"""SIGKILL at random moments of pack, patch and pull: the old file is there or the new one, whole.

    python benchmarks/kill.py          measure (two minutes), then write the table
    python benchmarks/kill.py --show   the table from the JSON alone

Each time a forked process does the work and is killed within the time that the work takes when it
is left alone. Then the file is read in full; and, where the work had not come to its end, done
again to its end over what the kill left behind.
"""

import argparse
import functools
import http.server
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from torch import nn

import common
import flexrel_edge
from flexrel import pack

KILLS = 200  # of each kind of work
SEED = 0


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 256, 3), nn.Linear(256, 512))


class Server:
    """The files of a folder over HTTP, in a thread."""

    def __init__(self, folder):
        handler = functools.partial(Quiet, directory=str(folder))
        self._server = Killed(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"


class Killed(http.server.ThreadingHTTPServer):
    """Whose clients go away without a word."""

    def handle_error(self, *_):
        pass


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def kinds(folder):
    """Return for each kind of work what does it to a path, and the file that it starts from."""
    torch.set_num_threads(1)  # a forked process has no other
    old, new, update = folder / "old", folder / "new", folder / "update"
    with torch.no_grad():
        first, second = network(0), network(0)
        second[0].weight.mul_(1 + 1e-3 * torch.randn_like(second[0].weight))
        second[1].weight.mul_(1 + 1e-3 * torch.randn_like(second[1].weight))
    pack(first, old)
    pack(second, new)
    flexrel_edge.diff(old, new, update)
    served = folder / "served"
    served.mkdir()
    (served / "net").write_bytes(new.read_bytes())
    server = Server(served)
    works = {
        "pack": lambda path: pack(second, path),
        "patch": lambda path: flexrel_edge.patch(path, update, path),
        "pull": lambda path: flexrel_edge.pull(f"{server.url}/net", path),
    }
    return works, old.read_bytes(), new.read_bytes()


def forked(work, path):
    """Do the work in another process; return its number and what tells that it began."""
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


def measure(name, work, old, new, folder):
    """Kill it again and again; return how often the old file was there, the new one, neither."""
    draw = random.Random(SEED)  # noqa: S311
    path = folder / name / "net"
    path.parent.mkdir()
    path.write_bytes(old)
    began = time.perf_counter()
    os.waitpid(forked(work, path), 0)
    seconds = time.perf_counter() - began
    check(path.read_bytes() == new, f"{name} does not do its work")
    found = {"kind": name, "kills": 0, "old": 0, "new": 0, "torn": 0, "seconds": round(seconds, 3)}
    while found["kills"] < KILLS:
        path.write_bytes(old)
        process = forked(work, path)
        time.sleep(draw.random() * seconds * 1.1)  # the very end too
        os.kill(process, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != -signal.SIGKILL:
            continue  # it was done before
        found["kills"] += 1
        data = path.read_bytes()
        found["old" if data == old else "new" if data == new else "torn"] += 1
        if data == old:
            work(path)
            check(path.read_bytes() == new, f"{name} does not go on after a kill")
    return found


def check(right, message):
    if not right:
        sys.exit(message)


def table(rows):
    keys = ["kind", "kills", "old", "new", "torn"]
    shown = [[row[key] for key in keys] + [f"{1000 * row['seconds']:.0f} ms"] for row in rows]
    header = ["killed", "times", "old file, whole", "new file, whole", "torn", "takes, left alone"]
    return common.table(header, shown)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    if not args.show:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            works, old, new = kinds(folder)
            rows = [measure(kind, work, old, new, folder) for kind, work in works.items()]
        common.save("kill", rows)
    common.replace_section("kill", table(common.load("kill")))


if __name__ == "__main__":
    main()
