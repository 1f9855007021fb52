"""The loop of a fleet on one machine: plan, use, observe, merge, plan anew, update.

python examples/edge_loop/loop.py FOLDER

A server prunes a network for handwritten digits by what all digits need, signs the file, and offers
it over HTTP. Two devices, processes of their own that have no torch, pull it, and answer requests;
each sees other digits, and sends what the layers of its network took in, signed with its own key.
The server merges that, weighs its calibration data to be like it, plans anew from the dense
weights, and offers the new file with what changed; the devices pull that. All of it is commands of
`flexrel` and `flexrel-edge`.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import flexrel
from flexrel.cli import demo

HERE = Path(__file__).resolve()
DEVICES = {"left": (0, 1), "right": (2, 3)}  # the digits that each sees
PRUNE = ("--granularity", "element", "--budget", "sparsity=88%", "--recover", "none")
CRITERION = "flexrel:0.33:product"
FILE = "model.flexrel"


def network() -> torch.nn.Module:
    """Return the architecture."""
    return demo.DigitsNetwork().eval()


def calibration() -> list[torch.Tensor]:
    """Return what the server has of use before there is any: all digits."""
    return list(demo.digits().train_x[:512].split(64))


def requests(digits: tuple[int, ...], *, judged: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return batches of these digits, (images, labels); what is judged is seen by no device."""
    batches = demo.digits().evaluation
    images, labels = (torch.cat([batch[side] for batch in batches]) for side in range(2))
    mine = sum(labels == digit for digit in digits).bool()
    images, labels = images[mine][judged::2], labels[mine][judged::2]
    return list(zip(images.split(4), labels.split(4), strict=True))


def words(package: str, *arguments: object) -> list[str]:
    """Return a command that runs by itself."""
    start = f"import sys; from {package} import main; sys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-c", start, *map(str, arguments)]


def run(package: str, *arguments: object) -> str:
    """Run a command, show it, and return what it printed."""
    name = package.removesuffix(".cli").replace("_", "-")
    print("$", name, *arguments, flush=True)
    done = subprocess.run(words(package, *arguments), check=True, capture_output=True, text=True)
    print(done.stdout, end="", flush=True)
    for line in done.stderr.splitlines():
        if line.startswith("warning: "):
            print(line, flush=True)
    return done.stdout


def edge(*arguments: object) -> str:
    """Run a command of those that devices have."""
    return run("flexrel_edge.cli", *arguments)


def accuracy(file: Path, digits: tuple[int, ...]) -> float:
    """Return how often a file's network is right on digits that no device has seen."""
    model = network()
    flexrel.load(file, into=model)
    return flexrel.Accuracy(requests(digits, judged=True))(model)


def planned(folder: Path, key: Path, *more: object) -> Path:
    """Prune the dense network into a folder, and return the packed file, signed."""
    place = folder.parent
    source = ("--weights", place / "dense.safetensors", "--calibration", f"{HERE}:calibration")
    made = ("--criterion", CRITERION, "--export", "observe", "--out", folder)
    run("flexrel.cli", "prune", f"{HERE}:network", *source, *PRUNE, *made, *more)
    edge("sign", folder / FILE, "--key", key)
    return folder / FILE


@contextmanager
def offering(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP from a process of its own; yield its address."""
    command = (sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1")
    with subprocess.Popen(
        [*command, "--directory", folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            said = server.stdout.readline() if server.stdout else ""
            yield f"http://127.0.0.1:{said.split('port ')[1].split()[0]}"
        finally:
            server.terminate()


def observed(folder: Path, sent: Path) -> None:
    """Let all devices answer their requests at once, and send what their layers took in."""
    running = []
    for name, digits in DEVICES.items():
        place = folder / name
        spool = place / "requests"
        spool.mkdir()
        for at, (images, _) in enumerate(requests(digits, judged=False)):
            np.save(spool / f"{at:03}.npy", images.numpy())
        options = ("--key", place / "device.key", "--to", sent / f"{name}.moments")
        command = ("observe", place / FILE, "--input", spool, "--out", place / "device.moments")
        print("$ flexrel-edge", *command, *options, flush=True)
        running.append(subprocess.Popen(words("flexrel_edge.cli", *command, *options)))
    if sum(one.wait() for one in running):
        raise SystemExit("a device failed; its message is above")


def main(folder: Path) -> dict[str, object]:
    """Run the loop in an empty folder, and return what came of it."""
    offered, sent, fleet = folder / "offered", folder / "sent", folder / "fleet.moments"
    for made in (offered, sent, *(folder / name for name in DEVICES)):
        made.mkdir(parents=True)
    save_file(demo.train(demo.digits()).state_dict(), folder / "dense.safetensors")
    edge("keygen", folder / "server")
    for name in DEVICES:
        edge("keygen", folder / name / "device")
    devices = folder / "devices.pub"
    devices.write_text("".join((folder / n / "device.pub").read_text() for n in DEVICES))
    first = planned(folder / "first", folder / "server.key")
    shutil.copy(first, offered)
    with offering(offered) as address:

        def pulled() -> list[dict[str, Any]]:
            trust = ("--trust", folder / "server.pub", "--json")
            places = [folder / name / FILE for name in DEVICES]
            return [json.loads(edge("pull", f"{address}/{FILE}", at, *trust)) for at in places]

        pulled()
        observed(folder, sent)
        run("flexrel.cli", "merge", *sorted(sent.iterdir()), "--trust", devices, "-o", fleet)
        moments = ("--statistics", fleet, "--observed-with", first)
        second = planned(folder / "second", folder / "server.key", *moments)
        shutil.copy(second, offered)
        edge("diff", first, offered / FILE, "--beside")
        updates = pulled()
    digits = sum(DEVICES.values(), ())
    outcome = {
        "before": accuracy(first, digits),
        "after": accuracy(folder / "left" / FILE, digits),
        "bytes": second.stat().st_size,
        "moments": [one.stat().st_size for one in sorted(sent.iterdir())],
        "updates": updates,
    }
    print(json.dumps(outcome))
    return outcome


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004 - the folder
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
