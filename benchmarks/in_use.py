"""Importance measured in use: from moments of devices without torch, when traffic moves, its cost.

    python benchmarks/in_use.py                      what is missing; hours on one core
    python benchmarks/in_use.py --parts moments      one: moments, alarms, drift, gap, overhead
    python benchmarks/in_use.py --quick              digits alone, one seed
    python benchmarks/in_use.py --show               the page, from the JSON

Requests are images that the network was not trained on, or, where there are too few, of its
training set, and what reports is another half. Nothing is chosen by the results.
"""

import copy
import functools
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import beta, spearmanr
from torch.nn import functional

import common
import flexrel
import flexrel_edge
from flexrel.cli import demo
from flexrel.core.throttle import MOST_TOGETHER
from flexrel.criteria.criteria import scores_of
from flexrel.criteria.kfac import measure_factors
from flexrel.observed import weighed
from flexrel.online import Recalibrator, drift
from flexrel.relevance import ForgettingBlocks
from flexrel.structure import named_tensors
from flexrel.training import Tracker

CRITERION = "flexrel:0.33:product"
CALIBRATE, BATCH = 512, 64
BLOCKS_OF = 8  # stats of use
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


def observed(model, requests, folder, half_life=1e9):
    """Return what a device tells of a packed network that answers these, and the packed file."""
    packed, out = folder / "net.flexrel", folder / "device.moments"
    out.unlink(missing_ok=True)
    flexrel.pack(model, packed, graph=requests[:2], observe=True)
    with flexrel_edge.Observer(packed, out, share=1.0, half_life=half_life, threads=1) as answer:
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


def moments_work(networks, quick):
    """Yield case, seed and what measures it, for each network, seed and kind of traffic."""
    for network in networks:
        for seed in SEEDS[network][: 1 if quick else None]:
            for classes in KINDS[: 1 if quick else None]:
                case = f"{network}, classes {' '.join(map(str, classes))}"
                yield case, seed, functools.partial(_moments, network, seed, classes)


def _moments(network, seed, classes):
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
        "network": network,
        "requests": len(case.requests),
        "judged": len(case.judged[1]),
        "dense": accuracy(case.model, case.judged),
        "bytes": size,
        "worth": by_pruned.balance.worth,
        "rows": {name: rows[name] for name in sources},
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


# --- traffic that stays ---------------------------------------------------------------------

TRAFFIC, EACH, LOOKS = 20_000, 10, 250  # requests of a seed; measured together; between two checks
THEN = 64  # samples of each of the 8 blocks of then
SHUFFLES = 99
CHANNELS = flexrel.FlexRel(0.5)


def alarms_work(networks, quick):
    """Yield case, seed and what measures it, for each network for digits."""
    del networks
    for seed in SEEDS["digits"][: 1 if quick else None]:
        yield "digits", seed, functools.partial(_alarms, seed, 2_000 if quick else TRAFFIC)


def _alarms(seed, requests):
    """Return how many checks of requests that are drawn from one set of images say "anew"."""
    model, known, images, _ = _digits(seed)
    draw = torch.Generator().manual_seed(seed)
    plan = flexrel.prune(
        model, calibration=[known], budgets=["macs=50%"], criterion=CHANNELS, recover="none"
    ).plan

    def some(count):
        return images[torch.randint(len(images), (count,), generator=draw)]

    then = [flexrel.calibrate(model, [some(THEN)]) for _ in range(BLOCKS_OF)]
    now = ForgettingBlocks(BLOCKS_OF * THEN * math.log(2))  # as many samples are left of it
    checks = alarms = 0
    for answered in range(EACH, requests + EACH, EACH):
        now.add(flexrel.calibrate(model, [some(EACH)]))
        if answered % LOOKS == 0:
            blocks = now.now()
            found = drift(model, plan, CHANNELS, then, blocks, shuffles=SHUFFLES, seed=answered)
            checks += 1
            alarms += found.significant()
    return {"requests": requests, "checks": checks, "alarms": alarms}


def alarms_page(found):
    """Yield what the page says of stationary traffic."""
    requests, checks, alarms = (
        sum(b[key] for b in found) for key in ("requests", "checks", "alarms")
    )
    low, high = interval(alarms, checks)
    yield "## Traffic that stays as it is"
    yield (
        f"{requests:,} requests for digits, drawn from one set of images, of {len(found)} "
        f"networks; every {LOOKS} of them `drift` asks, at 1 in 100, whether to plan anew, against "
        f"8 blocks of {THEN} samples of before. {alarms} of {checks} checks said so, "
        f"{alarms / checks:.2%} (95 % confidence, were checks independent: {low:.2%} to "
        f"{high:.2%}). Stated is 1 %. By network: "
        + ", ".join(f"{b['alarms']} of {b['checks']}" for b in found)
        + "."
    )


def interval(hits, count):
    """Return Clopper and Pearson's 95 % interval of a share."""
    low = beta.ppf(0.025, hits, count - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, count - hits) if hits < count else 1.0
    return float(low), float(high)


# --- traffic that moves ---------------------------------------------------------------------

BEFORE, AFTER, CHECK = 500, 2_000, 100  # requests of the old kind, of the new; between two checks
SHARES = (1.0, 0.1)  # of the requests, whose relevance is measured
MOVES = {  # sparsity of the plan in use
    "classes 0 1 2, then 3 4 5": "sparsity=70%",
    "classes 5 6 7, then 0 8 9": "sparsity=70%",
    "growing noise": "sparsity=60%",
    "growing blur": "sparsity=60%",
    "growing contrast loss": "sparsity=60%",
}
SEVERITIES = {  # of CIFAR-10-C (Hendrycks and Dietterich 2019), mild to severe
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
}


def corrupted(images, kind, severity):
    """Return images, uint8, with Gaussian noise or blur, or with less contrast; severity 1 to 5."""
    x, amount = images / 255.0, SEVERITIES[kind][severity - 1]
    if kind == "noise":
        x = x + np.random.default_rng(severity).normal(size=x.shape, scale=amount)
    elif kind == "blur":
        x = gaussian_filter(x, (0, amount, amount, 0), mode="nearest")
    else:
        means = x.mean(axis=(1, 2), keepdims=True)
        x = (x - means) * amount + means
    return (x.clip(0, 1) * 255).astype(np.uint8)


def moved(move):
    """Return network, calibration, old requests, new ones, and what judges, for a move."""
    packs = common.data_packs()
    (known, labels), (seen, truth) = packs.cifar10("train"), packs.cifar10("test_a")
    order = np.random.default_rng(0).permutation(len(known))
    known, labels = known[order], labels[order]
    place = functools.partial(packs.normalise, "resnet20")
    general, rest = place(known[:CALIBRATE]), slice(CALIBRATE, None)
    known, labels = known[rest], labels[rest]
    if move.startswith("classes"):
        old, new = ([int(one) for one in part.split() if one.isdigit()] for part in move.split(","))
        before, after = known[np.isin(labels, old)], known[np.isin(labels, new)]
        mine = np.isin(truth, new)
        judged, truth = seen[mine], truth[mine]
        calibration = place(before[:CALIBRATE])
        before, after = place(before[CALIBRATE:][:BEFORE]), place(after[:AFTER])
        anew = after
    else:
        kind = move.split()[1]
        calibration, before = general, place(known[:BEFORE])
        clean = known[BEFORE : BEFORE + AFTER]
        after = place(
            np.concatenate(
                [corrupted(x, kind, at + 1) for at, x in enumerate(np.array_split(clean, 5))]
            )
        )
        anew = place(corrupted(clean, kind, 5))
        judged, truth = corrupted(seen[:2000], kind, 5), truth[:2000]
    judged = place(judged), torch.from_numpy(truth)
    model = packs.network("resnet20").eval()
    return InUse(model, list(calibration.split(BATCH)), after, judged), general, before, anew


def drift_work(networks, quick):
    """Yield case, seed and what measures it, for each move."""
    if quick or "resnet20" not in networks:
        return
    for move, budget in MOVES.items():
        yield move, 0, functools.partial(_drifted, move, budget)


def _drifted(move, budget):
    case, general, before, anew = moved(move)
    first = pruned(case, budget, "none")
    then = [flexrel.calibrate(case.model, [x]) for x in case.calibration]
    rows = {"made once": _outcome(first.model, first, case)}
    again = pruned(case, budget, "none", list(before.split(BATCH)))
    rows["blind, traffic as before"] = _outcome(again.model, first, case)
    noticed, distances = {}, {}
    for share in SHARES:
        now = ForgettingBlocks(BEFORE * share)
        for x in before[:: round(1 / share)].split(EACH):
            now.add(flexrel.calibrate(case.model, [x]))
        noticed[f"{share:g}"] = None
        for at, x in enumerate(case.requests.split(CHECK)):
            for part in x[:: round(1 / share)].split(EACH):
                now.add(flexrel.calibrate(case.model, [part]))
            if noticed[f"{share:g}"] is None and (at + 1) * CHECK <= 5 * CHECK:
                found = drift(
                    case.model, first.plan, first.criterion, then, now.now(), shuffles=SHUFFLES
                )
                distances[f"{share:g}"] = [found.distance, found.noise]
                if found.significant():
                    noticed[f"{share:g}"] = (at + 1) * CHECK
        blocks = now.now()
        stats = functools.reduce(lambda one, other: one + other, blocks)
        ours = pruned(case, budget, "none", stats=stats)
        rows[f"ours, relevance of {share:.0%}"] = _outcome(ours.model, first, case)
    with tempfile.TemporaryDirectory() as folder:
        told, packed = observed(first.model, case.requests, Path(folder), half_life=BEFORE)
        data = weighed(case.model, [*case.calibration, *general.split(BATCH)], told, packed)
    ours = pruned(case, budget, "none", list(data.batches))
    rows["ours, moments"] = _outcome(ours.model, first, case)
    oracle = pruned(case, budget, "none", list(anew.split(BATCH)))
    rows["oracle"] = _outcome(oracle.model, first, case)
    return {
        "budget": budget,
        "judged": len(case.judged[1]),
        "dense": accuracy(case.model, case.judged),
        "noticed": noticed,
        "distances": distances,
        "made_up": 1 - data.balance.after / data.balance.before,
        "rows": rows,
    }


def _outcome(model, first, case):
    """Return accuracy, the file's bytes, and those of an update from the first plan's file."""
    with tempfile.TemporaryDirectory() as folder:
        old, new, update = (Path(folder, name) for name in ("old", "new", "update"))
        flexrel.pack(first.model, old)
        flexrel.pack(model, new)
        size = flexrel_edge.diff(old, new, update)
        return [accuracy(model, case.judged), new.stat().st_size, size]


def drift_page(found):
    """Yield what the page says of traffic that moves."""
    yield "## Traffic that moves"
    yield (
        "resnet20, single weights at zero, not repaired, as updates of repaired networks are whole "
        f"files. {BEFORE} requests of the kind that the plan was made for, then {AFTER:,} of "
        "another; severity of corruptions, as of CIFAR-10-C, grows from 1 to 5. Half-life "
        f"{BEFORE} requests. *Oracle*: planned by all the new requests, at severity 5. *Relevance "
        "of 10 %*: measured on every tenth request. *Moments*: of all, by the network in use, "
        "without torch; weighed are calibration samples of the old kind and of all ten classes. "
        "Accuracy in percent on images "
        "of the new kind that nobody saw; in brackets the update's bytes, in percent of the file."
    )
    names = list(found[0]["rows"])
    lines, gaps, sizes = [], {}, []
    for b in found:
        cells = []
        for name in names:
            right, size, update = b["rows"][name]
            cells.append(f"{100 * right:.1f}" + (f" ({update / size:.0%})" if update else ""))
            if name.startswith("ours"):
                gaps.setdefault(name, []).append(100 * (b["rows"]["oracle"][0] - right))
                sizes.append(update / size)
        noticed = ", ".join(str(n) if n else f"not in {5 * CHECK}" for n in b["noticed"].values())
        lines.append([b["case"], f"{100 * b['dense']:.1f}", *cells, noticed])
    header = ["move", "dense", *names, "noticed after, of 100 % and 10 %"]
    yield common.table(header, lines)
    worse = [b["case"] for b in found if b["rows"]["oracle"][0] < b["rows"]["made once"][0]]
    if worse:
        yield (
            "Where the dense network itself is mostly wrong, what mattered to its answers is no "
            f"guide: the oracle's plan is worse than the one made once for {' and '.join(worse)}."
        )
    worst = ", ".join(f"{name} {max(gap):.1f}" for name, gap in gaps.items())
    errors = max(100 * (b["dense"] * (1 - b["dense"]) / b["judged"]) ** 0.5 for b in found)
    yield (
        f"Points below the oracle, at most: {worst} (one standard error of an accuracy is up to "
        f"{errors:.1f}). Updates of ours: {min(sizes):.0%} to {max(sizes):.0%} of the file."
    )


# --- how far calibration data tell of others ------------------------------------------------

GAPS = {"magnitude": "magnitude", "relevance": "relevance", "FlexRel": CRITERION}
GAP_SEEDS, HALF = range(5), 0.5  # share of digits that calibrate


def gap_work(networks, quick):
    """Yield case, seed and what measures it, for each network and seed."""
    for network in () if quick else networks:
        for seed in GAP_SEEDS:
            yield network, seed, functools.partial(_gap, network, seed)


def _gap(network, seed):
    """Return accuracies on what was calibrated with and on what was not, at one size."""
    model, _, images, labels = _digits(seed) if network == "digits" else _resnet20(seed)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    count = min(CALIBRATE, round(HALF * len(images)))
    known, unseen = ((images[part], labels[part]) for part in (order[:count], order[count:]))
    case = InUse(model, list(known[0].split(BATCH)), None, unseen)
    rows = {}
    for name, criterion in GAPS.items():
        for recover, budget in SIZES[network].items():
            cut = pruned(case, budget, recover, criterion=criterion)
            both = [accuracy(cut.model, judged) for judged in (known, unseen)]
            rows.setdefault(name, {})[recover] = [*both, cut.achieved.bytes]
    dense = [accuracy(model, judged) for judged in (known, unseen)]
    return {"samples": [count, len(unseen[1])], "dense": dense, "rows": rows}


def gap_page(found):
    """Yield what the page says of calibration data and others."""
    yield "## What calibration data tell of others"
    yield (
        "Files of one size, weights chosen, and fitted where they are, on samples that the network "
        "was not trained on. *Gap*: accuracy on these less that on others, in points; means over "
        f"{len(GAP_SEEDS)} draws ± their standard error. *Spread*: standard deviation of the gap."
    )
    for network in dict.fromkeys(b["case"] for b in found):
        mine = [b for b in found if b["case"] == network]
        gaps = [one - other for one, other in (b["dense"] for b in mine)]
        lines = [["dense", "", points([b["dense"][1] for b in mine]), *_gaps(gaps)]]
        for recover, told in (("none", "no"), ("closed-form", "yes")):
            for name in GAPS:
                rows = [b["rows"][name][recover] for b in mine]
                gaps = [row[0] - row[1] for row in rows]
                lines.append([name, told, points([row[1] for row in rows]), *_gaps(gaps)])
        counts = mine[0]["samples"]
        yield f"{network}, {counts[0]} samples calibrate, {counts[1]:,} others judge."
        yield common.table(["by", "repaired", "accuracy on others, %", "gap", "spread"], lines)


def _gaps(gaps):
    return [points(gaps, "+"), f"{100 * float(np.std(gaps, ddof=min(len(gaps) - 1, 1))):.1f}"]


# --- what it costs --------------------------------------------------------------------------

SEGMENTS, OVERHEAD = 100, (0.05, 0.01, 0.005)  # turns; of time, as `max_overhead`
ASKED = {"digits": 2000, "resnet20": 300}  # requests of one turn
STEPS, LOOK = 60, 100  # of training; steps between two looks


def overhead_work(networks, quick):
    """Yield case, seed and what measures it, for each network."""
    for network in networks:
        yield network, 0, functools.partial(_overhead, network, quick)


def _overhead(network, quick):
    """Return seconds of requests and of steps of training, with and without."""
    model, known, images, _ = _digits(0) if network == "digits" else _resnet20(0)
    segments = 4 if quick else SEGMENTS
    return {
        "requests": {
            f"{most:g}": _asked(model, images, most, ASKED[network], segments) for most in OVERHEAD
        },
        "tracker": _tracked(model, known, 3 if quick else STEPS),
    }


def _asked(model, images, most, asked, segments):
    """Return quantiles of requests' times without and with a recalibrator, segments in turn."""
    times = {"without": [], "with": []}
    answer = Recalibrator(model, max_overhead=most, save_every=math.inf)
    with answer, torch.inference_mode():
        for at in range(segments):
            name, call = (("without", model), ("with", answer))[at % 2]
            while answer._throttle.waiting >= MOST_TOGETHER:  # noqa: SLF001 - no pass of the other's turn
                time.sleep(0.001)
            for number in range(asked):
                x = images[number % len(images)][None]
                began = time.perf_counter()
                call(x)
                times[name].append(time.perf_counter() - began)
        seen = answer.observed()
    found = {
        name: [1000 * float(np.quantile(each, q)) for q in (0.5, 0.99)]
        for name, each in times.items()
    }
    draw = np.random.default_rng(0)  # whole segments, drawn again and again
    parts = [np.array(each).reshape(-1, asked) for each in (times["with"], times["without"])]
    ratios = []
    for _ in range(1000):
        picked = draw.integers(0, len(parts[0]), len(parts[0]))
        one, other = (np.quantile(part[picked], (0.5, 0.99)) for part in parts)
        ratios.append(one / other)
    return {
        **found,
        "ratio": [
            one / other for one, other in zip(*(found[k] for k in ("with", "without")), strict=True)
        ],
        "error": np.std(ratios, axis=0).tolist(),
        "measured": seen.measured,
        "requests": seen.requests,
        "overhead": seen.overhead,
    }


def _tracked(model, images, steps):
    """Return CPU seconds of a step of training, of a step that is counted, and of a look."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    tracker = Tracker(model, every=LOOK)
    x = images[:BATCH]
    y = torch.zeros(len(x), dtype=torch.int64)
    step, counted, looks = [], [], []
    for number in range(steps):
        began = time.process_time()
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        step.append(time.process_time() - began)
        for every, into in ((LOOK, counted), (1, looks)):
            once = tracker if every == LOOK else Tracker(model, every=1)
            if every == LOOK or number % 5 == 0:
                began = time.process_time()
                once.step(x)
                into.append(time.process_time() - began)
    return [float(np.median(each)) for each in (step, counted, looks)]


def overhead_page(found):
    """Yield what the page says of costs."""
    yield "## What it costs"
    yield (
        "Requests of one image, one after the other without a pause, with a recalibrator and "
        "without, in turns: milliseconds at the median and at 99 of 100, and ratios, ± the "
        "standard error by whole turns drawn again. A real server's requests come with pauses, in "
        "which passes hurt nobody. Overhead: seconds of relevance passes for one of answers."
    )
    lines = []
    for b in found:
        for most, one in b["requests"].items():
            cells = [f"{one['without'][at]:.2f} / {one['with'][at]:.2f}" for at in range(2)]
            cells += [f"{one['ratio'][at]:.2f} ± {one['error'][at]:.2f}" for at in range(2)]
            measured = f"{one['measured']} of {one['requests']:,}"
            lines.append(
                [f"{b['case']}, {float(most):.1%}", *cells, f"{one['overhead']:.1%}", measured]
            )
    header = ["network, `max_overhead`", "p50 without / with, ms", "p99 without / with, ms"]
    yield common.table([*header, "p50 ratio", "p99 ratio", "overhead", "measured"], lines)
    lines = []
    for b in found:
        step, counted, look = b["tracker"]
        share = (counted * (LOOK - 1) + look) / (LOOK * step)
        lines.append([b["case"], f"{1000 * step:.1f}", f"{1000 * look:.1f}", f"{share:.1%}"])
    yield f"`Tracker(every={LOOK})` beside steps of {BATCH} images, CPU time of one thread:"
    yield common.table(["network", "a step, ms", "a look, ms", "share of all steps"], lines)


# --- all ------------------------------------------------------------------------------------

WORK = {
    "moments": moments_work,
    "alarms": alarms_work,
    "drift": drift_work,
    "gap": gap_work,
    "overhead": overhead_work,
}
SAID = {
    "moments": moments_page,
    "alarms": alarms_page,
    "drift": drift_page,
    "gap": gap_page,
    "overhead": overhead_page,
}


def blocks(args):
    """Yield a block for each case that is not measured yet."""
    networks = ["digits"] if args.quick else args.networks
    anew = args.again or args.quick
    known = {(b["part"], b["case"], b["seed"]) for b in ([] if anew else common.read("in_use"))}
    for part in args.parts:
        for case, seed, measure in WORK[part](networks, args.quick):
            if (part, case, seed) not in known:
                found = {"part": part, "case": case, "seed": seed, **measure()}
                yield {**found, "versions": common.versions("torch", "onnxruntime")}


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
    parser.add_argument("--parts", nargs="+", default=[*WORK], choices=[*WORK])
    parser.add_argument("--again", action="store_true", help="also what is measured already")
    args = parser.parse_args()
    torch.set_num_threads(1)
    common.run(args, "in_use", blocks(args), ("part", "case", "seed"), page)


if __name__ == "__main__":
    main()
