"""Packed files of real networks: bytes against the entropy bound and other packers, and the time.

    python benchmarks/wire.py                        measure what is missing, then write the table
    python benchmarks/wire.py --only resnet56        these networks alone
    python benchmarks/wire.py --again                measure also what results/wire.json has
    python benchmarks/wire.py --speed                of that, measure the speeds alone again

Needs the extra "bench". One core. The largest magnitudes stay: what is measured is the encoder.
"""

import argparse
import copy
import lzma
import math
import statistics
import time
from functools import partial

import numpy as np
import torch
import zstandard
from safetensors.numpy import save as safetensors

import common
import flexrel_edge
from flexrel.core import cost
from flexrel.core.batches import first_samples, read_batches
from flexrel.criteria import Magnitude, UnitRanking, scores_of
from flexrel.io import encode
from flexrel.pruning.bisection import least_removal
from flexrel.structure import analyse, apply
from flexrel_edge.records import PCODEC
from flexrel_edge.scales import on_grid
from flexrel_edge.tensor import encode_tensor

NETWORKS = ("resnet56", "efficientnet_lite0", "minilm", "vgg16")
SHARES = (0.5, 0.8, 0.9, 0.95)  # of the elements, pruned
VALUES = ("float32", "float16", "int8")
LEFT = 0.5  # of the multiply-adds, of a channel plan
LARGE = 1_000_000  # elements, from which on the bound is a goal
RUNS = 3


def network(packs, name):
    """Return the model and a batch of two samples."""
    if name == "minilm":
        return packs.minilm(), common.sentences(packs)[:2]
    x, _ = packs.imagenet1k() if name == "efficientnet_lite0" else packs.cifar10("train")
    return packs.network(name), packs.normalise(name, x[:2])


def without_channels(model, sample, left=LEFT):
    """Return a copy with so many channels fewer that this share of the multiply-adds is left."""
    graph = analyse(model, first_samples(next(read_batches([sample], model)), 2), "channel")
    scores = scores_of(Magnitude(), graph, dict(model.named_parameters()), None)
    removal = UnitRanking(graph, scores)
    limit = left * cost.macs(graph)
    count = least_removal(
        lambda k: cost.macs(graph, removal.plan(k).masks), limit, removal.removable
    )
    return apply(model, removal.plan(count))


def matrices(model):
    return [p for p in model.parameters() if p.dim() > 1]


def without_elements(model, share):
    """Return a copy whose smallest weights, this share of all of them, are zero."""
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        weights = matrices(pruned)
        sizes = torch.cat([w.abs().flatten() for w in weights])
        limit = sizes.kthvalue(max(int(share * len(sizes)), 1)).values
        for weight in weights:
            weight.masked_fill_(weight.abs() <= limit, 0)  # times 0 would be -0.0, which is kept
    return pruned


def in_groups(model):
    """Return a copy with the 2 smallest of every 4 input channels zero, where 4 divides them."""
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for weight in matrices(pruned):
            if weight.shape[1] % 4 == 0:
                parts = weight.movedim(1, -1).unflatten(-1, (-1, 4))
                parts.masked_fill_(parts.abs().argsort(-1).argsort(-1) < 2, 0)
    return pruned


def in_blocks(model, share):
    """Return a copy of whose blocks of 4 x 4 the smallest are zero, in each matrix they divide."""
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for weight in matrices(pruned):
            matrix = weight.view(len(weight), -1)
            if all(side % 4 == 0 for side in matrix.shape):
                blocks = matrix.unflatten(1, (-1, 4)).unflatten(0, (-1, 4))
                size = blocks.abs().mean((1, 3), keepdim=True)
                blocks.masked_fill_(size <= size.quantile(share), 0)
    return pruned


def plain(tensors):
    """Return the tensors as others would store them: on a grid as whole numbers and scales."""
    stored = {}
    for name, tensor in tensors.items():
        grid = None
        if tensor.dtype == np.float32 and tensor.ndim > 1 and tensor.size:
            grid = on_grid(tensor.reshape(len(tensor), -1))
        if grid is None:
            stored[name] = tensor
        else:
            stored[name], stored[f"{name}.scale"] = grid[0].reshape(tensor.shape), grid[1]
    return stored


def bits(tensor):
    return tensor.reshape(-1).view(f"u{tensor.itemsize}")


def mask_of_groups(total, kept):
    """Return the bytes that tell which 2 of every 4 are kept."""
    return total / 4 * math.log2(6) / 8 if 2 * kept == total else mask_bytes(total, kept)


def mask_of_blocks(total, kept):
    """Return the bytes that tell which blocks of 16 are kept."""
    whole = total % 16 == kept % 16 == 0
    return mask_bytes(total // 16, kept // 16) if whole else mask_bytes(total, kept)


def mask_bytes(total, kept):
    """Return log2 of how many masks keep as many, in bytes."""
    ways = math.lgamma(total + 1) - math.lgamma(kept + 1) - math.lgamma(total - kept + 1)
    return ways / math.log(2) / 8


def entropy_bytes(values):
    """Return the order-0 entropy of the values, at most their width, in bytes.

    With Miller's and Madow's correction: where many values are seen once, the plain estimate is
    far too low.
    """
    if not len(values):
        return 0.0
    _, counts = np.unique(values, return_counts=True)
    shares = counts / len(values)
    each = -float((shares * np.log2(shares)).sum())
    each += (len(counts) - 1) / (2 * len(values) * math.log(2))
    return min(each / 8, values.itemsize) * len(values)


def bounds(tensors, mask=mask_bytes):
    """Return bytes of mask and kept values at their width, and at their order-0 entropy."""
    masks = width = entropy = 0.0
    for tensor in tensors.values():
        flat = bits(tensor)
        kept = flat[flat != 0]
        masks += mask(len(flat), len(kept))
        width += kept.nbytes
        entropy += entropy_bytes(kept)
    return masks + width, masks + entropy


def bitmask(tensors, compressor):
    """Return bytes of the packed masks and the kept values, all through zstd."""
    pieces = []
    for tensor in tensors.values():
        flat = bits(tensor)
        pieces += [np.packbits(flat != 0).tobytes(), flat[flat != 0].tobytes()]
    return len(compressor.compress(b"".join(pieces)))


def speed(work, runs, size):
    """Return MB of dense output a second of the processor's time, the median."""
    seconds = []
    for _ in range(runs):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return size / 1e6 / statistics.median(seconds)


def measured(tensors, data, mask):
    """Return a row for tensors and their packed file."""
    stored = plain(tensors)
    raw = safetensors(stored)
    compressor = zstandard.ZstdCompressor(level=19)
    width, entropy = bounds(stored, mask)
    return {
        "ours": len(data),
        "width": width,
        "entropy": entropy,
        "safetensors": len(raw),
        "xz": len(lzma.compress(raw, preset=9)),
        "zstd": len(compressor.compress(raw)),
        "bitmask": bitmask(stored, compressor),
        "large": large(stored, mask),
    } | speeds(tensors, data)


def speeds(tensors, data):
    dense = sum(tensor.nbytes for tensor in tensors.values())
    return {
        "encode": speed(lambda: flexrel_edge.encode(tensors), 1, dense),
        "decode": speed(lambda: flexrel_edge.decode(data), RUNS, dense),
    }


def large(stored, mask):
    """Return ours over both bounds of each sparse float16 tensor above a million elements."""
    found = {}
    for name, tensor in stored.items():
        if tensor.dtype == np.float16 and tensor.size > LARGE and not tensor.all():
            ours = len(encode_tensor(np.ascontiguousarray(tensor), PCODEC))
            found[name] = [ours / bound for bound in bounds({name: tensor}, mask)]
    return found


def cuts(model, sample):
    """Yield the name of each cut, what makes the model of it, and the bound of its masks."""
    for share in SHARES:
        pruned = partial(without_elements, model, share)
        yield f"elements {share:.0%}", pruned, mask_bytes
    yield f"channels 1/{1 / LEFT:.0f}", lambda: without_channels(model, sample), mask_bytes
    both = SHARES[1]
    yield (
        f"channels 1/{1 / LEFT:.0f}, elements {both:.0%}",
        lambda: without_elements(without_channels(model, sample), both),
        mask_bytes,
    )
    yield "2:4", partial(in_groups, model), mask_of_groups
    yield f"block:4x4 {both:.0%}", partial(in_blocks, model, both), mask_of_blocks


def show(content):
    header = ["network", "values", "ours, kB", "of mask + values", "of mask + entropy"]
    header += ["safetensors", "xz", "zstd", "bitmask + zstd", "encode", "decode"]
    rows = []
    for key, row in content.items():
        ours = row["ours"]
        others = [f"{row[k] / ours:.2f}" for k in ("safetensors", "xz", "zstd", "bitmask")]
        speeds = [f"{row[k]:.0f}" for k in ("encode", "decode")]
        near = [f"{ours / row['width']:.3f}", f"{ours / row['entropy']:.3f}"]
        if key.endswith("float32"):
            near[1] = ""
        rows.append([*key.rsplit(" ", 1), f"{ours / 1e3:.0f}", *near, *others, *speeds])
    worst = [
        max(each)
        for each in zip(
            *(r for row in content.values() for r in row["large"].values()), strict=True
        )
    ]
    slowest = min(row["decode"] for row in content.values())
    count = sum(len(row["large"]) for row in content.values())
    said = f"Slowest decoding: {slowest:.0f} MB/s of processor time."
    if worst:
        said = (
            f"Of {count} sparse float16 tensors above a million elements the worst takes "
            f"{worst[0]:.3f} of mask + values, {worst[1]:.3f} of mask + entropy. {said}"
        )
    common.replace_section("wire", f"{said}\n\n{common.table(header, rows)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--again", action="store_true", help="measure also what is there")
    parser.add_argument("--speed", action="store_true", help="measure the speeds alone again")
    parser.add_argument("--show", action="store_true", help="the table, from the JSON")
    args = parser.parse_args()
    content = common.load("wire", {})
    if not args.show:
        torch.set_num_threads(1)
        packs = common.data_packs()
        for name in args.only:
            model, sample = network(packs, name)
            for cut, make, mask in cuts(model, sample):
                there = [v for v in VALUES if f"{name} {cut} {v}" in content]
                wanted = (
                    there if args.speed else [v for v in VALUES if args.again or v not in there]
                )
                made = make() if wanted else None
                for values in wanted:
                    data = encode(made, values)
                    tensors = flexrel_edge.decode(data).tensors
                    row = content.get(f"{name} {cut} {values}", {})
                    row |= speeds(tensors, data) if args.speed else measured(tensors, data, mask)
                    content[f"{name} {cut} {values}"] = row
                    common.save("wire", content)
                    print(name, cut, values, row["ours"], flush=True)
    show(content)


if __name__ == "__main__":
    main()
