"""Whether swaps of units inside groups make OBS's cuts better: one goes back, another goes.

    python benchmarks/swaps.py                     measure all (half an hour)
    python benchmarks/swaps.py --networks resnet20
    python benchmarks/swaps.py --quick             digits alone; needs no data
    python benchmarks/swaps.py --show              the page, from the JSON

A cut as OBS has it, and the same with as many units of each group, after swaps: of the units that
went the one comes back whose return lowers the error of the refitted readers most, and the one goes
whose removal raises it least, as long as that lowers it. Both cuts are tested as they are, and
repaired in full, on data that nothing was chosen on.
"""

import time

import torch

import allocation
import common
import tasks
from flexrel.core.graph import layer_of
from flexrel.core.plan import Plan
from flexrel.criteria import measure_saliency
from flexrel.criteria.kfac import measure_factors
from flexrel.structure import apply

CASES = {  # network -> use, shares of the multiply-adds
    "digits": ("as trained", (0.3,)),
    "resnet20": ("as trained", (0.5, 0.25)),
    "resnet56": ("as trained", (0.47, 0.25)),
    "minilm": ("STS-B", (0.5,)),
    "vgg16": ("as trained", (1 / 3,)),
}
RIDGE = 1e-3  # of the mean square of an input, as OBS has it
WIDE = 1024  # inputs, from which single precision is enough
LESS = 1e-4  # by which a swap must lower the error of what went, at least
MOST = 0.5  # swaps, of a group's units


class Reader:
    """A layer that takes units in, fitted to those that are kept: a principal pivot transform.

    Of the inputs that are kept, `table` has the inverse of their second moments, of the others
    what of theirs the kept ones don't tell; `rows` have the fitted weights, and the products of
    the others with the error. Weights are times the root of the gradients' products, so that
    squares add up to squared outputs of the network.
    """

    def __init__(self, member, weight, factors, kept):
        rows = weight.detach().double()
        rows = rows if member.axis else rows.mT
        rows = rows.reshape(len(factors.outputs), -1, rows[0].numel())
        values, vectors = torch.linalg.eigh(factors.outputs.double())
        root = values.clamp_min(0).sqrt()[:, :, None] * vectors.mT
        kind = torch.float64 if rows.shape[2] < WIDE else torch.float32
        self.weight = (root @ rows).to(kind)
        self.table = factors.covariance().to(kind)
        own = self.table.diagonal(dim1=1, dim2=2)
        own.add_(RIDGE * own.mean(1, keepdim=True).clamp_min(1e-30))
        self.rows = self.weight @ self.table
        kernel = weight[0, 0].numel()
        entries = member.index[..., None] * kernel + torch.arange(kernel)
        self.inputs = entries.flatten(1)  # [units, inputs]
        stays = torch.ones(rows.shape[2], dtype=torch.bool)  # also inputs that are of no unit
        stays[self.inputs[~kept].flatten()] = False
        self.pivot_(stays.nonzero()[:, 0])

    def pivot_(self, at):
        """Take inputs in that are not kept, or out those that are."""
        within = self.table[:, at][:, :, at]
        inverse = torch.linalg.inv(within.double()).to(within)
        across = self.table[:, at].clone()
        down, right = self.table[:, :, at] @ inverse, self.rows[:, :, at] @ inverse
        self.table.baddbmm_(down, across, alpha=-1)
        self.rows.baddbmm_(right, across, alpha=-1)
        self.table[:, at], self.table[:, :, at] = -(inverse @ across), down
        self.table[:, at[:, None], at] = inverse
        self.rows[:, :, at] = right

    def steps(self):
        """Return by how much the error rises as each unit goes, or falls as it comes back."""
        at = self.inputs
        within = self.table[:, at[:, :, None], at[:, None, :]].double()
        rows = self.rows[:, :, at].permute(0, 2, 3, 1).double()
        return (torch.linalg.inv(within) * (rows @ rows.mT)).sum((0, 2, 3)).clamp_min(0)

    def error(self, kept):
        """Return what the units that went cost, once the others are fitted."""
        at = self.inputs[~kept].flatten()
        return float((self.rows[:, :, at].double() * self.weight[:, :, at].double()).sum())


def swapped(group, kept, readers):
    """Return which units are kept after swaps, how many there were, the errors before and after."""
    kept, swaps = kept.clone(), 0
    before = sum(reader.error(kept) for reader in readers)
    for _ in range(int(MOST * group.units)):
        falls = sum(reader.steps() for reader in readers)
        back = int(falls.masked_fill(kept, -1).argmax())
        for reader in readers:
            reader.pivot_(reader.inputs[back])
        rises = sum(reader.steps() for reader in readers)
        gone = int(rises.masked_fill(~kept, torch.inf).argmin())
        if falls[back] - rises[gone] <= LESS * before:
            for reader in readers:
                reader.pivot_(reader.inputs[back])
            break
        for reader in readers:
            reader.pivot_(reader.inputs[gone])
        kept[back], kept[gone], swaps = True, False, swaps + 1
    return kept, swaps, before, sum(reader.error(kept) for reader in readers)


def after_swaps(case, plan, factors):
    """Return the plan after swaps in all groups, and what they came to."""
    masks, swaps, removed, errors = dict(plan.masks), 0, 0, []
    for group in case.graph.groups:
        kept = plan.masks[group.name]
        if kept.all():
            continue
        readers = [
            Reader(m, case.tensors[m.tensor], factors.layers[layer_of(m.tensor)], kept)
            for m in group.members
            if m.reads
        ]
        masks[group.name], count, *pair = swapped(group, kept, readers)
        swaps, removed = swaps + count, removed + int((~kept).sum())
        errors.append(pair)
    before, after = map(sum, zip(*errors, strict=True))
    return Plan(case.graph, masks), {"swaps": swaps, "removed": removed, "error": after / before}


def measure(network, use, share, draw):
    task = tasks.digits(draw) if network == "digits" else tasks.task(network, use, draw)
    case = allocation.Case(task, share)
    saliency, _ = measure_saliency(case.model, case.graph, case.fitted, seed=draw)
    layers = {reader for group in case.graph.groups for reader in group.readers}
    held = allocation.HELD / sum(len(inputs) for inputs in task.inputs)
    factors = measure_factors(case.model, case.fitted, layers, held=held, seed=draw)
    plan = case.plan(case.scores(saliency))
    began = time.monotonic()
    other, told = after_swaps(case, plan, factors)
    block = {"network": network, "use": use, "share": share, "draw": draw, **told}
    block["seconds"] = time.monotonic() - began
    for stage in ("cut", "repaired"):
        made = [
            apply(case.model, each) if stage == "cut" else case.repaired(each, case.fitted)
            for each in (plan, other)
        ]
        found = [task.test(network) for network in made]
        block[stage] = {
            "divergence": [case.divergence(network) for network in made],
            "obs": task.test.score(found[0]),
            **tasks.compared(task.test, *found),
        }
    return block | {"of": len(found[0]), "with": common.versions("torch")}


def blocks(args):
    for draw in (0,) if args.quick else args.draws:
        for network in ("digits",) if args.quick else args.networks:
            use, shares = CASES[network]
            for share in shares:
                torch.manual_seed(draw)
                yield measure(network, use, share, draw)


def page(found):
    """Yield the page's parts."""
    if not found:
        return
    yield "# Swaps inside groups"
    yield (
        "Made by `python benchmarks/swaps.py`. OBS's cuts, and the same with as many units of each "
        "group after swaps: of those that went the one comes back whose return lowers the error of "
        "the refitted readers most, the one goes whose removal raises it least, as long as that "
        "lowers it. *Error*: what OBS predicts after swaps over before. *Divergence*: after swaps "
        "over before, on held-out calibration samples. *Gain*: in points of the score, on data "
        "that nothing was chosen on, ± one standard error of the difference."
    )
    head = ("case", "swaps", "of units gone", "error")
    head += ("divergence, cut", "gain, cut", "divergence, repaired", "OBS, %", "gain, repaired")
    yield common.table(head, [_row(block) for block in found])
    yield common.measured_with(found[-1]["with"])


def _row(block):
    share = f"{100 * block['share']:.3g} % of multiply-adds"
    row = [f"{block['network']}, {share}, draw {block['draw']}", block["swaps"], block["removed"]]
    row.append(f"{block['error']:.3f}")
    for stage in ("cut", "repaired"):
        one = block[stage]
        before, after = one["divergence"]
        gain = f"{-100 * one['lost']:+.1f} ± {100 * one['lost_error']:.1f}"
        start = [f"{100 * one['obs']:.1f}"] if stage == "repaired" else []
        row += [f"{after / before:.2f}", *start, gain]
    return row


def main():
    parser = common.parser(__doc__, CASES)
    parser.add_argument("--draws", nargs="+", type=int, default=[*range(allocation.DRAWS)])
    args = parser.parse_args()
    torch.set_num_threads(1)
    common.run(args, "swaps", blocks(args), ("network", "share", "draw"), page)


if __name__ == "__main__":
    main()
