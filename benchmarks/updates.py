"""Updates of packed files: bytes against the full file, bsdiff4 and zstd --patch-from.

    python benchmarks/updates.py                     measure what is missing (an hour on one core)
    python benchmarks/updates.py --networks resnet56 --again
    python benchmarks/updates.py --quick             digits alone, one change
    python benchmarks/updates.py --show              the page, from the JSON

Every update is carried out, and the result compared with the new file. Others' columns need bsdiff4
and zstandard.
"""

import copy
import importlib.util

import torch
from safetensors.numpy import save as safetensors
from torch.nn import functional

import common
import flexrel
import flexrel_edge
import tasks
import wire
from flexrel.io import encode
from flexrel_edge.difference import difference
from flexrel_edge.format import Reader
from flexrel_edge.source import InMemory
from flexrel_edge.update import Update

NETWORKS = ("resnet56", "minilm", "vgg16")
PRUNED = 0.8  # of the elements
SWAPS = (0.01, 0.02, 0.05)  # of the mask
NOISE = 0.3  # of the logarithm of a magnitude, in swaps
STEPS, RATE = 5, 1e-3  # of fine-tuning
SAMPLES = 64  # of each draw
SUFFIXES = 40_000_000  # bytes of the old file, up to which bsdiff4 is tried
OTHERS = ("bsdiff packed", "bsdiff raw", "zstd packed", "zstd raw")


# --- changes --------------------------------------------------------------------------------


def swapped(model, pruned, share, seed=0):
    """Return a copy in whose mask this share of the entries flips, as many to 0 as to 1."""
    new = copy.deepcopy(pruned)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        dense = torch.cat([w.flatten() for w in wire.matrices(model)])
        kept = torch.cat([w.flatten() for w in wire.matrices(pruned)]) != 0
        score = dense.abs().log() + NOISE * torch.randn(len(dense), generator=generator)
        count = round(share * len(dense) / 2)
        gone = score.where(kept, torch.inf).topk(count, largest=False).indices
        come = score.where(~kept, -torch.inf).topk(count).indices
        kept[gone], kept[come] = False, True
        at = 0
        for weight in wire.matrices(new):
            part = slice(at, at := at + weight.numel())
            weight.copy_(torch.where(kept[part], dense[part], 0).view_as(weight))
    return new


def batch(name, draw):
    """Return one of the draws of calibration data."""
    part = slice(draw * SAMPLES, (draw + 1) * SAMPLES)
    if name == "digits":
        return torch.cat(tasks.digits().inputs)[part]
    packs = common.data_packs()
    if name == "minilm":
        return common.sentences(packs)[part]
    return packs.normalise(name, packs.cifar10("train")[0][part])


def calibrated(name, model, draw):
    """Return a copy cut by relevance measured on one draw."""
    return flexrel.prune(
        model,
        calibration=[batch(name, draw)],
        budgets=[flexrel.Sparsity(PRUNED)],
        granularity="element",
        criterion=flexrel.FlexRel(0.5),
        recover="none",
    ).model


def tuned(name, model, pruned):
    """Return a copy after a few steps of SGD towards the dense outputs, its zeros held."""
    new = copy.deepcopy(pruned)
    masks = [w != 0 for w in wire.matrices(new)]
    optimiser = torch.optim.SGD(new.parameters(), RATE, momentum=0.9)
    for step in range(STEPS):
        data = batch(name, step)
        with torch.no_grad():
            target = model(data)
        optimiser.zero_grad()
        functional.mse_loss(new(data), target).backward()
        optimiser.step()
        with torch.no_grad():
            for weight, mask in zip(wire.matrices(new), masks, strict=True):
                weight.masked_fill_(~mask, 0)
    return new


def changes(name):
    """Yield the name of each change, and what makes the old and the new network."""
    model, sample = wire.network(name)
    old = wire.without_elements(model, PRUNED)
    for share in SWAPS:
        yield f"{share:.0%} of the mask", lambda share=share: (old, swapped(model, old, share))
    yield "fine-tuned", lambda: (old, tuned(name, model, old))
    yield (
        "fewer channels",
        lambda: [wire.without_channels(model, sample, left) for left in (0.5, 0.45)],
    )
    yield "recalibrated", lambda: [calibrated(name, model, draw) for draw in (0, 1)]


# --- files ----------------------------------------------------------------------------------


def patch_from(old, new):
    """Return the bytes of `zstd --patch-from`; None where zstandard is not installed."""
    if importlib.util.find_spec("zstandard") is None:
        return None
    import zstandard  # noqa: PLC0415 - of the extra "bench"

    whole = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    log = min(max((len(old) + len(new)).bit_length(), 20), 31)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19, window_log=log, enable_ldm=True, source_size=len(new), dict_size=len(old)
    )
    coder = zstandard.ZstdCompressor(dict_data=whole, compression_params=parameters)
    return len(coder.compress(new))


def bsdiff(old, new):
    """Return the bytes of bsdiff4; None for a large file, or where it is not installed."""
    if len(old) > SUFFIXES or importlib.util.find_spec("bsdiff4") is None:
        return None
    import bsdiff4  # noqa: PLC0415 - of the extra "bench"

    return len(bsdiff4.diff(old, new))


def flipped(old, new):
    """Return the share of the elements that are zero in one and not in the other."""
    if any(old[name].shape != new[name].shape for name in old):
        return None
    names = [name for name in old if old[name].ndim > 1]
    changed = sum(int(((old[n] != 0) != (new[n] != 0)).sum()) for n in names)
    return changed / sum(old[n].size for n in names)


def measured(old, new, values):
    """Return the sizes for two networks."""
    base, result = encode(old, values), encode(new, values)
    ours = difference(Reader(InMemory(base)), Reader(InMemory(result)))
    if b"".join(map(bytes, Update(InMemory(ours)).pieces(Reader(InMemory(base))))) != result:
        raise SystemExit("the update does not give the new file")
    tensors = [flexrel_edge.decode(data).tensors for data in (base, result)]
    raw = [safetensors(wire.plain(each)) for each in tensors]
    row = {"full": len(result), "ours": min(len(ours), len(result)), "flipped": flipped(*tensors)}
    for kind, pair in {"packed": (base, result), "raw": raw}.items():
        row[f"zstd {kind}"], row[f"bsdiff {kind}"] = patch_from(*pair), bsdiff(*pair)
    return row


def blocks(args):
    """Yield a block for each network, change and kind of values that is not there yet."""
    torch.set_num_threads(1)
    there = {(b["network"], b["change"], b["values"]) for b in common.read("updates")}
    for name in ("digits",) if args.quick else args.networks:
        for change, make in list(changes(name))[: 1 if args.quick else None]:
            wanted = [v for v in wire.VALUES if args.again or (name, change, v) not in there]
            made = make() if wanted else None
            for values in wanted:
                block = {"network": name, "change": change, "values": values}
                yield block | measured(*made, values)


def page(found):
    """Yield the page's parts."""
    if not found:
        return
    yield "# Bytes of updates"
    yield (
        "Made by `python benchmarks/updates.py`. Bytes of an update, as a share of the new packed "
        "file, against bsdiff4 and `zstd --patch-from` (level 19, window of the old file), between "
        "the packed files and between the same networks as safetensors files. *Of the mask*: this "
        "share of all its entries flips, half of them from kept to gone, those nearest to the "
        "threshold under noise. What has no row was not measured."
    )
    ratios = {}
    for block in found:
        known = [block[key] for key in OTHERS if block[key] is not None]
        ratios[_name(block)] = block["ours"] / min(known) if known else None
    said = []
    if known := {name: ratio for name, ratio in ratios.items() if ratio is not None}:
        worst = max(known, key=known.get)
        said.append(f"Worst against the best of the four: {known[worst]:.2f}, {worst}.")
    if two := [b["ours"] / b["full"] for b in found if b["change"] == "2% of the mask"]:
        said.append(
            f"Where 2 % of the mask flips, at most {100 * max(two):.0f} % of the full file."
        )
    yield " ".join(said)
    header = ["network, change", "values", "mask flipped", "full, kB", "ours", *OTHERS]
    yield common.table([*header, "ours / best"], (_row(b, ratios[_name(b)]) for b in found))


def _name(block):
    return f"{block['network']} {block['change']} {block['values']}"


def _row(block, ratio):
    keys = ("ours", *OTHERS)
    shares = ["" if block[k] is None else f"{block[k] / block['full']:.3f}" for k in keys]
    return [
        f"{block['network']} {block['change']}",
        block["values"],
        "" if block["flipped"] is None else f"{block['flipped']:.1%}",
        f"{block['full'] / 1e3:.0f}",
        *shares,
        "" if ratio is None else f"{ratio:.2f}",
    ]


def main():
    parser = common.parser(__doc__, NETWORKS)
    parser.add_argument("--again", action="store_true", help="measure also what is there")
    args = parser.parse_args()
    common.run(args, "updates", blocks(args), ("network", "change", "values"), page)


if __name__ == "__main__":
    main()
