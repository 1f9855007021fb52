"""The paper's experiment: the bytes that an accuracy costs, by magnitude, by relevance, by both.

    python benchmarks/paper.py                        measure all (half a day on two cores); a run
                                                      that was stopped goes on where it was
    python benchmarks/paper.py --networks resnet56 --granularities channel --repairs none
    python benchmarks/paper.py --model torchvision:vgg16 --data imagenet/val
                                                      the paper's own network and data, if at hand
    python benchmarks/paper.py --quick                digits alone, few forms, one target, in a
                                                      minute; needs no data
    python benchmarks/paper.py --show                 the page from the JSON alone

For every network, deployment and granularity, with and without the same repair, networks of falling
size are made until accuracy is 5 points below the dense network's. The targets are the dense
network's accuracy less 0.5, 1, 2 and 5 points; what counts is the packed file at each, all files by
one encoder, float16. At each size FlexRel is one of its forms: the one that diverges least from the
dense network on calibration data, without labels, as `prune` chooses, of all or of those that are
not OBS; or the most accurate on labelled data that nothing is reported on.
"""

import itertools
import math
from functools import partial
from statistics import fmean, median, variance

import numpy as np
import torch

import common
import figures
import sizes
import tasks
from flexrel import OBS, FlexRel, Magnitude, Relevance

SAVED = 0.35  # of the bytes of the better single signal: channels, unlike the training data
GRANULARITIES = {"channel": "channels", "element": "weights"}
REPAIRS = ("none", "closed-form")
LIKE = ("as trained", "STS-B")  # deployments like the training data
FOUND, BLEND, LABELS = "FlexRel", "FlexRel without OBS", "FlexRel by labels"  # ways to choose
SINGLE = ("magnitude", "relevance")
BYTES = (*SINGLE, FOUND)
SAVINGS = {FOUND: "saving", BLEND: "without OBS", LABELS: "by labels"}
PACKAGES = ("flexrel", "torch", "numpy", "pcodec")
EXPERIMENT = ("network", "deployment", "granularity", "repair", "draw")
ABOUT = """
Made by `python benchmarks/paper.py`; with `--model torchvision:vgg16 --data imagenet/val` it takes
the paper's own network and images. Bytes of the packed file, float16, as a share of the dense
network's, at an accuracy of the dense network's less 0.5, 1, 2 and 5 points. ± is
one standard error.

- *Bytes*: of networks on a grid of sizes, each 0.85 of the one before (efficientnet_lite0: 0.95),
  those of the smallest that reaches the accuracy, and between neighbours along a straight line.
- *FlexRel*: at each size the form of the score that diverges least from the dense network on
  calibration data, as `prune` chooses, without labels; *form* names it. *By labels*: the one most
  accurate on labelled data that nothing is reported on. *Without OBS*: where OBS is not among them.
- The forms: magnitude, relevance, blends of the two and, of channels, OBS: the loss that a repair
  can't make up for, which is neither ([method](../method.md)). Not repaired, `prune` tries
  more blends and no OBS.
- *Saving*: over the better of the two single signals, with the error of 200 draws of the n images
  or pairs that report. In blocks measured before draws were interpolated between all networks that
  were made, of channels those that say nothing *without OBS*, it is too large where a draw just
  misses a target and the next larger network is much larger.
- Data: `benchmarks/tasks.py`, all disjoint. Unlike the training data: 3 of 10 classes; half of the
  images with noise, half with little contrast; MiniLM, a sentence encoder, on film reviews (SST-2).
  Accuracy is the share of right answers, on STS-B Spearman's rank correlation. CIFAR-10's to
  calibrate and to choose by are images that the networks were trained on.
- Calibration data were drawn once, seed 0, but where another draw is named (`--draws 1 2`); the
  errors of those drawn once leave other draws out. OBS lets units go one after the other: where
  many can stand for each other, as in vgg16 on 3 classes, its smallest networks differ much from
  draw to draw.
- Not in the errors: the defaults were settled on the same networks, by other images, but the few
  scores that are tried with a repair by what was best on the same test images
  ([method](../method.md), "What settled the defaults").
"""
QUICK = {"channel": (Magnitude(), Relevance(), FlexRel(), OBS())}
QUICK["element"] = QUICK["channel"][:-1]


def forms(granularity, repair):
    """Return the forms of the score, by name: the single signals, the paper's sum, and ours.

    A repair takes minutes where a cut takes seconds, so that fewer forms are repaired.
    """
    if repair == "none":
        blends = [FlexRel(delta) for delta in (0.1, 0.5, 0.9)]
        blends += [FlexRel(delta, "product") for delta in (1 / 3, 2 / 3)]
        blends += [OBS()] if granularity == "channel" else []
    elif granularity == "channel":
        blends = [OBS(), FlexRel()]
    else:
        blends = [FlexRel(0.1), FlexRel(1 / 3, "product")]
    return {one.name: one for one in (Magnitude(), Relevance(), *blends)}


def choices(forms):
    """Return, by name, how FlexRel's form is chosen: of which, and what it has least of."""
    blends = tuple(name for name in forms if name != OBS().name)
    found = {FOUND: (tuple(forms), lambda point: point.divergence)}
    if len(blends) < len(forms):
        found[BLEND] = blends, lambda point: point.divergence
    return found | {LABELS: (tuple(forms), lambda point: -point.choose)}


def measure(task, granularity, repair, wanted, drops=sizes.DROPS):
    """Return a block of results: networks, bytes at every target, and what FlexRel saves.

    Return also its unfinished form, which is on disk until it is told that the block is saved.
    """
    unfinished = sizes.Unfinished(task.network, task.deployment, granularity, repair, task.draw)
    how = {"repair": repair != "none", "unfinished": unfinished}
    workshop = sizes.Workshop(task, granularity, wanted, **how)
    curves = {}

    def walk(name, at):
        curves[name] = sizes.Curve(workshop, at, list(curves.values()), drops)
        print(f"  {name}: {unfinished.seconds:.0f} s", flush=True)

    for name in SINGLE:
        walk(name, partial(workshop.at, name))
    ways = choices(wanted)
    for name, (among, key) in ways.items():
        walk(name, partial(workshop.best_at, among, key))
    block = {
        "network": task.network,
        "deployment": task.deployment,
        "granularity": granularity,
        "repair": repair,
        "draw": task.draw,
        "unit": task.test.unit,
        "samples": len(workshop.dense.outcomes),
        "calibration": sum(len(inputs) for inputs in task.inputs),
        "judged": workshop.judged,  # of these
        "dense": workshop.dense.row() | {"parameters": workshop.parameters},
        "step": workshop.step,
        "drops": drops,
        "needed": {n: [round(c.needed(d)) for d in drops] for n, c in curves.items()},
        "forms": {n: [c.smallest(d).form for d in drops] for n, c in curves.items()},
        "log_ratio": {name: _ratios(curves, name, drops) for name in ways},
        "points": [point.row() for point in workshop.made],
        "seconds": round(unfinished.seconds),
        "versions": common.versions(*PACKAGES),
    }
    return block, unfinished


def _ratios(curves, name, drops):
    """Return ln(bytes of FlexRel / those of the better single signal), with bootstrap errors.

    One a target, then their mean. Samples are drawn again, the same for all methods.
    """

    def ratios(rows):
        found = []
        for drop in drops:
            other = min(curves[single].needed(drop, rows) for single in SINGLE)
            found.append(math.log(curves[name].needed(drop, rows) / other))
        return [*found, float(np.mean(found))]

    samples = len(curves[name].points[0].outcomes)
    errors = np.std([ratios(rows) for rows in sizes.resampled(samples)], axis=0, ddof=1)
    values = ratios(slice(None))
    return [[round(v, 5), round(float(e), 5)] for v, e in zip(values, errors, strict=True)]


def all_tasks(args):
    """Yield each task."""
    if args.quick and not args.model:
        yield tasks.digits()
        return
    if args.model:
        for draw in args.draws:
            own = (args.model, args.data, draw, args.images, args.device)
            yield from tasks.of_folder(*own, trained=not args.untrained)
        return
    for name, draw in itertools.product(args.networks, args.draws):
        for deployment in tasks.DEPLOYMENTS[name]:
            if not args.deployments or deployment in args.deployments:
                yield tasks.task(name, deployment, draw, device=args.device)


def file_of(network):
    """Return the name of the JSON that a network's blocks go to."""
    return "paper-quick" if network == "digits" else f"paper-{network.replace(':', '-')}"


# --- page -----------------------------------------------------------------------------------


def found():
    """Return the blocks of all networks but of the quick run."""
    files = sorted(path.stem for path in common.RESULTS.glob("paper-*.json"))
    return [block for file in files if file != "paper-quick" for block in common.read(file)]


def page(blocks):
    """Yield the page's parts."""
    if not blocks:
        return
    yield "# The paper's experiment"
    yield ABOUT
    yield "## In short"
    yield from in_short(blocks)
    for granularity, repair in itertools.product(GRANULARITIES, REPAIRS):
        mine = [b for b in blocks if (b["granularity"], b["repair"]) == (granularity, repair)]
        how = "not repaired" if repair == "none" else "repaired in closed form"
        yield f"## {granularity.capitalize()}s, {how}"
        if mine:
            yield targets(mine)
        known = {(block["network"], block["deployment"]) for block in mine}
        missing = [", ".join(one) for one in tasks.PLANNED if one not in known]
        yield f"Not run: {'; '.join(missing)}." if missing else ""
    if any(block["repair"] == "none" for block in blocks):
        yield "![Accuracy against size, for shares of relevance from 0 to 1](../curves.png)"
        yield (
            "Accuracy against the share of parameters that stays, nothing repaired: the paper's "
            "sum for δ from 0, magnitude alone, to 1, relevance alone; and ours, the product."
        )
    yield common.measured_with(blocks[0]["versions"])


def in_short(blocks):
    """Yield what FlexRel saves over the better of magnitude and relevance."""
    rows = []
    for granularity, repair, like in itertools.product(GRANULARITIES, REPAIRS, (False, True)):
        mine = [
            block
            for block in blocks
            if (block["granularity"], block["repair"]) == (granularity, repair)
            and (block["deployment"] in LIKE) == like
        ]
        if not mine:
            continue
        each = _over_draws(mine, FOUND)
        found, error = common.mean(each)
        least, most = (100 * (1 - math.exp(ratio)) for ratio, _ in (max(each), min(each)))
        planned = sum((use in LIKE) == like for _, use in tasks.PLANNED)
        forms = [form for block in mine for form in block["forms"][FOUND]]
        asked = ""
        if granularity == "channel" and not like:
            met = "met" if 1 - math.exp(found) >= SAVED else "not met"
            asked = f"≥ {100 * SAVED:.0f} %: {met}"
        rows.append(
            [
                f"{GRANULARITIES[granularity]}, {'like' if like else 'unlike'} the training data",
                "no" if repair == "none" else "yes",
                saving(found, error),
                asked,
                _without_obs(mine) if granularity == "channel" else "",
                f"{100 * (1 - math.exp(median(ratio for ratio, _ in each))):.0f} %",
                f"{least:.0f} to {most:.0f} %",
                f"{len(each)} of {planned}",
                f"{forms.count('obs')} of {len(forms)}",
            ]
        )
    if not rows:
        return
    yield (
        "Bytes that FlexRel saves over the better of the two single signals, magnitude and "
        "relevance, at the same accuracy: geometric mean over networks, uses and targets; median "
        "and range over networks and uses; draws of calibration data count as one use. "
        "*Repaired*: all alike, in closed form. *By OBS*: targets at which FlexRel's form is "
        "neither of the signals nor a blend of them; *without OBS*: what is saved where it may "
        "not be, and of how many networks and uses that is known if not of all."
    )
    header = ["cut, in use on data", "repaired", "saved", "asked", "without OBS", "median", "range"]
    yield common.table([*header, "networks and uses", "by OBS"], rows)


def _without_obs(blocks):
    """Return what blends of the signals alone save, and over how many uses if not over all."""
    each, known = (_over_draws(blocks, name) for name in (BLEND, FOUND))
    if not each:
        return ""
    return saving(*common.mean(each)) + ("" if len(each) == len(known) else f" ({len(each)})")


def _over_draws(blocks, name):
    """Return the mean logarithm of each network and use, and its error: of images and of draws."""
    uses = {}
    for block in blocks:
        if name in block["log_ratio"]:
            pair = block["log_ratio"][name][-1]
            uses.setdefault((block["network"], block["deployment"]), []).append(pair)
    found = []
    for pairs in uses.values():
        values, errors = zip(*pairs, strict=True)
        of_draws = variance(values) / len(values) if len(values) > 1 else 0.0
        # the same images report for all draws: their error does not shrink
        found.append((fmean(values), math.hypot(fmean(errors), math.sqrt(of_draws))))
    return found


def saving(log_ratio, error):
    """Return a saving in percent with its error, from a logarithm of bytes over others' bytes."""
    ratio = math.exp(log_ratio)
    return f"{100 * (1 - ratio):.0f} ± {100 * ratio * error:.0f} %"


def targets(blocks):
    """Return the table of what each of the experiments found."""
    names = [name for name in SAVINGS if any(name in block["log_ratio"] for block in blocks)]
    header = ["network, in use", "drop", *BYTES, "form", *(SAVINGS[name] for name in names)]
    return common.table(header, [row for block in blocks for row in _targets(block, names)])


def _targets(block, names):
    """Yield the rows of a block: one a target, and their mean."""
    dense, empty = block["dense"]["bytes"], [""] * (len(BYTES) + 1)
    draw = f", draw {block['draw']}" if block["draw"] else ""
    title = f"**{block['network']}, {block['deployment']}**{draw}: dense {dense / 1e3:,.0f} kB, "
    title += f"{100 * block['dense']['test']:.1f} %, n = {block['samples']:,}"
    yield [title, "", *empty, *("" for _ in names)]

    def savings(at):
        found = (block["log_ratio"].get(name) for name in names)
        return [saving(*pairs[at]) if pairs else "" for pairs in found]

    for at, drop in enumerate(block["drops"]):
        cells = [f"{block['needed'][name][at] / dense:.3f}" for name in BYTES]
        yield ["", f"{100 * drop:g}", *cells, block["forms"][FOUND][at], *savings(at)]
    yield ["", "mean", *empty, *savings(-1)]


def main():
    parser = common.parser(__doc__, tasks.NETWORKS)
    parser.add_argument("--deployments", nargs="+", help="by default all that a network has")
    kinds = tuple(GRANULARITIES)
    parser.add_argument("--granularities", nargs="+", default=kinds, choices=kinds)
    parser.add_argument("--repairs", nargs="+", default=REPAIRS, choices=REPAIRS)
    parser.add_argument("--draws", nargs="+", type=int, default=(0,), help="of calibration data")
    parser.add_argument("--model", help="torchvision:NAME or timm:NAME, with --data")
    parser.add_argument("--data", help="a folder of images with one sub-folder a class")
    parser.add_argument("--images", type=int, default=5000, help="of --data, that report, at most")
    parser.add_argument("--untrained", action="store_true", help="--model with random weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if bool(args.model) != bool(args.data):
        parser.error("--model and --data go together")
    for task in () if args.show else all_tasks(args):
        for granularity, repair in itertools.product(args.granularities, args.repairs):
            print(f"{task.network}, {task.deployment}, {granularity}, {repair}", flush=True)
            few = ({form.name: form for form in QUICK[granularity]}, sizes.DROPS[-1:])
            how = few if args.quick else (forms(granularity, repair),)
            block, unfinished = measure(task, granularity, repair, *how)
            common.keep(file_of(task.network), block, *EXPERIMENT)
            unfinished.finish()
            print(targets([block]), flush=True)
    if not (args.quick or args.model):
        common.write("paper", page(found()))
        draw()


def draw():
    """Draw the page's figure."""
    if blocks := found():
        figures.curves(blocks, common.PAGES.parent / "curves.png")


if __name__ == "__main__":
    main()
