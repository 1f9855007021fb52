"""Updates of packed files: bytes against the full file, bsdiff4 and zstd --patch-from.

    python benchmarks/updates.py                     measure what is missing, then write the table
    python benchmarks/updates.py --only resnet56     these networks alone
    python benchmarks/updates.py --again             measure also what results/updates.json has

Needs the extra "bench". Every update is carried out, and the result compared with the new file.
"""

import argparse
import copy

import bsdiff4
import torch
import zstandard
from safetensors.numpy import save as safetensors
from torch.nn import functional

import common
import flexrel_edge
import wire
from flexrel.core.batches import first_samples, read_batches
from flexrel.criteria import FlexRel, UnitRanking, scores_of
from flexrel.io import encode
from flexrel.relevance import calibrate
from flexrel.structure import analyse
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


def batches(packs, name, draw):
    """Return one of the draws of calibration data."""
    part = slice(draw * SAMPLES, (draw + 1) * SAMPLES)
    if name == "minilm":
        return [common.sentences(packs)[part]]
    return [packs.normalise(name, packs.cifar10("train")[0][part])]


def calibrated(packs, name, model, draw):
    """Return a copy cut by relevance measured on one draw."""
    data = batches(packs, name, draw)
    graph = analyse(model, first_samples(next(read_batches(data, model)), 2), "element")
    found = calibrate(model, data)
    scores = scores_of(FlexRel(0.5), graph, dict(model.named_parameters()), found)
    plan = UnitRanking(graph, scores).plan(int(PRUNED * graph.units))
    return wire.apply(model, plan)


def tuned(packs, name, model, pruned):
    """Return a copy after a few steps of SGD towards the dense outputs, its zeros held."""
    new = copy.deepcopy(pruned)
    masks = [w != 0 for w in wire.matrices(new)]
    optimiser = torch.optim.SGD(new.parameters(), RATE, momentum=0.9)
    for step in range(STEPS):
        (data,) = batches(packs, name, step)
        with torch.no_grad():
            target = model(data)
        optimiser.zero_grad()
        functional.mse_loss(new(data), target).backward()
        optimiser.step()
        with torch.no_grad():
            for weight, mask in zip(wire.matrices(new), masks, strict=True):
                weight.masked_fill_(~mask, 0)
    return new


def pairs(packs, name):
    """Yield the name of each change, and what makes the old and the new network."""
    model, sample = wire.network(packs, name)
    old = wire.without_elements(model, PRUNED)
    for share in SWAPS:
        yield f"{share:.0%} of the mask", lambda share=share: (old, swapped(model, old, share))
    yield "fine-tuned", lambda: (old, tuned(packs, name, model, old))
    yield (
        "fewer channels",
        lambda: [wire.without_channels(model, sample, left) for left in (0.5, 0.45)],
    )
    yield "recalibrated", lambda: [calibrated(packs, name, model, draw) for draw in (0, 1)]


def patch_from(old, new):
    """Return the bytes of `zstd --patch-from`."""
    whole = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    log = min(max((len(old) + len(new)).bit_length(), 20), 31)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19, window_log=log, enable_ldm=True, source_size=len(new), dict_size=len(old)
    )
    coder = zstandard.ZstdCompressor(dict_data=whole, compression_params=parameters)
    return len(coder.compress(new))


def flipped(old, new):
    """Return the share of the elements that are zero in one and not in the other."""
    if any(old[name].shape != new[name].shape for name in old):
        return None
    names = [name for name in old if old[name].ndim > 1]
    changed = sum(int(((old[n] != 0) != (new[n] != 0)).sum()) for n in names)
    return changed / sum(old[n].size for n in names)


def measured(old, new, values):
    """Return a row for two networks."""
    base, result = encode(old, values), encode(new, values)
    ours = difference(Reader(InMemory(base)), Reader(InMemory(result)))
    if b"".join(map(bytes, Update(InMemory(ours)).pieces(Reader(InMemory(base))))) != result:
        raise SystemExit("the update does not give the new file")
    tensors = [flexrel_edge.decode(data).tensors for data in (base, result)]
    raw = [safetensors(wire.plain(each)) for each in tensors]
    row = {"full": len(result), "ours": min(len(ours), len(result)), "flipped": flipped(*tensors)}
    for kind, (before, after) in {"packed": (base, result), "raw": raw}.items():
        row[f"zstd {kind}"] = patch_from(before, after)
        small = len(before) <= SUFFIXES
        row[f"bsdiff {kind}"] = len(bsdiff4.diff(before, after)) if small else None
    return row


def show(content):
    others = ["bsdiff packed", "bsdiff raw", "zstd packed", "zstd raw"]
    header = ["network, change", "values", "mask flipped", "full, kB", "ours", *others]
    header += ["ours / best"]
    rows, ratios = [], {}
    for key, row in content.items():
        best = min(row[k] for k in others if row[k] is not None)
        ratios[key] = row["ours"] / best
        shares = [
            "" if row[k] is None else f"{row[k] / row['full']:.3f}" for k in ["ours", *others]
        ]
        mask = "" if row["flipped"] is None else f"{row['flipped']:.1%}"
        rows.append([*key.rsplit(" ", 1), mask, f"{row['full'] / 1e3:.0f}", *shares])
        rows[-1].append(f"{ratios[key]:.2f}")
    if not rows:
        return
    worst = max(ratios, key=ratios.get)
    two = [row["ours"] / row["full"] for key, row in content.items() if " 2% of" in key]
    said = f"Worst against the best of the four: {ratios[worst]:.2f}, {worst}."
    if two:
        said += f" Where 2 % of the mask flips, at most {max(two):.0%} of the full file."
    common.replace_section("updates", f"{said}\n\n{common.table(header, rows)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--again", action="store_true", help="measure also what is there")
    parser.add_argument("--show", action="store_true", help="the table, from the JSON")
    args = parser.parse_args()
    content = common.load("updates", {})
    if not args.show:
        torch.set_num_threads(1)
        packs = common.data_packs()
        for name in args.only:
            for change, make in pairs(packs, name):
                keys = {values: f"{name} {change} {values}" for values in wire.VALUES}
                wanted = [v for v, key in keys.items() if args.again or key not in content]
                made = make() if wanted else None
                for values in wanted:
                    content[keys[values]] = row = measured(*made, values)
                    common.save("updates", content)
                    print(keys[values], row, flush=True)
    show(content)


if __name__ == "__main__":
    main()
