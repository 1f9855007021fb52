"""How much of FlexRel a default prune of a tiny network enters: files and functions, in one line.

    python benchmarks/entered.py             the line
    python benchmarks/entered.py --by-file   and how many functions of each file

A function is one code object by its file and qualified name; comprehensions, lambdas and generator
expressions count, and the line says how many there are without them.
"""

import argparse
import sys
import threading
from collections import Counter
from pathlib import Path

import torch
from torch import nn

import flexrel
import flexrel_edge

for name in flexrel.__all__:  # names are loaded when they are asked for: what runs then is no work
    getattr(flexrel, name)
FOLDERS = tuple(f"{Path(package.__file__).parent}/" for package in (flexrel, flexrel_edge))


def prune_tiny():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(288, 4)).eval()
    batches = [torch.randn(16, 3, 8, 8) for _ in range(4)]
    flexrel.prune(model, calibration=batches, budgets=[flexrel.MACs(0.5)])


def entered(work):
    """Return the functions of FlexRel that the work enters: {(file, qualified name)}."""
    found = set()

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(FOLDERS):
            found.add((code.co_filename, code.co_qualname))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--by-file", action="store_true")
    args = parser.parse_args()
    found = entered(prune_tiny)
    named = [name for _, name in found if not name.endswith(">")]  # <lambda>, <genexpr>, ...
    files = Counter(file for file, _ in found)
    print(
        f"a default prune of a tiny network enters {len(files)} files and {len(found)} functions, "
        f"{len(named)} without comprehensions, lambdas and generator expressions"
    )
    for file, count in sorted(files.items()) if args.by_file else ():
        print(f"{count:5} {Path(file).parent.name}/{Path(file).name}")


if __name__ == "__main__":
    main()
