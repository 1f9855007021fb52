"""Fewer bits a value: bytes and accuracy, rounded to the nearest or so that outputs stay.

    python benchmarks/precision.py                    measure (about half an hour on two cores)
    python benchmarks/precision.py --only resnet20    one network
    python benchmarks/precision.py --show             the table from the JSON alone

Nothing is pruned or trained. Each network is packed and loaded again. Rounding is fitted to
unlabelled images of `train` and the like, and reported on images that nothing was chosen on;
networks and images are those of `recover.py`.
"""

import argparse
import copy
import tempfile
import time
from pathlib import Path

import torch

import common
import flexrel
from recover import CASES, Data, accuracy, spread

NETWORKS = ("resnet20", "resnet56", "vgg16", "efficientnet_lite0", "minilm")
DRAWS = {"resnet20": (0, 1, 2), "resnet56": (0, 1, 2), "minilm": (0, 1, 2)}  # others: one
FITTED = ("int8", "int4")


def measure(packs, network, save):
    case = next(case for case in CASES if case.network == network and not case.few)
    model = packs.minilm() if network == "minilm" else packs.network(network)
    test = Data(packs, case, 0).test
    rows = [{"values": "float32", "bytes": 0, "nearest": accuracy(model, test)}]

    def packed(values, calibration=()):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.flexrel"
            began = time.monotonic()
            written = flexrel.pack(model, path, values, calibration=calibration)
            seconds = time.monotonic() - began
            loaded = flexrel.load(path, into=copy.deepcopy(model))
        return written.bytes, accuracy(loaded.eval(), test), seconds

    rows[0]["bytes"] = packed("float32")[0]
    for values in ("float16", *FITTED):
        size, nearest, _ = packed(values)
        rows.append({"values": values, "bytes": size, "nearest": nearest})
    for row in rows:
        if row["values"] not in FITTED:
            continue
        row["fitted"], row["seconds"] = [], []
        for draw in DRAWS.get(network, (0,)):
            images = [batch[0] for batch in Data(packs, case, draw).calibrate]
            row["bytes"], found, seconds = packed(row["values"], images)
            row["fitted"].append(found)
            row["seconds"].append(seconds)
            print(network, row, flush=True)
            save(rows)
    save(rows)


def table(content):
    shown = []
    for network, rows in content.items():
        dense = rows[0]["bytes"]
        for row in rows:
            fitted = spread(row["fitted"]) if row.get("fitted") else ""
            seconds = f"{min(row['seconds']):.0f} s" if row.get("seconds") else ""
            size = [f"{row['bytes'] / 1e3:,.0f} kB", f"{row['bytes'] / dense:.3f}"]
            shown.append([network, row["values"], *size, f"{row['nearest']:.1f}", fitted, seconds])
    header = ["network", "values", "file", "of float32", "to the nearest", "fitted", "time"]
    return common.table(header, shown)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    content = common.load("precision", {"networks": {}})["networks"]
    for network in () if args.show else args.only:

        def save(rows, network=network):
            content[network] = rows
            common.save("precision", {"torch": torch.__version__, "networks": content})

        measure(common.data_packs(), network, save)
    common.replace_section("precision", table(content))


if __name__ == "__main__":
    main()
