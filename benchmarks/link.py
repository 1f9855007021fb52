"""A slow link between two hosts: seconds until a network is there, and what a bad connection costs.

    python benchmarks/link.py          measure (about ten minutes; as root, on Linux, with nginx)
    python benchmarks/link.py --show   the table from the JSON alone

Two network namespaces joined by a pair of virtual interfaces, `tc tbf` on the server's; nginx on
one side, `flexrel-edge pull` on the other. Sent are: the network as it came; with 20 % of its
weights left, in float32 and in int8; and the update from one such int8 file to another, whose
relevance comes from other images. Then the connection is cut 20 times, at random bytes, by a proxy
that counts what it sends, and the pull goes on; and once more the device's process is killed 20
times, and each time a new one goes on.
"""

import argparse
import json
import random
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

import common
import flexrel_edge
from flexrel import FlexRel, Sparsity, prune
from flexrel.io import encode
from flexrel_edge.fetch import update_name

LINKS = {"resnet56": ("1mbit", "10mbit"), "vgg16": ("10mbit",)}
CUTS = 20
IMAGES = 512
SERVER, DEVICE = "flexrel-server", "flexrel-device"  # namespaces
ADDRESS, PORT, PROXY = "10.77.0.1", 8077, 8078
PULL = (sys.executable, "-c", "import flexrel_edge.cli as c; raise SystemExit(c.main())", "pull")
CONFIG = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off; default_type application/octet-stream;
  server {{ listen {address}:{port}; root {folder}/files; }}
}}
"""


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def within(namespace, *command):
    return ("ip", "netns", "exec", namespace, *map(str, command))


def missing():
    """Return why this can't be measured here, or None."""
    for program in ("ip", "tc", "nginx"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    try:
        run("ip", "netns", "add", SERVER)
        run("ip", "netns", "del", SERVER)
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed: {error.stderr.strip()}"
    return None


@contextmanager
def hosts(folder):
    """Two hosts with a link, and a server of what lies in `folder/files` on one of them."""
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, address=ADDRESS, port=PORT))
    for namespace in (SERVER, DEVICE):
        run("ip", "netns", "add", namespace)
    server = None
    try:
        run(
            "ip",
            "link",
            "add",
            "fs0",
            "netns",
            SERVER,
            "type",
            "veth",
            "peer",
            "fd0",
            "netns",
            DEVICE,
        )
        for namespace, link, address in ((SERVER, "fs0", ADDRESS), (DEVICE, "fd0", "10.77.0.2")):
            run(*within(namespace, "ip", "address", "add", f"{address}/24", "dev", link))
            for interface in ("lo", link):
                run(*within(namespace, "ip", "link", "set", interface, "up"))
        command = within(SERVER, "nginx", "-c", config, "-e", folder / "error.log")
        server = subprocess.Popen(command)
        time.sleep(1)
        yield
    finally:
        if server is not None:
            server.terminate()
            server.wait()
        for namespace in (SERVER, DEVICE):
            run("ip", "netns", "del", namespace)


def slow_down(rate):
    """Let no more than so much through from server to device."""
    queue = ("root", "tbf", "rate", rate, "burst", "16kb", "latency", "50ms")
    run(*within(SERVER, "tc", "qdisc", "replace", "dev", "fs0", *queue))


def received():
    """Bytes that have come in at the device, headers of packets included."""
    found = json.loads(run(*within(DEVICE, "ip", "-json", "-statistics", "link", "show", "fd0")))
    return found[0]["stats64"]["rx"]["bytes"]


def url(name, port):
    return f"http://{ADDRESS}:{port}/{name}"


def pull(name, target, port=PORT):
    """Pull as a device does; return what it says, its seconds, and the bytes on the link."""
    before, began = received(), time.perf_counter()
    said = json.loads(run(*within(DEVICE, *PULL, url(name, port), target, "--json")))
    seconds = time.perf_counter() - began
    return said, round(seconds, 2), received() - before


def cut(name, target, size):
    """Pull through a proxy that cuts 20 times; return the bytes that it sent to the device."""
    log = target.parent / "sent"
    log.unlink(missing_ok=True)
    command = (sys.executable, __file__, "--proxy", str(log), "--size", str(size))
    proxy = subprocess.Popen(within(SERVER, *command))
    time.sleep(2)
    try:
        pull(name, target, PROXY)
    finally:
        proxy.terminate()
        proxy.wait()
    return sum(map(int, log.read_text().split()))


def forward(log, size):
    """Be the proxy: relay to nginx, close after random bytes 20 times, and log what was sent."""
    draw = random.Random(0)  # noqa: S311
    goals = sorted(draw.randrange(1, size) for _ in range(CUTS))
    limits = [after - before for before, after in zip([0, *goals], goals, strict=False)]

    class Relay(socketserver.BaseRequestHandler):
        def handle(self):
            request = self.request.recv(65536)
            with socket.create_connection((ADDRESS, PORT)) as server:
                server.sendall(request.replace(b"keep-alive", b"close"))
                whole = b"-511" not in request and limits  # no probe
                left, sent = limits.pop(0) if whole else size + 10_000, 0
                while left and (data := server.recv(min(left, 16384))):
                    self.request.sendall(data)
                    left, sent = left - len(data), sent + len(data)
            with log.open("a") as file:
                file.write(f"{sent}\n")

    socketserver.TCPServer.allow_reuse_address = True
    with socketserver.TCPServer((ADDRESS, PROXY), Relay) as server:
        server.serve_forever()


def killed(name, target, size):
    """Pull, kill it 20 times as random bytes have come, and pull to the end."""
    draw = random.Random(0)  # noqa: S311
    for goal in sorted(draw.randrange(size) for _ in range(CUTS)):
        device = subprocess.Popen(within(DEVICE, *PULL, url(name, PORT), target))
        while device.poll() is None and came(target) < goal:
            time.sleep(0.001)
        device.kill()
        device.wait()
    pull(name, target)


def came(target):
    """How much of a file is there; parts of others come and go meanwhile."""
    sizes = [0]
    for part in target.parent.glob(".*.part"):
        with suppress(FileNotFoundError):
            sizes.append(part.stat().st_size)
    return max(sizes)


def files_of(packs, name):
    """Return packed files of a network: as it came, pruned, and pruned by other images."""
    model = packs.network(name)
    images = packs.cifar10("train")[0]
    found = {"dense": encode(model)}
    for draw, kinds in enumerate(
        (("pruned, float32", "pruned, int8"), (None, "recalibrated, int8"))
    ):
        chosen = np.random.default_rng(draw).permutation(len(images))[:IMAGES]
        batches = [
            packs.normalise(name, images[part]) for part in np.array_split(np.sort(chosen), 4)
        ]
        result = prune(
            model,
            calibration=batches,
            budgets=[Sparsity(0.8)],
            granularity="element",
            criterion=FlexRel(0.5, blend="product"),
            recover="none",
        )
        for kind, values in zip(kinds, ("float32", "int8"), strict=True):
            if kind:
                found[kind] = encode(result.model, values)
    return found


def measure(packs, name, rates, folder, save):
    files, device = folder / "files", folder / "device"
    for kind, data in files_of(packs, name).items():
        (files / kind.replace(", ", "-")).write_bytes(data)
    rows = []

    def add(rate, what, seconds, said):
        rows.append({"network": name, "rate": rate, "what": what, "seconds": seconds, **said})
        print(rows[-1], flush=True)
        save(rows)

    for rate in rates:
        slow_down(rate)
        for kind in ("dense", "pruned, float32", "pruned, int8"):
            target = device / f"{rate}-{kind.replace(', ', '-')}"
            said, seconds, link = pull(kind.replace(", ", "-"), target)
            add(rate, kind, seconds, {"bytes": said["bytes"], "link": link})
        target = device / f"{rate}-pruned-int8"
        current = files / "current"
        shutil.copyfile(files / "recalibrated-int8", current)
        update = update_name(str(current), flexrel_edge.inspect(target).sha256)
        flexrel_edge.diff(target, current, update)
        said, seconds, link = pull("current", target)
        check(said["how"] == "update" and target.read_bytes() == current.read_bytes())
        size = Path(update).stat().st_size
        add(rate, "recalibrated, update of int8", seconds, {"bytes": size, "link": link})
    for kind in ("dense", "pruned-float32", "pruned-int8"):
        size = (files / kind).stat().st_size
        for how, work in (("cut", cut), ("killed", killed)):
            target = device / f"{how}-{kind}"
            began, before = time.perf_counter(), received()
            sent = work(kind, target, size)
            seconds = round(time.perf_counter() - began, 2)
            check(target.read_bytes() == (files / kind).read_bytes())
            what = f"{kind.replace('-', ', ')}, {how} {CUTS} times"
            add(
                rates[-1], what, seconds, {"bytes": size, "link": received() - before, "sent": sent}
            )


def check(right):
    if not right:
        sys.exit("the file that came is not the one that was sent")


def shown(row):
    sizes = [f"{row[what] / 1e6:.2f} MB" for what in ("bytes", "link")]
    sent = f"{row['sent'] / row['bytes']:.3f}" if row.get("sent") else ""
    name = f"{row['network']}, {row['what']}"
    return [name, row["rate"], sizes[0], f"{row['seconds']:.1f} s", sizes[1], sent]


def table(content):
    if "skipped" in content:
        return f"Skipped: {content['skipped']}."
    header = ["what", "link", "file", "time", "on the link", "sent / file"]
    return common.table(header, [shown(row) for row in content["rows"]])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--proxy", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.proxy:
        forward(args.proxy, args.size)
    if not args.show:
        reason = missing()
        if reason is not None:
            common.save("link", {"skipped": reason})
        else:
            packs, rows = common.data_packs(), []

            def save(found):
                common.save("link", {"torch": torch.__version__, "rows": rows + found})

            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                folder.chmod(0o755)  # nginx's workers read it
                for part in ("files", "device"):
                    (folder / part).mkdir()
                with hosts(folder):
                    for network, rates in LINKS.items():
                        measure(packs, network, rates, folder, save)
                        rows = common.load("link")["rows"]
    common.replace_section("link", table(common.load("link")))


if __name__ == "__main__":
    main()
