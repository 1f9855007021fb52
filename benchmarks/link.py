"""A slow link between two hosts: seconds until a network is there, and what a bad connection costs.

    python benchmarks/link.py          measure (about ten minutes; as root, on Linux, with nginx)
    python benchmarks/link.py --quick  the network trained on digits, on one link
    python benchmarks/link.py --show   the page, from the JSON

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

import common
import flexrel_edge
import tasks
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
        pair = ("fs0", "netns", SERVER, "type", "veth", "peer", "fd0", "netns", DEVICE)
        run("ip", "link", "add", *pair)
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


def inputs_of(name, draw):
    """Return a network and batches of the images of a draw."""
    if name == "digits":
        task = tasks.digits(draw)
        return task.model, task.inputs
    packs = common.data_packs()
    images = packs.cifar10("train")[0]
    chosen = np.sort(np.random.default_rng(draw).permutation(len(images))[:IMAGES])
    parts = np.array_split(chosen, 4)
    return packs.network(name), [packs.normalise(name, images[part]) for part in parts]


def files_of(name):
    """Return packed files of a network: as it came, pruned, and pruned by other images."""
    model, _ = inputs_of(name, 0)
    found = {"dense": encode(model)}
    kinds = (("pruned, float32", "float32", 0), ("pruned, int8", "int8", 0))
    for kind, values, draw in (*kinds, ("recalibrated, int8", "int8", 1)):
        pruned = prune(
            model,
            calibration=inputs_of(name, draw)[1],
            budgets=[Sparsity(0.8)],
            granularity="element",
            criterion=FlexRel(0.5, blend="product"),
            recover="none",
        ).model
        found[kind] = encode(pruned, values)
    return found


def measured(name, rates, folder):
    """Yield a row for each way in which a file comes over each link, then over a bad one."""
    files, device = folder / "files", folder / "device"
    for kind, data in files_of(name).items():
        (files / kind.replace(", ", "-")).write_bytes(data)
    for rate in rates:
        slow_down(rate)
        for kind in ("dense", "pruned, float32", "pruned, int8"):
            target = device / f"{rate}-{kind.replace(', ', '-')}"
            said, seconds, link = pull(kind.replace(", ", "-"), target)
            yield row(rate, kind, seconds, bytes=said["bytes"], link=link)
        target = device / f"{rate}-pruned-int8"
        current = files / "current"
        shutil.copyfile(files / "recalibrated-int8", current)
        update = update_name(str(current), flexrel_edge.inspect(target).sha256)
        flexrel_edge.diff(target, current, update)
        said, seconds, link = pull("current", target)
        check(said["how"] == "update" and target.read_bytes() == current.read_bytes())
        size = Path(update).stat().st_size
        yield row(rate, "recalibrated, update of int8", seconds, bytes=size, link=link)
    for kind in ("dense", "pruned-float32", "pruned-int8"):
        size = (files / kind).stat().st_size
        for how, work in (("cut", cut), ("killed", killed)):
            target = device / f"{how}-{kind}"
            began, before = time.perf_counter(), received()
            sent = work(kind, target, size)
            seconds = round(time.perf_counter() - began, 2)
            check(target.read_bytes() == (files / kind).read_bytes())
            what = f"{kind.replace('-', ', ')}, {how} {CUTS} times"
            came_in = received() - before
            yield row(rates[-1], what, seconds, bytes=size, link=came_in, sent=sent)


def row(rate, what, seconds, **numbers):
    return {"rate": rate, "what": what, "seconds": seconds, **numbers}


def check(right):
    if not right:
        sys.exit("the file that came is not the one that was sent")


def blocks(args):
    """Yield a block for each network, link and what is sent; none where that can't be measured."""
    if reason := missing():
        print(f"link.py: {reason}; nothing measured", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)  # nginx's workers read it
        for part in ("files", "device"):
            (folder / part).mkdir()
        with hosts(folder):
            for name in ("digits",) if args.quick else args.networks:
                rates = LINKS.get(name, ("10mbit",))
                for found in measured(name, rates, folder):
                    yield {"network": name, **found, "versions": common.versions("torch")}


def page(found):
    """Yield the page's parts."""
    if not found:
        return
    yield "# On a slow link"
    yield (
        "Made by `python benchmarks/link.py`: two network namespaces, joined by virtual interfaces "
        "of which `tc tbf` limits the rate; nginx on the one side, `flexrel-edge pull` on the "
        "other, its start of Python included in *time*. *pruned* has 20 % of the weights left; "
        "*update* leads from one such file to that of other calibration images. *On the link* "
        "counts the bytes of all packets that came to the device. *Cut*: a proxy closes the "
        "connection at 20 random bytes, and the pull waits half a second or more and goes on; "
        "*sent* is what the proxy sent, answers' headers included. *Killed*: so does the device's "
        "process, a new one goes on, and what was under way to the old one is lost."
    )
    header = ["what", "link", "file", "time", "on the link", "sent / file"]
    yield common.table(header, map(_row, found))
    yield common.measured_with(found[-1]["versions"])


def _row(block):
    sizes = [f"{block[what] / 1e6:.2f} MB" for what in ("bytes", "link")]
    sent = f"{block['sent'] / block['bytes']:.3f}" if block.get("sent") else ""
    name = f"{block['network']}, {block['what']}"
    return [name, block["rate"], sizes[0], f"{block['seconds']:.1f} s", sizes[1], sent]


def main():
    parser = common.parser(__doc__, tuple(LINKS))
    parser.add_argument("--proxy", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.proxy:
        forward(args.proxy, args.size)
    common.run(args, "link", blocks(args), ("network", "rate", "what"), page)


if __name__ == "__main__":
    main()
