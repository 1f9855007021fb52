"""What the search comes to: default calls against their goals, and other ways to share a cut out.

    python benchmarks/search.py                     what is not measured yet (hours)
    python benchmarks/search.py --again --networks resnet56
    python benchmarks/search.py --quick             digits alone, in seconds; needs no data
    python benchmarks/search.py --show              the page, from the JSON

Cuts: networks of as many multiply-adds, by the default call, then with the shares of groups by
three other rules, each with the same order of units within groups, and the same repair. Files: the
smallest that loses a point of accuracy, in one call. All are tested on data that nothing was
chosen on. The default calls come first, the cheapest before the others.
"""

import functools
import math
import tempfile
import time
from dataclasses import dataclass

import torch

import allocation
import common
import tasks
from flexrel import MACs, Magnitude, PruneOptions, prune
from flexrel.criteria import measure_saliency, scores_of

AIMED = {"resnet20": 3000, "resnet56": 3000}  # images that a target is searched with
NOW, UNIFORM, GLOBAL, ERK = "now", "uniform", "global", "erk"
OTHERS = (UNIFORM, GLOBAL, ERK)


@dataclass(frozen=True)
class Cut:
    """A share of the multiply-adds, what was reached before, and what is aimed at, in percent."""

    network: str
    use: str
    share: float
    before: str = ""
    goal: float | None = None  # of the score; below zero: how much may be lost
    job: str = ""  # of speed.py, which makes the very same call

    @property
    def asked(self):
        return f"{100 * self.share:.3g} % of multiply-adds"


@dataclass(frozen=True)
class File:
    """The smallest file within a point, and how many times smaller than float32 it shall be."""

    network: str
    use: str
    values: str
    before: str = ""
    goal: float | None = None
    effort: str = "default"

    @property
    def asked(self):
        fast = "" if self.effort == "default" else f", effort {self.effort}"
        return f"1 point, {self.values}{fast}"


CUTS = (
    Cut("resnet56", "as trained", 0.47, "90.9 (dense 92.95)", 92.0),
    Cut("resnet56", "as trained", 0.25, "83.4 (dense 92.95)", 88.0),
    Cut("minilm", "STS-B", 1 / 1.5, "81.6 (dense 82.0, all pairs)"),
    Cut("minilm", "STS-B", 1 / 2, "", -1.0),
    Cut("minilm", "STS-B", 1 / 4),
    Cut("minilm", "SST-2", 0.67, job="minilm"),
    Cut("vgg16", "3 classes", 1 / 6, "92.3", 93.0),
    Cut("mobilenetv2", "as trained", 1 / 1.5, "76.6", 82.0),
    Cut("efficientnet_lite0", "as trained", 1 / 1.5, "79.6", 82.2),
    Cut("efficientnet_lite0", "as trained", 1 / 2, "54", 75.0),
    Cut("vgg16", "as trained", 0.33, "87.8 (dense 89.3)", 89.0, job="vgg16"),
)
FILES = (
    File("resnet20", "as trained", "auto", "78,887 bytes, 13.7, by hand", 14),
    File("resnet56", "as trained", "auto", "20, at 1.9 points", 28),
    File("minilm", "STS-B", "int4", "", 8, "fast"),
)
QUICK = (Cut("digits", "as trained", 0.3), File("digits", "as trained", "int8"))
FIRST = (FILES[0], *CUTS[:6], FILES[1], *CUTS[6:], FILES[2])  # the order in which they are run
KINDS = {"cuts": Cut, "files": File}
PACKAGES = ("torch", "numpy")


# --- default calls --------------------------------------------------------------------------


@functools.lru_cache(1)
def task_of(network, use):
    """Return the task, its dense network's outcomes, and a folder for what its calls measure."""
    task = tasks.digits() if network == "digits" else tasks.task(network, use, 0)
    return task, task.test(task.model), tempfile.TemporaryDirectory()


def cut_by_default(case):
    """Return the result of the default call."""
    task, _, folder = task_of(case.network, case.use)
    options = PruneOptions(outputs=task.choose.outputs, cache=folder.name)
    budget = MACs(case.share)
    return prune(task.model, calibration=task.inputs, budgets=[budget], options=options)


def smallest_file(case):
    """Return the result of one call for a target; the samples that report are not searched with."""
    task, _, folder = task_of(case.network, case.use)
    aim = "accuracy-drop=1%"
    if isinstance(task.choose, tasks.Ranks):
        aim = "spearman-1"

        def evaluate(network):
            return {"spearman": 100 * task.choose.score(task.choose(network))}

    elif case.network in AIMED:
        evaluate = aimed(case.network)
    else:
        evaluate = task.choose.batches
    return prune(
        task.model,
        calibration=task.inputs,
        evaluate=evaluate,
        target=aim,
        granularity="element",
        values=case.values,
        options=PruneOptions(outputs=task.choose.outputs, effort=case.effort, cache=folder.name),
    )


def aimed(network):
    """Return images that the network was not trained on, and that are not among those reported."""
    packs, first = common.data_packs(), tasks.TEST[network]
    some = slice(first, first + AIMED[network])
    images, labels = packs.cifar10("test_a")
    inputs, labels = packs.normalise(network, images[some]), torch.from_numpy(labels[some])
    return list(zip(inputs.split(tasks.BATCH), labels.split(tasks.BATCH), strict=True))


def now(case):
    """Return the block of what one call returns."""
    if isinstance(case, Cut) and case.job and (block := by_speed(case)):
        return block
    began = time.monotonic()
    result = cut_by_default(case) if isinstance(case, Cut) else smallest_file(case)
    took = time.monotonic() - began
    block = {
        "took_s": took,
        "criterion": result.criterion.name,
        "macs": result.achieved.macs / result.dense.macs,
        **scored(case, result.model),
    }
    if isinstance(case, File):
        task, _, _ = task_of(case.network, case.use)
        block["bytes"] = result.achieved.bytes
        block["float32"] = 4 * sum(p.numel() for p in task.model.parameters())
        block["values"] = str(result.values)
        block["promise"] = str(result.promise) if result.promise else ""
    return block


def by_speed(case):
    """Return the block of the same call as `speed.py` made it; None where it did not."""
    same = (b for b in common.read("speed") if b["network"] == case.job and b["when"] == "now")
    found = next(same, None)
    if found is None:
        return None
    score, count = found["pruned"], found["tested"]
    return {
        "took_s": found["seconds"],
        "criterion": found["criterion"],
        "score": score,
        "error": math.sqrt(score * (1 - score) / count),
        "lost": found["dense"] - score,
        "dense": found["dense"],
        "of": count,
        "by": "speed.py",
    }


def scored(case, network):
    """Return the network's score on what reports, what it lost, both with standard errors."""
    task, dense, _ = task_of(case.network, case.use)
    found = tasks.compared(task.test, dense, task.test(network))
    return found | {"dense": task.test.score(dense), "of": len(dense)}


# --- other ways to share a cut out ----------------------------------------------------------


@functools.lru_cache(1)
def saliency_of(network, use):
    """Return what the removal of each unit costs, as the default call measures it."""
    task, _, _ = task_of(network, use)
    case = allocation.Case(task, 1.0)
    return measure_saliency(case.model, case.graph, case.fitted, seed=0)[0]


def shared_out(way, case):
    """Return scores by which that many units of each group go, within groups as by OBS."""
    orders = {name: costs.argsort(stable=True) for name, costs in saliency_of(*case.of).items()}
    if way == GLOBAL:
        sizes = scores_of(Magnitude(), case.graph, case.tensors, None, None, case.costs)
        steps = {name: sizes[name].sort().values.double() for name in orders}
    else:
        shares = densities(case) if way == ERK else dict.fromkeys(orders, 1.0)
        steps = {name: evenly(len(order), shares[name]) for name, order in orders.items()}
    return {
        name: torch.empty(len(order), dtype=torch.float64).index_copy_(0, order, steps[name])
        for name, order in orders.items()
    }


def evenly(units, density):
    """Return scores of units in order: a group keeps `min(1, some factor · density)` of them.

    The least goes first, in all groups together.
    """
    left = torch.arange(units, 0, -1, dtype=torch.float64) / units
    return -left / density


def densities(case):
    """Return for each group the density that ERK gives the layers it is in, but for a factor.

    That of a layer is the sum of its weight's dimensions over their product (Evci et al. 2020); of
    several layers the sums are added, and the products.
    """
    found = {}
    for group in case.graph.groups:
        names = {member.tensor for member in group.members}
        weights = [case.tensors[name] for name in names if case.tensors[name].dim() > 1]
        found[group.name] = sum(sum(w.shape) for w in weights) / sum(w.numel() for w in weights)
    return found


class Shared(allocation.Case):
    """A cut whose shares are by another rule."""

    def __init__(self, cut):
        task, _, _ = task_of(cut.network, cut.use)
        super().__init__(task, cut.share)
        self.of = cut.network, cut.use


def other(case, way):
    """Return the block of a cut whose shares are by another rule."""
    began = time.monotonic()
    shared = Shared(case)
    plan = shared.plan(shared_out(way, shared))
    network = shared.repaired(plan, shared.fitted)
    macs = allocation.cost.macs(shared.graph, plan.masks) * case.share / shared.limit
    return {"took_s": time.monotonic() - began, "macs": macs, **scored(case, network)}


# --- all ------------------------------------------------------------------------------------


def key(case, way):
    return {"network": case.network, "use": case.use, "asked": case.asked, "way": way}


def blocks(args):
    cases = QUICK if args.quick else [c for c in FIRST if c.network in args.networks]
    cases = [case for case in cases if not args.uses or case.use in args.uses]
    cases = [case for case in cases if isinstance(case, tuple(KINDS[p] for p in args.parts))]
    works = [(case, NOW) for case in cases if NOW in args.ways]
    works += [(c, w) for c in cases if isinstance(c, Cut) for w in OTHERS if w in args.ways]
    anew = args.again or args.quick
    known = [] if anew else [[*map(b.get, key(*works[0]))] for b in common.read("search")]
    for case, way in works:
        if [*key(case, way).values()] not in known:
            torch.manual_seed(0)
            found = now(case) if way == NOW else other(case, way)
            yield key(case, way) | found | {"with": common.versions(*PACKAGES)}


# --- page -----------------------------------------------------------------------------------

ABOUT = """
Made by `python benchmarks/search.py`: what one call comes to, against goals that were set before
it was written, each on data that nothing was chosen on. Scores in percent: the share of right
answers, of MiniLM on STS-B Spearman's correlation. ± is one standard error, by samples drawn again;
of *lost* that of the difference of both networks on the same samples. *Before*: what an earlier
version reached, or was reached by hand, in part on other samples; where its dense network differs,
that is said. Calibration data were drawn once (seed 0). The goals of latency and of promises are on
the pages [latency](latency.md) and [promises](promise.md).
"""
CUT = """
Channels and heads at a share of the multiply-adds, not trained. *Now*: the default call. Beside it
three rules for how much of each group of units goes, with as many multiply-adds; within groups
units go in the order of OBS, and the same repair follows. *Uniform*: the same share of each group.
*Global*: by the size of the units' weights over all groups, as the magnitude criterion has it.
*ERK*: the density of a layer goes as the sum of its weight's dimensions over their product. Where
*lost* has no error, the call is that of [speed](speed.md), measured there.
"""
FILE = """
Weights set to zero until a point is lost (Spearman's correlation: 0.01), in one call: the packed
file against four bytes for each parameter. CIFAR-10's targets are searched with 3,000 images that
neither the network was trained on nor that report; MiniLM's with 300 pairs. *Promised*: with 95 %
confidence, by the half of those images that the search did not see.
"""


def page(found):
    """Yield the page's parts."""
    if not found:
        return
    rows = {tuple(block[k] for k in ("network", "use", "asked", "way")): block for block in found}
    quick = {block["network"] for block in found} == {"digits"}
    cuts, files = (QUICK[:1], QUICK[1:]) if quick else (CUTS, FILES)

    def block_of(case, way):
        return rows.get(tuple(key(case, way).values()))

    yield "# The search, against its goals"
    yield ABOUT
    yield "## Multiply-adds"
    yield CUT
    head = ("case", "dense", "before", "goal", NOW, "lost", "", *OTHERS)
    found_of = {case: [block_of(case, way) for way in (NOW, *OTHERS)] for case in cuts}
    yield common.table(head, [_cut_row(case, *blocks) for case, blocks in found_of.items()])
    yield "## Bytes within a point"
    yield FILE
    head = ("case", "before", "goal", "times", "bytes", "dense", NOW, "lost", "", "promised")
    yield common.table(head, [_file_row(case, block_of(case, NOW)) for case in files])
    absent = [f"{_name(case)}: {_absent(case, block_of)}" for case in (*cuts, *files)]
    absent = [line for line in absent if not line.endswith(": ")]
    yield f"Not measured:\n\n{common.listed(absent)}" if absent else "All of it is measured."
    yield common.measured_with(found[-1]["with"])


def _absent(case, block_of):
    """Return what of a case is not measured, "" if nothing."""
    ways = (NOW, *OTHERS) if isinstance(case, Cut) else (NOW,)
    return ", ".join(way for way in ways if block_of(case, way) is None)


def _name(case):
    return f"{case.network}, {case.use}, {case.asked}"


def _cut_row(case, found, *others):
    dense = next((100 * block["dense"] for block in (found, *others) if block), None)
    goal = "" if case.goal is None else f"≥ {case.goal:g}"
    if case.goal is not None and case.goal < 0:
        goal = f"{-case.goal:g} lost at most"
    start = [_name(case), "" if dense is None else f"{dense:.1f}", case.before, goal]
    ways = [_score(block) for block in others]
    if found is None:
        return [*start, "", "", "", *ways]
    above = None
    if case.goal is not None:
        reached = -found["lost"] if case.goal < 0 else found["score"]
        above = reached - case.goal / 100
    return [*start, _score(found), _lost(found), _told(above, found["error"]), *ways]


def _told(above, error):
    """Return whether a goal is met, by how far the result is above it."""
    if above is None:
        return ""
    return "met" if above >= 0 else "not met, by less than ±" if above >= -error else "not met"


def _score(block):
    return "" if block is None else f"{100 * block['score']:.1f} ± {100 * block['error']:.1f}"


def _lost(block):
    error = f" ± {100 * block['lost_error']:.1f}" if "lost_error" in block else ""
    return f"{100 * block['lost']:.1f}{error}"


def _file_row(case, found):
    goal = "" if case.goal is None else f"≥ {case.goal:g}"
    if found is None:
        return [_name(case), case.before, goal, *[""] * 7]
    times = found["float32"] / found["bytes"]
    told = _told(None if case.goal is None else times - case.goal, 0.0)
    dense = f"{100 * found['dense']:.1f}"
    sizes = [f"{times:.1f}", f"{found['bytes']:,}"]
    name = f"{_name(case)}: {found['values']}"
    promised = found["promise"].split(" with")[0]
    return [name, case.before, goal, *sizes, dense, _score(found), _lost(found), told, promised]


def main():
    networks = dict.fromkeys(case.network for case in FIRST)
    parser = common.parser(__doc__, networks)
    parser.add_argument("--parts", nargs="+", default=[*KINDS], choices=[*KINDS])
    parser.add_argument("--ways", nargs="+", default=(NOW, *OTHERS), choices=(NOW, *OTHERS))
    parser.add_argument("--uses", nargs="+", help="in which networks are used, all by default")
    parser.add_argument("--again", action="store_true", help="also what is measured already")
    args = parser.parse_args()
    torch.set_num_threads(1)
    common.run(args, "search", blocks(args), ("network", "use", "asked", "way"), page)


if __name__ == "__main__":
    main()
