"""What the benchmarks share: the data packs, a clock, and tables that documents take in."""

import functools
import importlib
import importlib.util
import json
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
RESULTS = Path(os.environ.get("FLEXREL_RESULTS", HERE / "results"))


def data_packs():
    """Return the loader of the data packs: its `network`, `cifar10` and `normalise`.

    They stand beside the project; FLEXREL_DATA says where.
    """
    folder = Path(os.environ.get("FLEXREL_DATA", HERE.parent.parent / "shared" / "data"))
    if not (folder / "load.py").is_file():
        sys.exit(f"no data packs in {folder}; set FLEXREL_DATA to the folder that has load.py")
    sys.path.insert(0, str(folder))
    return importlib.import_module("load")


@functools.cache  # what is declared goes when the library that is returned does
def declare_operators():
    """Declare what torchvision's wheel compiles for CUDA only, where it doesn't load without."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
    else:
        return None
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def sentences(packs):
    """Return token ids of training sentences for MiniLM: int64 `[sentences, 64]`, 0 = padding."""
    ids = np.load(Path(packs.__file__).parent / "minilm" / "data.npz")["sst2_train_ids"]
    return torch.from_numpy(ids.astype(np.int64))


def timed(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def resident():
    """Return the process's resident memory in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


class Peak:
    """The largest resident memory while the block runs, above what it was before."""

    def __enter__(self):
        self.base, self.most, self._stop = resident(), resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._stop.wait(0.002):
            self.most = max(self.most, resident())

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    @property
    def bytes(self):
        return self.most - self.base


def save(name, content):
    """Write results/NAME.json beside, then rename, so that a stop leaves the last one whole."""
    RESULTS.mkdir(exist_ok=True)
    beside = RESULTS / f".{name}.json"
    beside.write_text(json.dumps(content, indent=None, separators=(",", ":")) + "\n")
    beside.rename(RESULTS / f"{name}.json")


def load(name, otherwise=None):
    """Read results/NAME.json; where it isn't there return `otherwise`, if that is given."""
    if otherwise is not None and not is_measured(name):
        return otherwise
    return json.loads((RESULTS / f"{name}.json").read_text())


def blocks(name):
    """Read the blocks of results/NAME.json; none where it isn't there."""
    return load(name, {"blocks": []})["blocks"]


def keep(name, block, *keys, **more):
    """Put the block in the place of the last one with the same values of the keys, and save all."""
    rest = [other for other in blocks(name) if any(other[key] != block[key] for key in keys)]
    save(name, more | {"blocks": [*rest, block]})


def is_measured(name):
    """Return whether there is results/NAME.json."""
    return (RESULTS / f"{name}.json").is_file()


def replace_section(name, text):
    """Put the text between the marks of section NAME in README.md."""
    path = HERE / "README.md"
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    page = path.read_text()
    head, rest = page.split(begin)
    _, tail = rest.split(end)
    path.write_text(f"{head}{begin}\n{text.strip()}\n{end}{tail}")


def versions(block):
    """Return a line with what a block was measured with."""
    return (
        f"Versions: {', '.join(f'{name} {number}' for name, number in block['versions'].items())}."
    )


def table(header, rows):
    """Return a Markdown table; all columns but the first are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
