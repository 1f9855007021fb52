"""What the benchmarks share: the data packs, a clock, and tables that documents take in."""

import importlib
import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def data_packs():
    """Return the loader of the data packs: its `network`, `cifar10` and `normalise`.

    They stand beside the project; FLEXREL_DATA says where.
    """
    folder = Path(os.environ.get("FLEXREL_DATA", HERE.parent.parent / "shared" / "data"))
    if not (folder / "load.py").is_file():
        sys.exit(f"no data packs in {folder}; set FLEXREL_DATA to the folder that has load.py")
    sys.path.insert(0, str(folder))
    return importlib.import_module("load")


def save(name, content):
    """Write results/NAME.json beside, then rename, so that a stop leaves the last one whole."""
    RESULTS.mkdir(exist_ok=True)
    beside = RESULTS / f".{name}.json"
    beside.write_text(json.dumps(content, indent=None, separators=(",", ":")) + "\n")
    beside.rename(RESULTS / f"{name}.json")


def load(name):
    """Read results/NAME.json."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def replace_section(name, text):
    """Put the text between the marks of section NAME in README.md."""
    path = HERE / "README.md"
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    page = path.read_text()
    head, rest = page.split(begin)
    _, tail = rest.split(end)
    path.write_text(f"{head}{begin}\n{text.strip()}\n{end}{tail}")


def table(header, rows):
    """Return a Markdown table; all columns but the first are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
