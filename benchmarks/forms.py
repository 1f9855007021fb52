"""Which form of a channel's score needs the fewest bytes: parts, reductions, scales, blends.

    python benchmarks/forms.py                        measure all (two hours on a core)
    python benchmarks/forms.py --networks resnet56
    python benchmarks/forms.py --show                 the table, from the JSON

Settles the defaults of `Relevance`, `FlexRel` and `OBS` for channels. Only `train` images are used:
512 to calibrate, without labels, 300 others to judge by. Nothing is repaired. What counts is the
packed file at the dense network's accuracy less 0.5, 1, 2 and 5 points, as in `paper.py`.
"""

import argparse
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

import common
import sizes
import tasks
from flexrel import OBS, FlexRel, Magnitude, Relevance, cost
from flexrel.allocate import Removal
from flexrel.apply import apply
from flexrel.batches import first_samples, read_batches
from flexrel.calibrate import calibrate
from flexrel.criteria import scores_of
from flexrel.records import layer_of
from flexrel.search import least_removal
from flexrel.structure import analyse, named_tensors

CASES = (("resnet56", "3 classes"), ("resnet56", "as trained"), ("vgg16", "3 classes"))
BASE = "relevance"  # what all are compared with
EARLIER = 0.7  # of the parameters: where relevance is measured anew


@dataclass(frozen=True)
class Form:
    """A score as any user could write one: from all evidence of the network, the scores."""

    name: str
    of: Callable
    needs_relevance: bool = True
    needs_damage: bool = False

    def scores(self, evidence):
        return iter(self.of(evidence))


# --- relevance of a channel -----------------------------------------------------------------


def by_readers(part, reduce):
    """Return relevance where readers take it in, of several readers the `reduce`."""

    def of(site):
        found = [
            site.statistics[layer_of(piece.tensor)].along(piece.axis, part)[piece.index].sum(1)
            for piece in site.site.slices
            if piece.reads
        ]
        return reduce(torch.stack(found)).float()

    return of


def by_makers(site):
    """Return the relevance that the layers give out which make the channel, the largest."""
    found = [
        site.statistics[layer_of(piece.tensor)].vectors("absolute")[1].float()
        for piece in site.site.slices
        if piece.role == "producer" and layer_of(piece.tensor) in site.statistics.sites
    ]
    return torch.stack([one for one in found if len(one) == site.site.units]).amax(0)


def alone(name, signal, power=0.5, costs=None):
    """Return the form of relevance over a power of what goes with a unit."""

    def of(evidence):
        for site in evidence:
            found = site.cost if costs is None else costs[site.site.name]
            yield signal(site) / torch.as_tensor(found).clamp(min=1).float() ** power

    return Form(name, of)


def over_mean(evidence):
    for site in evidence:
        found = site.relevance("sample")
        yield found / found.mean().clamp(min=1e-30)


# --- blends ---------------------------------------------------------------------------------


def product(delta, power):
    def of(evidence):
        for site in evidence:
            size, mattered = site.magnitude(), site.relevance("sample")
            worth = torch.as_tensor(site.cost).clamp(min=1).float() ** -power
            yield (size / size.mean()) ** (1 - delta) * (mattered * worth) ** delta

    return Form(f"product {delta:.2g}, relevance / parameters^{power:g}", of)


def by_layer(evidence):
    """Share of relevance of each layer: how much it tells units apart, beside magnitude."""
    for site in evidence:
        size, mattered = site.magnitude(), site.relevance("sample").clamp(min=1e-30)
        spread = [float(x.log().std(correction=0)) for x in (size, mattered)]
        delta = spread[1] / max(sum(spread), 1e-30)
        worth = torch.as_tensor(site.cost).clamp(min=1).float() ** -0.5
        yield (size / size.mean()) ** (1 - delta) * (mattered * worth) ** delta


def damaged(evidence):
    """Return the geometric mean of what removal damages, and of relevance, over the cost."""
    for site in evidence:
        cost_ = torch.as_tensor(site.cost).clamp(min=1).float()
        yield (site.damage().float().clamp(min=1e-30) / cost_).sqrt() * site.relevance("sample")


def anew(task):
    """Return relevance, of the last units measured anew on the network that a first cut left."""
    model, inputs = task.model, task.inputs

    def relevance_of(network):
        structure, found = structure_of(network, inputs), calibrate(network, inputs)
        return structure, scores_of(Relevance(), structure, named_tensors(network), found)

    structure, first = relevance_of(model)
    removal = Removal(structure, first)
    limit = EARLIER * cost.parameters(structure)
    count = least_removal(
        lambda k: cost.parameters(structure, removal.plan(k)), limit, removal.removable
    )
    plan = removal.plan(count)
    _, second = relevance_of(apply(model, plan))
    most = max(float(scores.max()) for scores in first.values())
    for name, stays in plan.masks.items():
        if name in second:
            first[name][stays] = most + second[name]
    return Form("measured anew", lambda evidence: [first[site.site.name] for site in evidence])


def structure_of(network, inputs):
    example = first_samples(next(read_batches(inputs[:1], network)), 2)
    return analyse(network, example, "channel")


def forms(task):
    """Return all forms, the single signals first."""
    macs = cost.unit_costs(structure_of(task.model, task.inputs), "MACs")

    def sample(site):
        return site.relevance("sample")

    def mean(found):
        return found.mean(0)

    found = [
        Magnitude(),
        Relevance(),
        alone("positive parts", lambda site: site.relevance("positive")),
        alone("absolute parts", lambda site: site.relevance("absolute")),
        alone("mean of readers", by_readers("sample", mean)),
        alone("of makers", by_makers),
        alone("as it is", sample, 0.0),
        Form("over the layer's mean", over_mean),
        alone("over parameters^0.25", sample, 0.25),
        alone("over parameters", sample, 1.0),
        alone("over MACs^0.5", sample, 0.5, macs),
        anew(task),
        *(FlexRel(delta) for delta in (0.1, 0.5, 0.7, 0.9)),
        dataclasses.replace(FlexRel(0.5, scale="rank")),
        *(product(delta, power) for delta in (1 / 3, 2 / 3) for power in (0.25, 0.5)),
        Form("product, share by layer", by_layer),
        OBS(),
        Form("damage and relevance", damaged, needs_damage=True),
    ]
    return {_name(form): form for form in found}


def _name(form):
    scale = getattr(form, "scale", None)
    return form.name + (f", {scale}" if scale else "")


# --- measuring ------------------------------------------------------------------------------


def measure(task):
    """Return a block: the bytes that each form needs, and how they compare with relevance."""
    task = dataclasses.replace(task, test=task.choose)
    wanted = forms(task)
    workshop = sizes.Workshop(task, "channel", wanted, repair=False)
    curves, began = {}, time.monotonic()
    for name in wanted:
        curves[name] = sizes.Curve(workshop, lambda step, n=name: workshop.at(n, step))
        print(f"  {name}: {time.monotonic() - began:.0f} s", flush=True)
    dense = workshop.dense
    return {
        "network": task.network,
        "deployment": task.deployment,
        "samples": len(dense.outcomes),
        "dense": dense.row(),
        "drops": sizes.DROPS,
        "needed": {n: [round(c.needed(d)) for d in sizes.DROPS] for n, c in curves.items()},
        "log_ratio": {name: ratio(curves, name) for name in curves},
    }


def ratio(curves, name):
    """Return ln(bytes of the form / those of BASE), the mean over targets, and its error."""

    def of(rows=slice(None)):
        pairs = ((curves[name].needed(d, rows), curves[BASE].needed(d, rows)) for d in sizes.DROPS)
        return sum(math.log(a / b) for a, b in pairs) / len(sizes.DROPS)

    draws = torch.tensor(
        [of(rows) for rows in sizes.resampled(len(curves[name].points[0].outcomes))]
    )
    return [round(of(), 5), round(float(draws.std()), 5)]


def show():
    blocks = common.load("forms")["blocks"]
    header = ["form", *(f"{b['network']}, {b['deployment']}" for b in blocks), "mean"]
    rows = []
    for name in blocks[0]["needed"]:
        found = [block["log_ratio"][name] for block in blocks]
        mean = sum(value for value, _ in found) / len(found)
        error = math.sqrt(sum(e * e for _, e in found)) / len(found)
        shown = [f"{math.exp(v):.2f} ± {math.exp(v) * e:.2f}" for v, e in [*found, (mean, error)]]
        rows.append((mean, [name, *shown]))
    rows.sort(key=lambda row: row[0])
    common.replace_section("forms", common.table(header, [row for _, row in rows]))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    networks = tuple(dict.fromkeys(network for network, _ in CASES))
    parser.add_argument("--networks", nargs="+", default=networks, choices=networks)
    parser.add_argument("--show", action="store_true", help="the table, from the JSON")
    args = parser.parse_args()
    for network, deployment in () if args.show else CASES:
        if network in args.networks:
            block = measure(tasks.task(common.data_packs(), network, deployment, 0))
            own = (network, deployment)
            old = common.load("forms")["blocks"] if common.is_measured("forms") else []
            rest = [b for b in old if (b["network"], b["deployment"]) != own]
            common.save("forms", {"blocks": [*rest, block]})
    show()


if __name__ == "__main__":
    main()
