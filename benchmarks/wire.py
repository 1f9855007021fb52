"""Packed files of real networks: bytes against the entropy bound and other packers, and the time.

    python benchmarks/wire.py                        measure what is missing (an hour on one core)
    python benchmarks/wire.py --networks resnet56 --again
    python benchmarks/wire.py --quick                digits alone, one cut
    python benchmarks/wire.py --show                 the page, from the JSON

The largest magnitudes stay: what is measured is the encoder. zstd's columns need zstandard.
"""

import copy
import importlib.util
import lzma
import math
import statistics
import time
from functools import partial

import numpy as np
import torch
from safetensors.numpy import save as safetensors

import common
import flexrel
import flexrel_edge
import tasks
from flexrel.io import encode
from flexrel_edge.records import PCODEC
from flexrel_edge.scales import on_grid
from flexrel_edge.tensor import encode_tensor

NETWORKS = ("resnet56", "efficientnet_lite0", "minilm", "vgg16")
SHARES = (0.5, 0.8, 0.9, 0.95)  # of the elements, pruned
VALUES = ("float32", "float16", "int8")
LEFT = 0.5  # of the multiply-adds, of a channel plan
LARGE = 1_000_000  # elements, from which on the bound is a goal
RUNS = 3
OTHERS = ("safetensors", "xz", "zstd", "bitmask")


def network(name):
    """Return the model and a batch of two samples."""
    if name == "digits":
        task = tasks.digits()
        return task.model, task.inputs[0][:2]
    packs = common.data_packs()
    if name == "minilm":
        return packs.minilm(), common.sentences(packs)[:2]
    x, _ = packs.imagenet1k() if name == "efficientnet_lite0" else packs.cifar10("train")
    return packs.network(name), packs.normalise(name, x[:2])


# --- cuts -----------------------------------------------------------------------------------


def without_channels(model, sample, left=LEFT):
    """Return a copy with so many channels fewer that this share of the multiply-adds is left."""
    return flexrel.prune(
        model,
        calibration=[sample],
        budgets=[flexrel.MACs(left)],
        criterion=flexrel.Magnitude(),
        recover="none",
    ).model


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


def cuts(model, sample):
    """Yield the name of each cut, what makes the model of it, and the bound of its masks."""
    both = SHARES[1]
    for share in SHARES:
        yield f"elements {share:.0%}", partial(without_elements, model, share), mask_bytes
    channels = partial(without_channels, model, sample)
    yield f"channels 1/{1 / LEFT:.0f}", channels, mask_bytes
    yield (
        f"channels 1/{1 / LEFT:.0f}, elements {both:.0%}",
        lambda: without_elements(channels(), both),
        mask_bytes,
    )
    yield "2:4", partial(in_groups, model), mask_of_groups
    yield f"block:4x4 {both:.0%}", partial(in_blocks, model, both), mask_of_blocks


# --- bounds ---------------------------------------------------------------------------------


def mask_bytes(total, kept):
    """Return log2 of how many masks keep as many, in bytes."""
    ways = math.lgamma(total + 1) - math.lgamma(kept + 1) - math.lgamma(total - kept + 1)
    return ways / math.log(2) / 8


def mask_of_groups(total, kept):
    """Return the bytes that tell which 2 of every 4 are kept."""
    return total / 4 * math.log2(6) / 8 if 2 * kept == total else mask_bytes(total, kept)


def mask_of_blocks(total, kept):
    """Return the bytes that tell which blocks of 16 are kept."""
    whole = total % 16 == kept % 16 == 0
    return mask_bytes(total // 16, kept // 16) if whole else mask_bytes(total, kept)


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


def bits(tensor):
    return tensor.reshape(-1).view(f"u{tensor.itemsize}")


# --- files ----------------------------------------------------------------------------------


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


def zstd(data):
    """Return the bytes after zstd -19; None where zstandard is not installed."""
    if importlib.util.find_spec("zstandard") is None:
        return None
    import zstandard  # noqa: PLC0415 - of the extra "bench"

    return len(zstandard.ZstdCompressor(level=19).compress(data))


def bitmask(tensors):
    """Return the packed masks and the kept values."""
    pieces = []
    for tensor in tensors.values():
        flat = bits(tensor)
        pieces += [np.packbits(flat != 0).tobytes(), flat[flat != 0].tobytes()]
    return b"".join(pieces)


def measured(tensors, data, mask):
    """Return sizes and speeds for tensors and their packed file."""
    stored = plain(tensors)
    raw = safetensors(stored)
    width, entropy = bounds(stored, mask)
    dense = sum(tensor.nbytes for tensor in tensors.values())
    return {
        "ours": len(data),
        "width": width,
        "entropy": entropy,
        "safetensors": len(raw),
        "xz": len(lzma.compress(raw, preset=9)),
        "zstd": zstd(raw),
        "bitmask": zstd(bitmask(stored)),
        "large": large(stored, mask),
        "encode": speed(lambda: flexrel_edge.encode(tensors), 1, dense),
        "decode": speed(lambda: flexrel_edge.decode(data), RUNS, dense),
    }


def speed(work, runs, size):
    """Return MB of dense output a second of the processor's time, the median."""
    seconds = []
    for _ in range(runs):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return size / 1e6 / statistics.median(seconds)


def large(stored, mask):
    """Return ours over both bounds of each sparse float16 tensor above a million elements."""
    found = {}
    for name, tensor in stored.items():
        if tensor.dtype == np.float16 and tensor.size > LARGE and not tensor.all():
            ours = len(encode_tensor(np.ascontiguousarray(tensor), tensor.dtype.name, PCODEC))
            found[name] = [ours / bound for bound in bounds({name: tensor}, mask)]
    return found


def blocks(args):
    """Yield a block for each network, cut and kind of values that is not there yet."""
    torch.set_num_threads(1)
    there = {(b["network"], b["cut"], b["values"]) for b in common.read("wire")}
    for name in ("digits",) if args.quick else args.networks:
        model, sample = network(name)
        for cut, make, mask in list(cuts(model, sample))[: 1 if args.quick else None]:
            wanted = [v for v in VALUES if args.again or (name, cut, v) not in there]
            made = make() if wanted else None
            for values in wanted:
                data = encode(made, values)
                row = measured(flexrel_edge.decode(data).tensors, data, mask)
                yield {"network": name, "cut": cut, "values": values} | row


def page(found):
    """Yield the page's parts."""
    if not found:
        return
    yield "# Bytes of the packed file"
    yield (
        "Made by `python benchmarks/wire.py`. Packed files of networks whose smallest weights are "
        "zero, or that a magnitude plan of channels cut to half their multiply-adds, or both; or "
        "whose zeros come two in four input channels, or by blocks. *Mask + values*: for each "
        "tensor log2 of the number of masks, of this kind, that keep as many elements, plus the "
        "kept elements at their width (for int8 a byte, and float32 scales). *Mask + entropy*: "
        "instead of the width the order-0 entropy of the tensor's kept values, with the correction "
        "of Miller and Madow, at most the width; for float32 it says nothing, as nearly every "
        "value is there once. Others' bytes are multiples of ours: safetensors (int8: whole "
        "numbers and scales), that file through xz -9 and zstd -19, and bits of the mask and kept "
        "values through zstd -19. Encode and decode in MB of dense output a second of the "
        "processor's time, one core."
    )
    tensors = [pair for block in found for pair in block["large"].values()]
    slowest = f"Slowest decoding: {min(b['decode'] for b in found):.0f} MB/s of processor time."
    worst = ""
    if tensors:
        of_width, of_entropy = map(max, zip(*tensors, strict=True))
        worst = (
            f"Of {len(tensors)} sparse float16 tensors above a million elements the worst takes "
            f"{of_width:.3f} of mask + values, {of_entropy:.3f} of mask + entropy. "
        )
    yield worst + slowest
    header = ["network", "values", "ours, kB", "of mask + values", "of mask + entropy"]
    header += [*OTHERS[:-1], "bitmask + zstd", "encode", "decode"]
    yield common.table(header, map(_row, found))


def _row(block):
    ours = block["ours"]
    entropy = "" if block["values"] == "float32" else f"{ours / block['entropy']:.3f}"
    others = ["" if block[k] is None else f"{block[k] / ours:.2f}" for k in OTHERS]
    return [
        f"{block['network']} {block['cut']}",
        block["values"],
        f"{ours / 1e3:.0f}",
        f"{ours / block['width']:.3f}",
        entropy,
        *others,
        *(f"{block[key]:.0f}" for key in ("encode", "decode")),
    ]


def main():
    parser = common.parser(__doc__, NETWORKS)
    parser.add_argument("--again", action="store_true", help="measure also what is there")
    args = parser.parse_args()
    common.run(args, "wire", blocks(args), ("network", "cut", "values"), page)


if __name__ == "__main__":
    main()
