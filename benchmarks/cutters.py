"""FlexRel and two others, each called on a network as it is, and one ruler for what they return."""

import copy
import importlib
import inspect
import sys
import time
import traceback
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import flexrel
import survivors
from flexrel.core import cost
from flexrel.core.batches import read_batches
from flexrel.core.evaluate import Divergence
from flexrel.core.measurement import Measurement, silent
from flexrel.criteria import ALLOCATIONS
from flexrel.pruning.builder import NetworkBuilder
from flexrel.pruning.trials import Trials
from flexrel.structure import analyse

BUDGET = 0.5  # of the multiply-adds
TARGET = (0.48, 0.50)  # within 2 % from below
TRIES = 8  # of a tool whose goal is not multiply-adds


# --- one ruler for all ------------------------------------------------------------------------


def multiply_adds(model, batch):
    """Count those of one sample, of every matrix product and convolution that really runs.

    Fused attention and recurrence are taken apart, as the counter doesn't know their kernels.
    """
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    plain = torch.backends.mkldnn.flags(enabled=not recurrent)
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), plain, counter:
            survivors.output_of(model, batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2 // survivors.SAMPLES


def output_shape(model, batch):
    with torch.no_grad():
        return list(survivors.tensor_of(survivors.output_of(model, batch)).shape)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def verify(model, batch, dense):
    """Return what a returned module costs, and whether it does what a network must."""
    row = {"runs": False, "same_shape": False, "backward": False}
    try:
        row["same_shape"] = output_shape(model, batch) == dense["shape"]
        row["runs"] = True
        row["macs"] = multiply_adds(model, batch)
        row["parameters"] = parameters(model)
        row["ratio"] = row["macs"] / dense["macs_dense"]
        survivors.plain(model, batch)
        row["backward"] = True
    except Exception as error:  # noqa: BLE001 - a module that fails is a result
        row["reason"] = survivors.reason(error)
    if not row["same_shape"] and "reason" not in row:
        row["reason"] = f"the output has another shape than {dense['shape']}"
    good = row["runs"] and row["same_shape"] and row["backward"]
    return row | {"outcome": "cut" if good else "broken"}


# --- the tools --------------------------------------------------------------------------------


def planning(model, batch):
    """Return the seconds of finding what can go, scoring it, and selecting to the budget."""
    example = next(read_batches([batch], model))
    granularity = inspect.signature(flexrel.prune).parameters["granularity"].default
    criterion = flexrel.Magnitude()
    began = time.perf_counter()
    graph = analyse(model, example, granularity)
    analysed = time.perf_counter()
    making = NetworkBuilder(model, "float32", Divergence(model, [batch]), silent)
    trials = Trials(making, graph, None, ALLOCATIONS["global"], None, resource="MACs")
    macs, size = cost.macs(graph), cost.parameters(graph)
    dense = Measurement("dense", removed=0.0, parameters=size, macs=macs, bytes=0)
    count = trials.units_for(criterion, [flexrel.MACs(BUDGET)], dense)
    trials.removal(criterion).plan(count)
    ended = time.perf_counter()
    return {"planning_s": ended - began, "analyse_s": analysed - began}


_ROOM = "flexrel.pruning"
STAGES = (
    (sys.modules[f"{_ROOM}.sources"], "analyse"),
    (sys.modules[f"{_ROOM}.prune"], "calibrate"),
    (Trials, "choose"),
    (Trials, "measure"),
)


@contextmanager
def stages():
    """Yield the seconds that stages of `prune` have taken so far, by name."""
    seconds = {}

    def timed(name, work, *args, **kwargs):
        began = time.perf_counter()
        try:
            return work(*args, **kwargs)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began

    def wrapped(name, work):
        return lambda *args, **kwargs: timed(name, work, *args, **kwargs)

    with ExitStack() as stack:
        for owner, name in STAGES:
            work = wrapped(name, getattr(owner, name))
            stack.enter_context(patch.object(owner, name, work))
        yield seconds


def flexrel_call(model, batch):
    budgets, criterion = [flexrel.MACs(BUDGET)], flexrel.FlexRel()
    return flexrel.prune(model, calibration=[batch], budgets=budgets, criterion=criterion)


def by_flexrel(model, batch, dense, report, limit):
    """The default call; its own count of multiply-adds is what the budget is about."""
    report({"stage": "planning"}, limit)
    try:
        report(planning(model, batch))
    except flexrel.FlexrelError as error:  # the call meets it again
        report({"planning_error": survivors.reason(error)})
    report({"stage": "the call"}, limit)
    began = time.perf_counter()
    with stages() as seconds:
        try:
            result = flexrel_call(model, batch)
        except Exception as error:  # noqa: BLE001 - a network that fails is a result
            refused = isinstance(error, flexrel.FlexrelError)
            row = failure(error, refused=refused)
            return row | {"call_s": time.perf_counter() - began, "stages_s": seconds}
    row = {"call_s": time.perf_counter() - began, "stages_s": seconds}
    row |= {"own_dense": result.dense.macs, "own": result.achieved.macs}
    row |= {"criterion": result.criterion.name}
    return row | verify(result.model, batch, dense)


def last_layer(model, batch, shape):
    """Return the layer that makes the outputs, which is not to be cut."""
    found = []

    def note(module, _inputs, output):
        found.append((module, list(output.shape)))

    kinds = nn.Linear | nn.Conv1d | nn.Conv2d
    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, kinds)]
    output_shape(model, batch)
    for hook in hooks:
        hook.remove()
    fitting = [module for module, made in found if made == shape]
    return (fitting or [module for module, _ in found])[-1:]


def torch_pruning_call(share, model, batch, shape):
    """Its README's first call, without rounding to multiples of 8, which misses the target."""
    tool = importlib.import_module("torch_pruning")
    pruner = tool.pruner.BasePruner(
        model,
        batch,
        importance=tool.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=share,
        ignored_layers=last_layer(model, batch, shape),
        in_channel_groups={},  # its defaults are shared by all pruners of a process
        out_channel_groups={},
        num_heads={},
    )
    pruner.step()
    return model


def kirigami_call(share, model, batch, _shape):
    """Its README's first call; it knows budgets of parameters, none of multiply-adds."""
    tool = importlib.import_module("torch_kirigami")
    pruning = importlib.import_module("torch_kirigami.pruning")
    named = {"kwargs": batch} if isinstance(batch, dict) else {"args": (batch,)}
    pruner = pruning.Pruner(model, graph=tool.DependencyGraph.build(model, **named))
    pruned, _ = pruner.prune(
        pruner.discover_candidates(),
        budget=pruning.ParameterBudget.from_ratio(model, share),
        strategy=pruning.Greedy(pruning.GroupMagnitude(p=2)),
    )
    return pruned


def kirigami_errors():
    errors = importlib.import_module("torch_kirigami.errors")
    return (errors.KirigamiError, errors.UnsupportedOperation)


def failure(error, *, refused):
    if refused:
        return {"outcome": "refused", "reason": " ".join(str(error).split())[:300]}
    last = traceback.extract_tb(error.__traceback__)[-1]  # many have no message of their own
    where = f"in {last.name} of {Path(last.filename).stem}"
    return {"outcome": "crashed", "reason": f"{survivors.reason(error)} ({where})"}


def at_target(row):
    """Return whether a row's cut is where it was asked for: by FlexRel's own count or the ruler."""
    ratio = row["own"] / row["own_dense"] if "own" in row else row.get("ratio", 1.0)
    return row["outcome"] == "cut" and TARGET[0] <= ratio <= TARGET[1]


def next_share(known):
    """Return the share to try next: on the line between the closest two that are known."""
    low = max((pair for pair in known if pair[1] > TARGET[1]), default=(0.0, 1.0))
    high = min((pair for pair in known if pair[1] < TARGET[0]), default=(1.0, 0.0))
    aim = (low[1] - sum(TARGET) / 2) / (low[1] - high[1])
    return low[0] + min(max(aim, 0.1), 0.9) * (high[0] - low[0])


def searched(call, first, refusals, model, batch, dense, report, limit):
    """Call a tool on fresh copies with other shares, until its cut is at the target.

    `call_s` is the time of the call that is kept, `search_s` of all. A further call is made while
    it can be expected to end within the limit.
    """
    share, known, best = first, [], None
    began = time.perf_counter()
    for tries in range(1, TRIES + 1):
        copied = copy.deepcopy(model)
        report({"stage": "the call"} if best is None else {}, limit)
        start = time.perf_counter()
        try:
            cut = call(share, copied, batch, dense["shape"])
            row = {"call_s": time.perf_counter() - start, "share": share}
            row |= verify(cut, batch, dense)
            ratio = row.get("ratio", 0.0)
        except Exception as error:  # noqa: BLE001 - a network that fails is a result
            row = failure(error, refused=isinstance(error, refusals))
            row |= {"call_s": time.perf_counter() - start, "share": share}
            ratio = 0.0  # it can't be cut so far
        spent = time.perf_counter() - began
        if best is None or closer(row, best):
            best = row
        best |= {"search_s": spent, "tries": tries}
        report(best)
        known.append((share, ratio))
        share = next_share(known)
        final = row["outcome"] in {"crashed", "broken"} or at_target(row)
        if final or spent * (1 + 1 / tries) > limit:
            break
    return best


def closer(row, best):
    if "cut" not in {row["outcome"], best["outcome"]} or row["outcome"] != "cut":
        return False
    return best["outcome"] != "cut" or off(row) < off(best)


def off(row):
    return abs(row["ratio"] - sum(TARGET) / 2)


def by_torch_pruning(*arguments):
    return searched(torch_pruning_call, 1 - BUDGET**0.5, (), *arguments)


def by_kirigami(*arguments):
    return searched(kirigami_call, BUDGET, kirigami_errors(), *arguments)


TOOLS = {
    "flexrel": by_flexrel,
    "torch-pruning": by_torch_pruning,
    "torch-kirigami": by_kirigami,
}


def warm_up(tool):
    """Let the tool load what it loads on the first call, so that it is not counted."""
    torch.manual_seed(0)
    small = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
    small.append(nn.Linear(8, 4)).eval()
    batch = torch.randn(survivors.SAMPLES, 8)
    call = {
        "flexrel": flexrel_call,
        "torch-pruning": lambda *given: torch_pruning_call(0.5, *given, [2, 4]),
        "torch-kirigami": lambda *given: kirigami_call(0.5, *given, [2, 4]),
    }[tool]
    with suppress(Exception):  # the network's own call will tell
        call(small, batch)
