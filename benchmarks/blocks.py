"""Whether an inverted residual should become one fitted 1x1 convolution, or lose hidden channels.

    python benchmarks/blocks.py                     measure all (a quarter of an hour)
    python benchmarks/blocks.py --networks mobilenetv2
    python benchmarks/blocks.py --whole             of all blocks the best, to 2/3 of multiply-adds
    python benchmarks/blocks.py --quick             a small network that is not trained, on digits
    python benchmarks/blocks.py --show              the page, from the JSON

Of one block at a time the branch (expand, depthwise, project) is replaced: by one 1x1 convolution
of the block's input, with its stride, or by as many hidden channels as cost as much, chosen in the
order of OBS. Both are linear in what they take in, and fitted alike, by least squares, to what the
branch gave on calibration samples. How far the network's outputs then are from the dense network's
is measured on samples held out.
"""

import copy
import functools
import math

import torch
from torch import nn
from torch.nn import functional

import allocation
import common
import tasks
from flexrel.core.batches import read_batches
from flexrel.core.running import call, undisturbed
from flexrel.criteria import measure_saliency

NETWORKS = ("efficientnet_lite0", "mobilenetv2")
ROWS = 100  # positions of each sample that are fitted to
SHARE = 2 / 3  # of the multiply-adds, with several blocks replaced
WHOLE = "blocks-whole"  # its JSON
RIDGE = 1e-4  # of the mean square of what is taken in


class Inverted(nn.Module):
    """An inverted residual, by the names that those of the data packs have."""

    def __init__(self, width, hidden):
        super().__init__()
        self.skip = True  # the input is added
        self.expand = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.ReLU())
        depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.dw = nn.Sequential(depthwise, nn.ReLU())
        self.project = nn.Conv2d(hidden, width, 1)

    def forward(self, x):
        return x + self.project(self.dw(self.expand(x)))


class Block:
    """A block whose branch may give something else than it does: `replaced` says what."""

    def __init__(self, name, module):
        self.name, self.skip, self.replaced, self.kept = name, module.skip, None, []
        self.expand, self.depthwise = module.expand[0], module.dw[0]
        self.stride = self.depthwise.stride[0]
        self.layer = (
            module.project[0] if isinstance(module.project, nn.Sequential) else module.project
        )
        module.register_forward_pre_hook(self._enter)
        self.layer.register_forward_pre_hook(self._hidden)
        module.project.register_forward_hook(self._leave)

    def _enter(self, _, args):
        self.inside = args[0][:, :, self.stride - 1 :: self.stride, self.stride - 1 :: self.stride]

    def _hidden(self, _, args):
        self.hidden = args[0]

    def _leave(self, _, args, out):  # noqa: ARG002 - as torch calls it
        if self.replaced is not None:
            units, weight, bias = self.replaced
            taken = self.inside if units is None else self.hidden[:, units]
            return functional.conv2d(taken, weight[:, :, None, None], bias)
        self.kept.append([drawn(each) for each in (self.inside, self.hidden, out)])
        return None

    def multiply_adds(self):
        """Return those of the branch, of one of its hidden channels, and of a 1x1 convolution."""
        places, (into, out) = (
            self.inside[0, 0].numel(),
            (self.expand.in_channels, self.layer.out_channels),
        )
        kernel = self.depthwise.weight[0].numel()
        each = into * places * self.stride**2 + (kernel + out) * places
        return each * self.layer.in_channels, each, places * into * out

    def fitted(self, units):
        """Return what replaces the branch, of hidden channels or of the input where None."""
        inside, hidden, out = (torch.cat(each).double() for each in zip(*self.kept, strict=True))
        taken = inside if units is None else hidden[:, units]
        means = taken.mean(0), out.mean(0)
        taken, goal = taken - means[0], out - means[1]
        moments = taken.T @ taken
        moments.diagonal().add_(RIDGE * moments.diagonal().mean() + 1e-30)
        weight = torch.linalg.solve(moments, taken.T @ goal).T
        return units, weight.float(), (means[1] - weight @ means[0]).float()


def drawn(tensor):
    """Return rows of channels at the same places of each sample."""
    places = torch.linspace(0, tensor[0, 0].numel() - 1, ROWS).long().unique()
    return tensor.flatten(2)[:, :, places].transpose(1, 2).flatten(0, 1).clone()


def whole(network):
    """Return what the network is with the blocks replaced that save most for what they cost.

    One after the other, each fitted to the dense network's sum on what the blocks before it give.
    """
    rows = [row for row in common.read("blocks") if row["network"] == network and row["skip"]]
    rows.sort(key=lambda row: row["one convolution"] / row["branch"])
    left, names = 1.0, []
    for row in rows:
        if left > SHARE:
            left -= row["branch"] * (1 - row["left"])
            names.append(row["block"])
    task = tasks.task(network, "as trained", 0)
    case, dense = allocation.Case(task, 1.0), copy.deepcopy(task.model)
    sums = {}
    for name in names:
        note = functools.partial(sums.__setitem__, name)
        dense.get_submodule(name).register_forward_hook(lambda _, __, out, note=note: note(out))
    found = [Block(name, module) for name, module in task.model.named_modules() if name in names]
    with undisturbed(task.model), torch.no_grad():
        for block in found:
            kept = []
            for batch in read_batches(case.fitted, task.model):
                call(dense, batch)
                call(task.model, batch)
                inside = drawn(block.inside)
                kept.append([inside, inside, drawn(sums[block.name] - block.inside)])
                for other in found:
                    other.kept.clear()
            block.kept = kept
            block.replaced = block.fitted(None)
            block.kept = []
        hits = [task.model(x).argmax(1) == labels for x, labels in task.test.batches]
        hits = torch.cat(hits).numpy()
    row = {"network": network, "blocks": names, "left": left}
    row["divergence"] = case.divergence(task.model)
    before = task.test(dense)
    row["dense"] = task.test.score(before)
    return row | tasks.compared(task.test, before, hits)


def small():
    """Return a small network of inverted residuals, in use on digits."""
    torch.manual_seed(0)
    task = tasks.digits()
    blocks = Inverted(12, 48), Inverted(12, 48)
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)
    model = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), *blocks, *ends).eval()
    return tasks.Task("small", "as trained", 0, model, task.calibration, task.choose, task.test)


def measure(network):
    """Yield a block of results for each block of the network."""
    case = allocation.Case(
        small() if network == "small" else tasks.task(network, "as trained", 0), 1.0
    )
    saliency, _ = measure_saliency(case.model, case.graph, case.few, seed=0)
    found = [
        Block(name, module)
        for name, module in case.model.named_modules()
        if hasattr(module, "project") and isinstance(module.expand, nn.Sequential)
    ]
    with undisturbed(case.model), torch.no_grad():
        for batch in read_batches(case.few, case.model):
            call(case.model, batch)
    names = {id(module): name for name, module in case.model.named_modules()}
    for block in found:
        (group,) = (g for g in case.graph.groups if names[id(block.layer)] in g.readers)
        branch, each, one = block.multiply_adds()
        count = max(round(one / each), 1)
        ways = {
            "one convolution": None,
            "hidden channels": saliency[group.name].argsort(descending=True)[:count],
        }
        row = {"network": network, "block": block.name, "branch": branch / case.limit}
        row |= {"left": one / branch, "kept": count, "of": group.units, "skip": block.skip}
        for way, units in ways.items():
            block.replaced = block.fitted(units)
            row[way] = case.divergence(case.model)
        block.replaced = None
        yield row | {"with": common.versions("torch")}
        block.kept.clear()


def blocks(args):
    for network in ("small",) if args.quick else args.networks:
        yield from measure(network)


def page(found):
    """Yield the page's parts."""
    if not found:
        return
    yield "# Blocks as one convolution"
    yield (
        "Made by `python benchmarks/blocks.py`. Of one inverted residual at a time the branch is "
        "replaced by one 1x1 convolution of the block's input, or by as many hidden channels as "
        "cost as much, in OBS's order; all by 64 calibration samples, the fits by least squares. "
        "Divergence from the dense network's outputs on others. *Branch*: its share of the "
        "network's multiply-adds; *left*: what of them the convolution takes."
    )
    rows = [
        [
            f"{row['network']}, {row['block']}",
            f"{100 * row['branch']:.1f} %",
            f"{100 * row['left']:.1f} %",
            f"{row['kept']} of {row['of']}",
            f"{row['hidden channels']:.3g}",
            f"{row['one convolution']:.3g}",
        ]
        for row in found
    ]
    head = ("network, block", "branch", "left", "channels kept", "divergence, channels")
    yield common.table((*head, "divergence, one convolution"), rows)
    for skip, said in ((True, "is added to"), (False, "is not added to")):
        mine = [row for row in found if row["skip"] == skip]
        if mine:
            yield f"Where the input {said} the branch: {_compared(mine)}"
    for row in common.read(WHOLE):
        yield (
            f"{row['network']} with {len(row['blocks'])} blocks as one convolution each, those "
            "that save most for what they cost, at "
            f"{100 * row['left']:.1f} % of its multiply-adds: "
            f"{100 * row['score']:.1f} ± {100 * row['error']:.1f} % of images that nothing was "
            f"chosen on, dense {100 * row['dense']:.1f} %; what the default call has there is in "
            "[the search](search.md)."
        )
    yield common.measured_with(found[-1]["with"])


def _compared(rows):
    ratios = [row["one convolution"] / row["hidden channels"] for row in rows]
    closer = sum(ratio < 1 for ratio in ratios)
    middle = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return (
        f"one convolution is closer to the dense network in {closer} of {len(rows)} blocks; its "
        f"divergence is {middle:.2f} times that of the channels, in the geometric mean."
    )


def main():
    parser = common.parser(__doc__, NETWORKS)
    parser.add_argument("--whole", action="store_true", help="several blocks, by what is measured")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.whole:
        for network in args.networks:
            common.keep(WHOLE, whole(network), "network")
        common.write("blocks", page(common.read("blocks")))
        return
    common.run(args, "blocks", blocks(args), ("network", "block"), page)


if __name__ == "__main__":
    main()
