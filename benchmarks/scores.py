"""Forms of the score that `forms.py` compares, written as any user could write one."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from flexrel import OBS, FlexRel, Magnitude, Relevance
from flexrel.core import cost
from flexrel.core.batches import first_samples, read_batches
from flexrel.core.graph import layer_of
from flexrel.criteria import UnitRanking, scores_of
from flexrel.pruning.search import least_removal
from flexrel.relevance import calibrate
from flexrel.structure import analyse, apply, named_tensors
from published import lamp_scores

EARLIER = 0.7  # of the parameters: where relevance is measured anew


@dataclass(frozen=True)
class Form:
    """A score: from all evidence of the network, the scores."""

    name: str
    of: Callable
    needs_relevance: bool = True
    needs_damage: bool = False

    def scores(self, evidence):
        return iter(self.of(evidence))


# --- relevance of a channel -----------------------------------------------------------------


def by_readers(part, reduce):
    """Return relevance where readers take it in, of several readers the `reduce`."""

    def of(group):
        found = [
            group.statistics[layer_of(piece.tensor)].along(piece.axis, part)[piece.index].sum(1)
            for piece in group.group.members
            if piece.reads
        ]
        return reduce(torch.stack(found)).float()

    return of


def by_makers(group):
    """Return the relevance that the layers give out which make the channel, the largest."""
    found = [
        group.statistics[layer_of(piece.tensor)].vectors("absolute")[1].float()
        for piece in group.group.members
        if piece.role == "producer" and layer_of(piece.tensor) in group.statistics.groups
    ]
    return torch.stack([one for one in found if len(one) == group.group.units]).amax(0)


def alone(name, signal, power=0.5, costs=None):
    """Return the form of relevance over a power of what goes with a unit."""

    def of(evidence):
        for group in evidence:
            found = group.cost if costs is None else costs[group.group.name]
            yield signal(group) / torch.as_tensor(found).clamp(min=1).float() ** power

    return Form(name, of)


def over_mean(evidence):
    for group in evidence:
        found = group.relevance("sample")
        yield found / found.mean().clamp(min=1e-30)


# --- blends ---------------------------------------------------------------------------------


def product(delta, power):
    def of(evidence):
        for group in evidence:
            size, mattered = group.magnitude(), group.relevance("sample")
            worth = torch.as_tensor(group.cost).clamp(min=1).float() ** -power
            yield (size / size.mean()) ** (1 - delta) * (mattered * worth) ** delta

    return Form(f"product {delta:.2g}, relevance / parameters^{power:g}", of)


def by_layer(evidence):
    """Share of relevance of each layer: how much it tells units apart, beside magnitude."""
    for group in evidence:
        size, mattered = group.magnitude(), group.relevance("sample").clamp(min=1e-30)
        spread = [float(x.log().std(correction=0)) for x in (size, mattered)]
        delta = spread[1] / max(sum(spread), 1e-30)
        worth = torch.as_tensor(group.cost).clamp(min=1).float() ** -0.5
        yield (size / size.mean()) ** (1 - delta) * (mattered * worth) ** delta


def damaged(evidence):
    """Return the geometric mean of what removal damages, and of relevance, over the cost."""
    for group in evidence:
        cost_ = torch.as_tensor(group.cost).clamp(min=1).float()
        yield (group.damage().float().clamp(min=1e-30) / cost_).sqrt() * group.relevance("sample")


def anew(task):
    """Return relevance, of the last units measured anew on the network that a first cut left."""
    model, inputs = task.model, task.inputs

    def relevance_of(network):
        graph, found = structure_of(network, inputs), calibrate(network, inputs)
        return graph, scores_of(Relevance(), graph, named_tensors(network), found)

    graph, first = relevance_of(model)
    removal = UnitRanking(graph, first)
    limit = EARLIER * cost.parameters(graph)
    count = least_removal(
        lambda k: cost.parameters(graph, removal.plan(k).masks), limit, removal.removable
    )
    plan = removal.plan(count)
    _, second = relevance_of(apply(model, plan))
    most = max(float(scores.max()) for scores in first.values())
    for name, stays in plan.masks.items():
        if name in second:
            first[name][stays] = most + second[name]
    return Form("measured anew", lambda evidence: [first[group.group.name] for group in evidence])


def structure_of(network, inputs):
    example = first_samples(next(read_batches(inputs[:1], network)), 2)
    return analyse(network, example, "channel")


def of_channels(task):
    """Return the forms of a channel's score, the single signals first."""
    macs = cost.unit_costs(structure_of(task.model, task.inputs), "MACs")

    def sample(group):
        return group.relevance("sample")

    def mean(found):
        return found.mean(0)

    return [
        Magnitude(),
        Relevance(),
        alone("positive parts", lambda group: group.relevance("positive")),
        alone("absolute parts", lambda group: group.relevance("absolute")),
        alone("mean of readers", by_readers("sample", mean)),
        alone("of makers", by_makers),
        alone("as it is", sample, 0.0),
        Form("over the layer's mean", over_mean),
        alone("over parameters^0.25", sample, 0.25),
        alone("over parameters", sample, 1.0),
        alone("over MACs^0.5", sample, 0.5, macs),
        anew(task),
        *(FlexRel(delta) for delta in (0.1, 0.5, 0.7, 0.9)),
        FlexRel(0.5, scale="rank"),
        *(product(delta, power) for delta in (1 / 3, 2 / 3) for power in (0.25, 0.5)),
        Form("product, share by layer", by_layer),
        OBS(),
        Form("damage and relevance", damaged, needs_damage=True),
    ]


# --- weights --------------------------------------------------------------------------------


def norm_of(values):
    """Return the values over the norm of their tensor."""
    return values / values.norm().clamp(min=1e-30)


def each(name, of):
    """Return the form of which each group's scores are made of that group's evidence."""
    return Form(name, lambda evidence: map(of, evidence))


def joined(group):
    """Return the product of magnitude and relevance, each as it is, its share of relevance 1/3."""
    return group.magnitude() ** (2 / 3) * group.relevance("positive") ** (1 / 3)


def spread(group):
    """Return the product, its share of relevance by how much that tells the weights apart."""
    size, mattered = group.magnitude(), group.relevance("positive").clamp(min=1e-30)
    spreads = [float(x.clamp(min=1e-30).log().std(correction=0)) for x in (size, mattered)]
    delta = spreads[1] / max(sum(spreads), 1e-30)
    return size ** (1 - delta) * (mattered / mattered.mean()) ** delta


def of_weights(_task):
    """Return the forms of a single weight's score, the single signals first."""
    return [
        Magnitude(),
        Relevance(),
        *(Magnitude(scale) for scale in ("layer", "mean", "rank")),
        each("magnitude over its norm", lambda group: norm_of(group.magnitude())),
        each("LAMP of magnitude", lambda group: lamp_scores(group.magnitude())),
        Relevance(scale="mean"),
        *(Relevance(part) for part in ("absolute", "sum")),
        *(FlexRel(delta) for delta in (0.1, 0.5, 0.9)),
        *(FlexRel(0.5, scale=scale) for scale in ("layer", "mean", "rank")),
        *(FlexRel(delta, "product") for delta in (0.2, 1 / 3, 0.5, 2 / 3)),
        FlexRel(1 / 3, "product", part="absolute"),
        each("product 0.33, as it is", joined),
        each("product 0.33, over its norm", lambda group: norm_of(joined(group))),
        each("product 0.33, LAMP of it", lambda group: lamp_scores(joined(group))),
        each("product, share by layer", spread),
        OBS(),
    ]
