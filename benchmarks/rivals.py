"""How each library is called, as its own documentation does, and brought to a budget.

Each caller takes a copy of the task's network, the task, and a knob in (0, 1): the share to keep,
of channels, parameters or weights, whatever the library asks for. It returns the pruned network.
"""

import copy
import dataclasses
import importlib
import math
import time

from torch import nn
from torch.nn import functional
from torch.nn.utils import prune as torch_prune

import published


def example_of(task):
    return task.inputs[0][:2]


def head_of(model):
    """Return the layer that makes the outputs."""
    return list(published.layers_of(model).values())[-1]


def projections(model):
    """Return how many heads there are in each linear layer that makes queries, keys or values."""
    blocks = (block for block in model.modules() if hasattr(block, "q"))
    return {getattr(block, name): block.h for block in blocks for name in "qkv"}


# --- single weights -------------------------------------------------------------------------


def torch_global(model, _task, kept):
    """torch.nn.utils.prune, as in its tutorial's section on global pruning."""
    layers = [(layer, "weight") for layer in published.layers_of(model).values()]
    torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=1 - kept)
    for layer, name in layers:
        torch_prune.remove(layer, name)
    return model


def nncf(model, task, kept):
    """NNCF's global magnitude, then its adaptation of batch norm, as in its documentation."""
    tool = importlib.import_module("nncf")
    model = tool.prune(
        model,
        tool.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL,
        ratio=1 - kept,
        examples_inputs=example_of(task),
    )
    if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        model = tool.batch_norm_adaptation(model, calibration_dataset=tool.Dataset(task.inputs))
    return tool.strip(model.eval(), strip_format=tool.StripFormat.IN_PLACE)


def fasterai_weights(model, _task, kept):
    """fasterai's Sparsifier, global, by size."""
    sparse = importlib.import_module("fasterai.sparse.all")
    kinds = (nn.Linear, nn.Conv2d)
    tool = sparse.Sparsifier(model, "weight", "global", sparse.large_final, layer_type=kinds)
    tool.sparsify_model(1 - kept)
    tool._clean_buffers()  # noqa: SLF001 - its callback ends so
    return model


def by_paper(change_):
    """Return a caller of a criterion in `published`."""

    def call(model, task, kept):
        change_(model, task.inputs, kept)
        return model

    return call


WEIGHTS = {
    "torch.nn.utils.prune": torch_global,
    "NNCF": nncf,
    "fasterai": fasterai_weights,
    "LAMP (paper)": by_paper(published.lamp_),
    "Wanda (paper)": by_paper(published.wanda_),
    "SparseGPT (paper)": by_paper(published.sparsegpt_),
}


# --- channels -------------------------------------------------------------------------------


def gradients_(model, task, *, each=False):
    """Fill gradients of the loss on the calibration data; yield once a sample if `each`."""
    model.zero_grad()
    for inputs, labels in task.calibration:
        if labels is None:
            raise ValueError("the data have no labels, which its gradients need")
        losses = functional.cross_entropy(model(inputs), labels, reduction="none")
        if each:
            for loss in losses:
                model.zero_grad()
                loss.backward(retain_graph=True)
                yield
        else:
            losses.sum().backward()
    if not each:
        yield


def torch_pruning(importance, *, everywhere=False):
    """Return a caller of Torch-Pruning as in its README, without its rounding to 8 channels.

    It is told of heads, as in its examples of transformers, and leaves embeddings alone, which it
    cuts so that the network fails. `everywhere`: its `global_pruning`, with `isomorphic`.
    """

    def call(model, task, kept):
        tool = importlib.import_module("torch_pruning")
        if "BN" in importance[0] and not any(
            isinstance(m, nn.BatchNorm2d) for m in model.modules()
        ):
            raise ValueError("the network has no batch norm, whose scale it reads")
        made = getattr(tool.importance, importance[0])(**importance[1])
        pruner = tool.pruner.BasePruner(
            model,
            example_of(task),
            importance=made,
            pruning_ratio=1 - kept,
            global_pruning=everywhere,
            isomorphic=everywhere,
            ignored_layers=[
                head_of(model),
                *(layer for layer in model.modules() if isinstance(layer, nn.Embedding)),
            ],
            in_channel_groups={},  # its defaults are shared by all pruners of a process
            out_channel_groups={},
            num_heads=projections(model),
        )
        if "Hessian" in importance[0]:
            made.zero_grad()
            for _ in gradients_(model, _first(task), each=True):
                made.accumulate_grad(model)
        elif "Taylor" in importance[0]:
            list(gradients_(model, task))
        pruner.step()
        model.zero_grad(set_to_none=True)
        return model

    return call


def _first(task):
    """Return the task with one batch of calibration data: a gradient a sample takes long."""
    return dataclasses.replace(task, calibration=task.calibration[:1])


def kirigami(model, task, kept):
    """torch-kirigami as in its README; its budget counts parameters."""
    tool = importlib.import_module("torch_kirigami")
    pruning = importlib.import_module("torch_kirigami.pruning")
    graph = tool.DependencyGraph.build(model, args=(example_of(task),))
    pruner = pruning.Pruner(model, graph=graph)
    pruned, _ = pruner.prune(
        pruner.discover_candidates(),
        budget=pruning.ParameterBudget.from_ratio(model, 1 - kept),
        strategy=pruning.Greedy(pruning.GroupMagnitude(p=2)),
    )
    return pruned


def fasterai_channels(model, task, kept):
    """fasterai's Pruner, local, by size."""
    tool = importlib.import_module("fasterai.prune.all")
    criteria = importlib.import_module("fasterai.core.criteria")
    pruner = tool.Pruner(
        model, 1 - kept, "local", criteria.large_final, example_inputs=example_of(task)
    )
    pruner.prune_model()
    return model


def fastnas(model, task, kept):
    """NVIDIA ModelOpt's FastNAS, as in its notebook on ResNet-20.

    It is told a share of FLOPs, which is the square of the knob, as for the other methods.
    """
    prune = importlib.import_module("modelopt.torch.prune")
    config = prune.fastnas.FastNASConfig()
    config["nn.Conv2d"]["*"]["channel_divisor"] = 16
    config["nn.BatchNorm2d"]["*"]["feature_divisor"] = 16
    pruned, _ = prune.prune(
        model,
        [("fastnas", config)],
        {"flops": f"{100 * kept**2:.2f}%"},
        example_of(task),
        {
            "data_loader": task.calibration,
            "max_iter_data_loader": len(task.calibration),
            "collect_func": lambda batch: batch[0],
            "score_func": lambda network: task.choose.score(task.choose(network)),
            "checkpoint": None,
            "verbose": False,
        },
    )
    return pruned


SIZE, TAYLOR = "GroupMagnitudeImportance", "GroupTaylorImportance"
CHANNELS = {
    "Torch-Pruning L1": torch_pruning((SIZE, {"p": 1})),
    "Torch-Pruning L2": torch_pruning((SIZE, {"p": 2})),
    "Torch-Pruning Taylor": torch_pruning((TAYLOR, {})),
    "Torch-Pruning BN scale": torch_pruning(("BNScaleImportance", {})),
    "Torch-Pruning Hessian": torch_pruning(("GroupHessianImportance", {})),
    "Torch-Pruning L2, global": torch_pruning((SIZE, {"p": 2}), everywhere=True),
    "Torch-Pruning Taylor, global": torch_pruning((TAYLOR, {}), everywhere=True),
    "Torch-Pruning LAMP, global": torch_pruning(("LAMPImportance", {}), everywhere=True),
    "torch-kirigami": kirigami,
    "fasterai": fasterai_channels,
    "ModelOpt FastNAS": fastnas,
}
PACKAGES = ("torch", "nncf", "torch-pruning", "torch-kirigami", "fasterai", "nvidia-modelopt")


# --- to a budget ------------------------------------------------------------------------------

LIMIT = 900  # seconds for one method
TRIES = 12  # calls of a library to meet a budget
MET = 0.01  # a budget is met from below to within this share; if no call did, by the closest
POWERS = (0.5, 4)  # of the knob that a cost may be taken for
CLOSE = 0.005  # knobs are not told apart below this ratio less one
SEARCH = LIMIT / 2  # seconds after which a library that has met the budget is not called again


def by_library(call, case, task, ruler):
    """Return the network of the largest knob found that keeps to the budget, and its seconds."""
    power = 2 if case.granularity == "channel" else 1
    search = Knob((1 - MET / 2) * ruler.limit, power)
    knob, best = case.level ** (1 / power), None
    first = time.monotonic()
    for _ in range(TRIES):
        began = time.monotonic()
        network = call(copy.deepcopy(task.model), task, knob)
        seconds, found = time.monotonic() - began, ruler(network)
        if found <= ruler.limit and (best is None or found > best[1]):
            best = network, found, seconds
            if found >= (1 - MET) * ruler.limit:
                break
        if best is not None and began + 2 * seconds > first + SEARCH:  # the next as long as this
            break
        knob = search.after(knob, found, within=found <= ruler.limit)
        if knob is None:
            break
    if best is None:
        raise RuntimeError("no call kept to the budget")
    return best[0], best[2]


class Knob:
    """Searches the knob at which a cost, that never falls with it, is what is aimed at.

    The cost is taken for a power of the knob, for the one that the last two knobs had; and, once
    the aim is between two, every second time for steps: the bracket is halved.
    """

    def __init__(self, aim, power):
        self.aim, self.power, self.halves = aim, power, False
        self.low, self.high = None, None  # (knob, cost): the closest within the budget, and above
        self.last = None

    def after(self, knob, cost, *, within):
        """Return the next knob; None where those within the budget and above it have met."""
        here, last = (knob, cost), self.last
        self.last = here
        if last and cost != last[1]:
            power = math.log(cost / last[1]) / math.log(knob / last[0])
            self.power = min(max(power, POWERS[0]), POWERS[1])
        if within:
            self.low = max(self.low or here, here)
        else:
            self.high = min(self.high or here, here)
        if self.low is None or self.high is None:
            factor = (self.aim / cost) ** (1 / self.power)
            if within:
                return None if knob == 1 else min(max(factor, 1 + CLOSE) * knob, 1.0)
            return min(factor, 1 - CLOSE) * knob
        (low, least), (high, most) = self.low, self.high
        if high < (1 + CLOSE) * low:
            return None
        way = 0.5 if self.halves else math.log(self.aim / least) / math.log(most / least)
        self.halves = not self.halves
        return low * (high / low) ** way
