"""What the benchmarks share: command line, results in JSON, pages of tables, clock, data packs.

A benchmark measures blocks, dicts that go to results/NAME.json one by one as they come, and turns
them into a page of tables, docs/results/NAME.md. It begins with `parser` and ends with `run`.
"""

import argparse
import functools
import importlib
import importlib.util
import json
import math
import os
import sys
import textwrap
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
RESULTS = Path(os.environ.get("FLEXREL_RESULTS", HERE / "results"))
PAGES = HERE.parent / "docs" / "results"
MIB = 2**20


# --- measure, save, show --------------------------------------------------------------------


def parser(doc, networks=()):
    """Return the command line that all benchmarks have; `networks` are those that may be named."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--quick", action="store_true", help="in seconds, on data that need no packs")
    made.add_argument("--show", action="store_true", help="measure nothing: write the page alone")
    if networks:
        made.add_argument("--networks", nargs="+", default=networks, choices=tuple(networks))
    return made


def run(args, name, blocks, keys, page):
    """Save and print blocks as they come, each in the place of an earlier one; write the page.

    Args:
        args: of `parser`. With `show`, blocks are not gone through. With `quick`, they go to
            results/NAME-quick.json, and the page is printed instead.
        name: of the JSON and the page.
        blocks: an iterable that measures as it is gone through.
        keys: of a block, that tell it from others.
        page: blocks -> the page's parts.
    """
    file = f"{name}-quick" if args.quick else name
    for block in () if args.show else blocks:
        keep(file, block, *keys)
        print(", ".join(str(block[key]) for key in keys), flush=True)
    if args.quick:
        print(text_of(page(read(file))))
    else:
        write(name, page(read(file)))


def read(name):
    """Return the blocks of results/NAME.json; none where it isn't there."""
    return load(name, {"blocks": []})["blocks"]


def keep(name, block, *keys):
    """Save the block in the place of the one with the same values of the keys, or at the end."""
    rest, mine = read(name), [block[key] for key in keys]
    at = next((n for n, other in enumerate(rest) if [other[k] for k in keys] == mine), len(rest))
    save(name, {"blocks": [*rest[:at], block, *rest[at + 1 :]]})


def save(name, content):
    """Write results/NAME.json beside, then rename, so that a stop leaves the last one whole."""
    RESULTS.mkdir(exist_ok=True)
    beside = RESULTS / f".{name}.json"
    beside.write_text(json.dumps(content, indent=None, separators=(",", ":")) + "\n")
    beside.rename(RESULTS / f"{name}.json")


def load(name, otherwise):
    """Return what results/NAME.json holds; `otherwise` where it isn't there."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else otherwise


# --- pages ----------------------------------------------------------------------------------


def write(name, parts):
    """Write docs/results/NAME.md; nothing where no part is."""
    if text := text_of(parts):
        PAGES.mkdir(exist_ok=True)
        (PAGES / f"{name}.md").write_text(text)


def text_of(parts):
    """Return a page of its parts: titles, paragraphs, lists, tables. Empty ones are left out."""
    whole = [wrapped(part.strip()) for part in parts if part]
    return "\n\n".join(whole) + "\n" if whole else ""


def wrapped(part):
    """Return paragraphs and lists in lines of at most 100; titles and tables as they are."""
    if part.startswith(("|", "#", "!", "<")):
        return part
    return "\n\n".join(map(_filled, part.split("\n\n")))


def _filled(paragraph):
    items = []
    for line in paragraph.splitlines():
        if line.startswith("- ") or not items:
            items.append(line)
        else:
            items[-1] += f" {line.strip()}"
    how = {"break_long_words": False, "break_on_hyphens": False}
    return "\n".join(
        textwrap.fill(item, 100, subsequent_indent="  " * item.startswith("- "), **how)
        for item in items
    )


def table(header, rows):
    """Return a Markdown table; all columns but the first are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def listed(lines):
    """Return a list of Markdown."""
    return "\n".join(f"- {line}" for line in lines)


def quoted(text):
    """Return a message as a cell of a table takes it."""
    return "`" + text.replace("`", "'").replace("|", "\\|") + "`" if text else ""


def mean(pairs):
    """Return the mean of values with errors, and its error: theirs, or what they differ by."""
    values, errors = zip(*pairs, strict=True)
    count, middle = len(values), sum(values) / len(values)
    own = math.sqrt(sum(e * e for e in errors)) / count
    spread = math.sqrt(sum((v - middle) ** 2 for v in values) / max(count - 1, 1) / count)
    return middle, max(own, spread)


def versions(*packages):
    """Return the versions of those packages that are installed, and Python's, by name."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def measured_with(block):
    """Return a line with what a block was measured with."""
    return f"Versions: {', '.join(f'{name} {number}' for name, number in block.items())}."


# --- clock and memory -----------------------------------------------------------------------


def timed(work):
    """Return the seconds that the work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Peak:
    """The largest resident memory while the block runs, above what it was before, in bytes."""

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


def resident():
    """Return the process's resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


# --- data -----------------------------------------------------------------------------------


def data_packs():
    """Return the loader of the data packs: its `network`, `cifar10` and `normalise`.

    They stand beside the project; FLEXREL_DATA says where.
    """
    folder = Path(os.environ.get("FLEXREL_DATA", HERE.parent.parent / "shared" / "data"))
    if not (folder / "load.py").is_file():
        sys.exit(f"no data packs in {folder}; set FLEXREL_DATA to the folder that has load.py")
    sys.path.insert(0, str(folder))
    return importlib.import_module("load")


def sentences(packs):
    """Return token ids of training sentences for MiniLM: int64 `[sentences, 64]`, 0 = padding."""
    ids = np.load(Path(packs.__file__).parent / "minilm" / "data.npz")["sst2_train_ids"]
    return torch.from_numpy(ids.astype(np.int64))


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
