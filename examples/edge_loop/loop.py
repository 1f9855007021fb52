"""The loop of a fleet on one machine: plan, use, observe, merge, plan anew, update.

python examples/edge_loop/loop.py FOLDER

A server prunes a network for handwritten digits by what all digits need, and offers the file over
HTTP. Two devices, processes of their own, pull it and answer requests; each sees other digits, and
measures, beside its requests, what matters in the dense network, which it has to measure by. The
server merges what they send, asks whether it is more than chance, plans anew from the dense
weights, and offers the new file with what changed; the devices pull that. All steps but the
devices' answers are commands of `flexrel` and `flexrel-edge`.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_file

import flexrel
from flexrel.cli import demo
from flexrel.online import Drift, Recalibrator, drift

HERE = Path(__file__).resolve()
DEVICES = {"left": (0, 1), "right": (2, 3)}  # the digits that each sees
ALL = tuple(range(10))
CRITERION = flexrel.FlexRel(0.33, blend="product")
PRUNE = ("--granularity", "element", "--budget", "sparsity=88%", "--recover", "none")
DENSE = "dense.safetensors"
MEASURED = 64  # requests whose relevance a device measures before it sends what it knows


def network() -> torch.nn.Module:
    """Return the architecture."""
    return demo.DigitsNetwork().eval()


def calibration() -> list[torch.Tensor]:
    """Return what the server knows of use before there is any: all digits."""
    return list(torch.cat(demo.digits().calibration).split(32))


def requests(digits: tuple[int, ...], *, judged: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return batches of these digits, (images, labels); what is judged is seen by no device."""
    batches = demo.digits().evaluation
    images, labels = (torch.cat([batch[side] for batch in batches]) for side in range(2))
    mine = sum(labels == digit for digit in digits).bool()
    images, labels = images[mine][judged::2], labels[mine][judged::2]
    return list(zip(images.split(4), labels.split(4), strict=True))


def run(package: str, *arguments: object) -> str:
    """Run a command by itself, show it, and return what it printed."""
    name = package.removesuffix(".cli").replace("_", "-")
    print("$", name, *arguments, flush=True)
    start = f"import sys; from {package} import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", start, *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
    )
    print(done.stdout, end="", flush=True)
    return done.stdout


def device(name: str, file: Path, dense: Path, sent: Path) -> None:
    """Answer requests with the pulled file, and write what was observed."""
    model, whole = network(), network()
    flexrel.load(file, into=model)
    load_model(whole, dense)
    mine = requests(DEVICES[name], judged=False)
    state = file.with_name("relevance.state")
    with Recalibrator(model, max_overhead=2.0, dense=whole, state=state) as answer:
        while answer.observed().measured < MEASURED:
            for images, _ in mine:
                answer(images)
    for at, block in enumerate(answer.blocks()):
        block.save(sent / f"{name}-{at}.stats")
    seen = answer.observed()
    print(f"{name}: {seen.requests} requests, relevance of {seen.measured}", flush=True)


def accuracy(file: Path, digits: tuple[int, ...]) -> float:
    """Return how often a file's network is right on digits that no device has seen."""
    model = network()
    flexrel.load(file, into=model)
    return flexrel.Accuracy(requests(digits, judged=True))(model)


def planned(folder: Path, dense: Path, *more: object) -> Path:
    """Prune the dense network into a folder, and return the packed file."""
    source = (
        "--weights",
        dense,
        "--calibration",
        f"{HERE}:calibration",
        "--criterion",
        CRITERION.name,
    )
    run("flexrel.cli", "prune", f"{HERE}:network", *source, *PRUNE, *more, "--out", folder)
    return folder / "model.flexrel"


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


def observed(folder: Path) -> None:
    """Run all devices at once, each in a process of its own, until they have sent their stats."""
    start = [sys.executable, HERE, folder]
    running = [subprocess.Popen([*map(str, start), name]) for name in DEVICES]
    if sum(one.wait() for one in running):
        raise SystemExit("a device failed; its message is above")


def main(folder: Path) -> dict[str, object]:
    """Run the loop in an empty folder, and return what came of it."""
    offered, sent, fleet = folder / "offered", folder / "sent", folder / "fleet.stats"
    for made in (offered, sent, *(folder / name for name in DEVICES)):
        made.mkdir(parents=True)
    model = demo.train(demo.digits())
    dense = folder / DENSE
    save_file(model.state_dict(), dense)
    first = planned(folder / "first", dense)
    shutil.copy(first, offered)
    with offering(offered) as address:

        def pulled() -> list[dict[str, Any]]:
            url = f"{address}/{first.name}"
            places = [folder / name / first.name for name in DEVICES]
            return [
                json.loads(run("flexrel_edge.cli", "pull", url, place, "--json"))
                for place in places
            ]

        pulled()
        observed(folder)
        run("flexrel.cli", "merge", *sorted(sent.iterdir()), "-o", fleet)
        found = moved(model, first, sent)
        print(f"more than chance: {found.significant()} ({found})")
        second = planned(folder / "second", dense, "--stats", fleet)
        shutil.copy(second, offered)
        run("flexrel_edge.cli", "diff", first, offered / first.name, "--beside")
        updates = pulled()
    digits = sum(DEVICES.values(), ())
    outcome = {
        "significant": found.significant(),
        "before": accuracy(first, digits),
        "after": accuracy(folder / "left" / first.name, digits),
        "bytes": second.stat().st_size,
        "updates": updates,
    }
    print(json.dumps(outcome))
    return outcome


def moved(model: torch.nn.Module, first: Path, sent: Path) -> Drift:
    """Return whether what the fleet sees moves the plan further than chance."""
    then = [flexrel.calibrate(model, [batch]) for batch in calibration()]
    parts = [[sent / f"{name}-{at}.stats" for name in DEVICES] for at in range(len(then))]
    now = [flexrel.merge(part).stats for part in parts]
    plan = flexrel.Plan.load(first.with_name("plan.json"))
    return drift(model, plan, CRITERION, then, now)


if __name__ == "__main__":
    match [Path(argument) for argument in sys.argv[1:]]:
        case [place]:
            main(place)
        case [place, Path(name=name)]:
            device(name, place / name / "model.flexrel", place / DENSE, place / "sent")
        case _:
            raise SystemExit(__doc__)
