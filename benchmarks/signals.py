"""Which magnitude and which relevance of a channel, and which blend of them, predict what can go.

    python benchmarks/signals.py          measure, then write the table into README.md
    python benchmarks/signals.py --show   the table alone

Settles the defaults of `Evidence` and `FlexRel` for channels. Only `train` images are used:
relevance from 512 without labels, accuracy on 500 others, global order, nothing trained, at
equal multiply-adds. Every form is tried on every network, deployment and level; a form's merit
is its mean accuracy over all of them.
"""

import argparse
import itertools
import re
import statistics
import time
from dataclasses import dataclass

import torch

import common
from curves import DEPLOYMENTS, NETWORKS, Bench
from flexrel.apply import apply
from flexrel.records import layer_of

CHOOSE = 500  # images
LEVELS = (0.9, 0.8, 0.65, 0.5)  # multiply-adds over dense


def rows_of(evidence, role):
    for part in evidence.site.slices:
        if part.role == role:
            tensor = evidence.tensors[part.tensor].detach().float().cpu()
            tensor = tensor.movedim(part.axis, 0)
            yield tensor.reshape(evidence.site.units, -1)


def rms(evidence):
    return sum(rows.square().mean(1) for rows in rows_of(evidence, "producer")).sqrt()


def l1(evidence):
    return sum(rows.abs().mean(1) for rows in rows_of(evidence, "producer"))


def folded(evidence):
    """RMS of the weights as they are once a following batch norm is folded into them."""
    value = rms(evidence)
    names = {part.tensor for part in evidence.site.slices}
    for name in names:
        if name.endswith("running_var"):
            scale = evidence.tensors[name.replace("running_var", "weight")].detach().float().cpu()
            variance = evidence.tensors[name].float().cpu()
            value = value * scale.abs() / (variance + 1e-5).sqrt()
    return value


def both(evidence):
    """Folded RMS of the making weights times the RMS of the reading ones: the path's strength."""
    return folded(evidence) * sum(r.square().mean(1) for r in rows_of(evidence, "consumer")).sqrt()


def relevance_in(part):
    return lambda evidence: evidence.relevance(part)


def relevance_out(part):
    def of(evidence):
        total = torch.zeros(evidence.site.units)
        for piece in evidence.site.slices:
            if piece.role == "producer":
                total += evidence.statistics[layer_of(piece.tensor)].vectors(part)[1].float()
        return total

    return of


def relative(signal):
    def of(evidence):
        value = signal(evidence)
        return value / value.mean().clamp(min=1e-30)

    return of


MAGNITUDES = {
    "rms": rms,
    "rms/mean": relative(rms),
    "l1/mean": relative(l1),
    "folded": folded,
    "folded/mean": relative(folded),
    "both": both,
    "both/mean": relative(both),
}
RELEVANCES = {
    f"{side} {part}{end}": (relative(make(part)) if end else make(part))
    for (side, make), part, end in itertools.product(
        (("in", relevance_in), ("out", relevance_out)), ("positive", "absolute"), ("", "/mean")
    )
}
BLENDED_MAGNITUDES = ("rms/mean", "folded", "folded/mean", "both/mean")
BLENDED_RELEVANCES = ("in positive", "in absolute", "in positive/mean", "in absolute/mean")
DELTAS = (1 / 3, 1 / 2, 2 / 3)


@dataclass(frozen=True)
class Form:
    """A product of a magnitude and a relevance; a criterion as any user could write one."""

    magnitude: str | None
    relevance: str | None
    delta: float
    needs_relevance: bool = True

    @property
    def name(self):
        if self.relevance is None:
            return self.magnitude
        if self.magnitude is None:
            return self.relevance
        return f"({self.magnitude})^{1 - self.delta:.2f} ({self.relevance})^{self.delta:.2f}"

    def scores(self, evidence):
        for site in evidence:
            score = torch.ones(site.site.units)
            if self.magnitude is not None:
                score = score * MAGNITUDES[self.magnitude](site) ** (1 - self.delta)
            if self.relevance is not None:
                score = score * RELEVANCES[self.relevance](site).clamp(min=0) ** self.delta
            yield score


def forms():
    yield from (Form(name, None, 0.0) for name in MAGNITUDES)
    yield from (Form(None, name, 1.0) for name in RELEVANCES)
    pairs = itertools.product(BLENDED_MAGNITUDES, BLENDED_RELEVANCES, DELTAS)
    yield from (Form(*pair) for pair in pairs)


def measure(args):
    torch.backends.cudnn.allow_tf32 = False
    packs = common.data_packs()
    rows = {network: [] for network in args.networks}
    for network, deployment in itertools.product(args.networks, DEPLOYMENTS):
        began = time.monotonic()
        bench = Bench(packs, network, deployment, 0, args.device, choose=CHOOSE)
        structure = bench.structure("channel")
        for form in (form for form in forms() if re.search(args.only, form.name)):
            removal = bench.removal(structure, form)
            for level in LEVELS:
                plan = bench.plan_at(structure, removal, level)
                if plan is not None:
                    accuracy = bench.choose(apply(bench.model, plan))
                    where = {"network": network, "deployment": deployment, "level": level}
                    row = {"form": form.name, **where, "accuracy": round(accuracy, 4)}
                    rows[network].append(row)
        common.save(f"signals-{network}", {"rows": rows[network]})
        print(f"{network}, {deployment}: {time.monotonic() - began:.0f} s", flush=True)


def show():
    """Write the table of the forms that were measured everywhere."""
    measured = [name for name in NETWORKS if (common.RESULTS / f"signals-{name}.json").is_file()]
    rows = [row for name in measured for row in common.load(f"signals-{name}")["rows"]]
    found = {}
    for row in rows:
        where = (row["network"], row["deployment"])
        found.setdefault(row["form"], {}).setdefault(where, []).append(row["accuracy"])
    places = list(dict.fromkeys((row["network"], row["deployment"]) for row in rows))
    means = {
        form: [statistics.fmean(at[place]) for place in places]
        for form, at in found.items()
        if at.keys() == set(places)
    }
    best = sorted(means, key=lambda form: statistics.fmean(means[form]), reverse=True)
    lines = [
        [form, *(f"{100 * value:.1f}" for value in (*means[form], statistics.fmean(means[form])))]
        for form in best
    ]
    header = ["form", *(", ".join(place) for place in places), "mean"]
    common.replace_section("signals", common.table(header, lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default="", help="forms whose name has this pattern")
    parser.add_argument("--show", action="store_true", help="the table, from the JSON")
    args = parser.parse_args()
    if not args.show:
        measure(args)
    show()


if __name__ == "__main__":
    main()
