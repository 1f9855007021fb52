"""Importance measured in use: from moments of devices without torch, when traffic moves, its cost.

    python benchmarks/in_use.py                      all parts; hours on one core
    python benchmarks/in_use.py --parts moments      one: moments, drift, alarms, overhead
    python benchmarks/in_use.py --quick              digits alone, one seed
    python benchmarks/in_use.py --show               the page, from the JSON

Requests are images that the network was not trained on, or, where there are too few, of its
training set, and what reports is another half. Nothing is chosen by the results.
"""

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

import common
import flexrel
import flexrel_edge
from flexrel.cli import demo
from flexrel.criteria.criteria import scores_of
from flexrel.criteria.kfac import measure_factors
from flexrel.observed import weighed
from flexrel.structure import named_tensors

CRITERION = "flexrel:0.33:product"
CALIBRATE, BATCH = 512, 64
KINDS = ((0, 1, 2), (3, 4, 5), (6, 7, 8))  # classes that a deployment sees
SIZES = {  # of a file, without a repair and with one; the search for bytes repairs many networks
    "digits": {"none": "bytes=19kB", "closed-form": "bytes=11kB"},
    "resnet20": {"none": "sparsity=70%", "closed-form": "sparsity=80%"},
}
SEEDS = {"digits": range(5), "resnet20": range(3)}
WANDA = "magnitude x input, by layer (Wanda)"
DIAGONAL = "that x gradient at the output (OBD)"


# --- networks in use ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class InUse:
    """A network, calibration data of all kinds, and images of some classes in two halves."""

    model: torch.nn.Module
    calibration: list
    requests: torch.Tensor
    judged: tuple


def in_use(network, seed, classes):
    """Return a network in use on some classes."""
    data = _digits(seed) if network == "digits" else _resnet20(seed)
    model, known, images, labels = data
    mine = torch.isin(labels, torch.tensor(classes)).nonzero()[:, 0]
    draw = torch.Generator().manual_seed(seed)
    mine = mine[torch.randperm(len(mine), generator=draw)]
    asked, judged = mine[::2], mine[1::2]
    return InUse(model, list(known.split(BATCH)), images[asked], (images[judged], labels[judged]))


@functools.cache
def _digits(seed):
    data = demo.digits()
    images, labels = (torch.cat([batch[side] for batch in data.evaluation]) for side in range(2))
    return demo.train(data, seed), data.train_x[:CALIBRATE], images, labels


@functools.cache
def _resnet20(seed):
    packs = common.data_packs()
    known, (images, labels) = packs.cifar10("train")[0], packs.cifar10("test_a")
    picked = np.random.default_rng(seed).permutation(len(known))[:CALIBRATE]
    place = functools.partial(packs.normalise, "resnet20")
    model = packs.network("resnet20").eval()
    return model, place(known[picked]), place(images), torch.from_numpy(labels)


def accuracy(model, judged):
    """Return which share of the images is classified right."""
    images, labels = (side.split(250) for side in judged)
    with torch.inference_mode():
        found = [model(x).argmax(1) == y for x, y in zip(images, labels, strict=True)]
    return float(torch.cat(found).float().mean())


def pruned(case, budget, recover, calibration=None, stats=None, criterion=CRITERION, **options):
    """Return the result of pruning single weights by some criterion."""
    return flexrel.prune(
        case.model,
        calibration=case.calibration if calibration is None else calibration,
        budgets=[budget],
        granularity="element",
        criterion=criterion,
        recover=recover,
        options=flexrel.PruneOptions(stats=stats, **options),
    )


def observed(model, requests, folder):
    """Return what a device tells of a packed network that answers these, and the packed file."""
    packed, out = folder / "net.flexrel", folder / "device.moments"
    out.unlink(missing_ok=True)
    flexrel.pack(model, packed, graph=requests[:2], observe=True)
    with flexrel_edge.Observer(packed, out, share=1.0, half_life=1e9, threads=1) as answer:
        for x in requests.split(4):
            answer(x.numpy())
    return flexrel_edge.read_moments(out), packed


# --- moments --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sized:
    """Magnitude times the size of the input, and perhaps of the gradient at the output.

    The first is Wanda (Sun et al. 2024), which compares weights within a layer; both are Optimal
    Brain Damage (LeCun et al. 1990) on the diagonal.
    """

    moments: object
    gradients: object = None
    name = "magnitude x input"
    needs = frozenset()

    def scores(self, signals):
        """Yield each weight's absolute value times the root mean square of its input."""
        for group in signals:
            weight, layer = group.magnitude(), group.group.name.removesuffix(".weight")
            inputs = torch.from_numpy(self.moments.layers[layer][1]).sqrt()
            weight *= inputs.view(1, -1, *[1] * (weight.ndim - 2))
            if self.gradients is not None:
                squares = self.gradients.layers[layer].outputs.diagonal(dim1=1, dim2=2)
                weight *= squares.flatten().sqrt().view(-1, *[1] * (weight.ndim - 1)).float()
            yield weight


def moments_blocks(networks, quick):
    """Yield a block for each network, seed and kind of traffic."""
    for network in networks:
        for seed in SEEDS[network][: 1 if quick else None]:
            for classes in KINDS[: 1 if quick else None]:
                yield _moments_block(network, seed, classes)


def _moments_block(network, seed, classes):
    case = in_use(network, seed, classes)
    requests = list(case.requests.split(BATCH))
    budgets = SIZES[network]
    server = flexrel.calibrate(case.model, case.calibration)
    first = pruned(case, budgets["closed-form"], "closed-form", stats=server)
    with tempfile.TemporaryDirectory() as folder:
        dense, packed = observed(case.model, case.requests, Path(folder))
        by_dense = weighed(case.model, case.calibration, dense, packed)
        told, packed = observed(first.model, case.requests, Path(folder))
        by_pruned = weighed(case.model, case.calibration, told, packed)
        size = Path(folder, "device.moments").stat().st_size
    real = flexrel.calibrate(case.model, requests)
    gradients = measure_factors(case.model, case.calibration, set(dense.layers))
    sources = {  # what is calibrated with, and the stats or the criterion
        "calibration data as they are": (case.calibration, server, CRITERION),
        WANDA: (case.calibration, server, Sized(dense)),
        DIAGONAL: (case.calibration, server, Sized(dense, gradients)),
        "weighed, dense network observed": (list(by_dense.batches), None, CRITERION),
        "weighed, network in use observed": (list(by_pruned.batches), None, CRITERION),
        "the requests themselves": (requests, real, CRITERION),
    }
    rows, truth = {}, None
    for name, (data, known, criterion) in [*sources.items()][::-1]:
        stats = flexrel.calibrate(case.model, data) if known is None else known
        found = {}
        for recover, budget in budgets.items():
            share = "per-layer" if name == WANDA else "global"
            result = pruned(case, budget, recover, data, stats, criterion, allocation=share)
            found[recover] = [accuracy(result.model, case.judged), result.achieved.bytes]
        graph = result.plan.graph
        scores = scores_of(result.criterion, graph, named_tensors(case.model), stats)
        flat = torch.cat([one.flatten() for one in scores.values()]).numpy()
        truth = flat if truth is None else truth
        rows[name] = {"rank": float(spearmanr(truth, flat)[0]), **found}
    return {
        "part": "moments",
        "case": f"{network}, classes {' '.join(map(str, classes))}",
        "network": network,
        "seed": seed,
        "requests": len(case.requests),
        "judged": len(case.judged[1]),
        "dense": accuracy(case.model, case.judged),
        "bytes": size,
        "worth": by_pruned.balance.worth,
        "rows": {name: rows[name] for name in sources},
        "versions": common.versions("torch", "onnxruntime"),
    }


def moments_page(found):
    """Yield what the page says of moments."""
    yield "## Devices without torch"
    yield (
        "A device tells what the layers of its network take in (`flexrel-edge observe`), in a file "
        f"of {min(b['bytes'] for b in found):,} to {max(b['bytes'] for b in found):,} bytes. The "
        "server weighs its calibration samples, of all ten classes, so that they look like that to "
        "the same network. Requests are of three classes. *Rank*: Spearman's correlation of the "
        "scores of all weights with those by relevance measured on the requests themselves. "
        "Accuracy in percent on images of these classes that nobody saw, of files of one size, "
        "without a repair and with one, in the mean over seeds and classes, ± its standard error."
    )
    for network in dict.fromkeys(b["network"] for b in found):
        mine = [b for b in found if b["network"] == network]
        lines = []
        for name in mine[0]["rows"]:
            rows = [b["rows"][name] for b in mine]
            rank, error = common.mean([(row["rank"], 0.0) for row in rows])
            cells = [f"{rank:.3f} ± {error:.3f}"]
            cells += [points([row[way][0] for row in rows]) for way in ("none", "closed-form")]
            lines.append([name, *cells])
        sizes = []
        for way in ("none", "closed-form"):
            each = [row[way][1] / 1000 for b in mine for row in b["rows"].values()]
            sizes.append(f"{min(each):.0f} to {max(each):.0f} kB")
        yield (
            f"{network}, {len(mine)} cases, dense {points([b['dense'] for b in mine])} %; "
            f"{mine[0]['judged']} images or so judge each."
        )
        header = ["planned by", "rank", f"not repaired, {sizes[0]}", f"repaired, {sizes[1]}"]
        yield common.table(header, lines)


def points(values, sign=""):
    """Return the mean of shares in percent, and its standard error."""
    middle, error = common.mean([(100 * value, 0.0) for value in values])
    return f"{middle:{sign}.1f} ± {error:.1f}"


# --- all ------------------------------------------------------------------------------------

BLOCKS = {"moments": moments_blocks}
SAID = {"moments": moments_page}


def page(found):
    """Yield the page's parts."""
    if not found:
        return
    yield "# Importance in use"
    yield "Made by `python benchmarks/in_use.py`."
    for part, said in SAID.items():
        if mine := [block for block in found if block["part"] == part]:
            yield from said(mine)
    yield common.measured_with(found[-1]["versions"])


def main():
    parser = common.parser(__doc__, ("digits", "resnet20"))
    parser.add_argument("--parts", nargs="+", default=[*BLOCKS], choices=[*BLOCKS])
    args = parser.parse_args()
    torch.set_num_threads(1)
    networks = ["digits"] if args.quick else args.networks
    blocks = (block for part in args.parts for block in BLOCKS[part](networks, args.quick))
    common.run(args, "in_use", blocks, ("part", "case", "seed"), page)


if __name__ == "__main__":
    main()
