"""Which networks are taken as they are: by calibration, and by cuts of FlexRel and Torch-Pruning.

    python benchmarks/compatibility.py                measure all (a day on two cores)
    python benchmarks/compatibility.py --missing      only what is not there yet
    python benchmarks/compatibility.py --networks "resnet*" u-net --tools flexrel
    python benchmarks/compatibility.py --quick        one network of each family, FlexRel alone
    python benchmarks/compatibility.py --show         the page, from the JSON

Relevance runs under every rule. Then each tool is called as its documentation does and asked for
half of the multiply-adds; the call of FlexRel names one criterion, as choosing among several by
data says nothing of random weights. At last half of the prunable weights are set to zero, and what
FlexRel says is gone is held against a count of what is. Each has a process of its own and a time
limit, so that what crashes or hangs is a result.
"""

import argparse
import copy
import faulthandler
import fnmatch
import importlib
import json
import re
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import catalogue
import common
import flexrel

RULES = ("gradient-input", "epsilon", "gamma", "zplus", "attnlrp")
BUDGET = 0.5  # of the multiply-adds
SAME = 1e-6  # of a share: said and counted agree
ZEROS = 0.5  # of the weights that can be set to zero
TARGET = (0.48, 0.50)  # within 2 % from below
TRIES = 8  # of a tool whose goal is not multiply-adds
OUTCOMES = ("broken", "refused", "crashed", "timeout")
PACKAGES = ("torch", "torchvision", "timm", "transformers", "torch-pruning")
NORMS = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - all kinds of it


# --- a network as it is ---------------------------------------------------------------------


def prepared(family, name):
    """Return a network and its batch; no branch of it is dead, whatever its random weights."""
    torch.manual_seed(0)
    model, batch = dict(catalogue.FAMILIES[family]())[name]()
    fresh(model)
    if family != "zoo":  # those are trained
        enliven(model, batch)
    plain(model, batch)
    fresh(model)
    return model, batch


@torch.no_grad()
def enliven(model, batch):
    """Replace what is constant at the start, scales and biases, by random numbers.

    A scale or shift that is 0 makes a branch dead, one that is 1 or 0 makes a mistake in it unseen.
    Batch norms take their statistics from the batch: else activations fade from layer to layer.
    """
    for name, tensor in model.named_parameters():
        if tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
            if tensor.flatten()[0] == 0 and "norm" not in name and "bn" not in name:
                tensor.normal_(0, 0.05)
            else:
                tensor.uniform_(0.5, 1.5)
    norms = [m for m in model.modules() if isinstance(m, NORMS) and m.running_var is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    output_of(model, batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
        norm.running_var.clamp_(min=0.1 * float(norm.running_var.mean()))  # two samples may agree


def fresh(model):
    """Let the model drop what it keeps from pass to pass in evaluation mode, graph and all."""
    model.train()
    model.eval()


def output_of(model, batch):
    return model(**batch) if isinstance(batch, dict) else model(batch)


def tensor_of(result):
    """Return what relevance starts from."""
    if isinstance(result, torch.Tensor):
        return result
    return result["logits"] if "logits" in result else result[0]


def of_output(result, _labels=None):
    values = tensor_of(result)
    if values.ndim == 2:
        return values.max(dim=1).values
    return values.flatten(1).square().sum(1) / 2


def plain(model, batch):
    """Forward and backward, with gradients of the weights, as in training."""
    of_output(output_of(model, batch)).sum().backward()
    model.zero_grad()


def shape_of(model, batch):
    with torch.no_grad():
        return list(tensor_of(output_of(model, batch)).shape)


def multiply_adds(model, batch):
    """Count those of one sample, of every matrix product and convolution that really runs.

    Fused attention and recurrence are taken apart, as the counter doesn't know their kernels.
    """
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    unfused = torch.backends.mkldnn.flags(enabled=not recurrent)
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), unfused, counter:
            output_of(model, batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2 // catalogue.SAMPLES


def reason(error):
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


# --- relevance ------------------------------------------------------------------------------


def relevance(model, batch):
    """Return what came of every rule, and how many weights have stats."""
    shape = next(iter(batch.values())).shape if isinstance(batch, dict) else batch.shape
    row = {"parameters": sum(p.numel() for p in model.parameters()), "input": list(shape)}
    row["rules"] = {}
    known = {n for n, p in model.named_parameters(remove_duplicate=False) if p.ndim >= 2}
    for rule in RULES:
        fresh(model)
        began = time.process_time()  # other work shares the machine
        plain(model, batch)
        base = time.process_time() - began
        fresh(model)
        began = time.process_time()
        try:
            found = flexrel.calibrate(model, [batch], rule, of_output)
        except Exception as error:  # noqa: BLE001 - a network that fails is a result
            row["rules"][rule] = {"error": reason(error)}
            continue
        row["rules"][rule] = {"ratio": (time.process_time() - began) / base}
        names = [name for group, kept in found.items() for name in (group, *kept.tied)]
        row |= {"weights": len(known), "unread": len(known - weights_of(names))}
    return row


def weights_of(names):
    """Return the names of the parameters that groups may be the weights of."""
    bare = {re.sub(r"\[\d+:\d+\]$", "", name) for name in names}
    return {n for group in bare for n in (f"{group}.weight", group, group or "weight")}


# --- cuts -----------------------------------------------------------------------------------


def verify(model, batch, dense):
    """Return what a returned module costs, and whether it does what a network must."""
    row = {"runs": False, "same_shape": False, "backward": False}
    try:
        row["same_shape"] = shape_of(model, batch) == dense["shape"]
        row["runs"] = True
        row["macs"] = multiply_adds(model, batch)
        row["ratio"] = row["macs"] / dense["macs"]
        plain(model, batch)
        row["backward"] = True
    except Exception as error:  # noqa: BLE001 - a module that fails is a result
        row["reason"] = reason(error)
    if not row["same_shape"] and "reason" not in row:
        row["reason"] = f"the output has another shape than {dense['shape']}"
    good = row["runs"] and row["same_shape"] and row["backward"]
    return row | {"outcome": "cut" if good else "broken"}


def by_flexrel(model, batch, dense, report, _limit):
    """The default call but for the criterion; its own count is what the budget is about."""
    report({"stage": "the call"})
    began = time.perf_counter()
    try:
        result = flexrel_call(model, batch)
    except Exception as error:  # noqa: BLE001 - a network that fails is a result
        row = failure(error, refused=isinstance(error, flexrel.FlexrelError))
        return row | {"call_s": time.perf_counter() - began}
    row = {"call_s": time.perf_counter() - began, "criterion": result.criterion.name}
    row |= {"own_dense": result.dense.macs, "own": result.achieved.macs}
    row |= {"said": result.achieved.weights_removed, "gone": gone(result.model, model)}
    return row | verify(result.model, batch, dense)


def flexrel_call(model, batch):
    """Call it with one criterion; where that can't score enough, magnitude stands beside it."""
    call = partial(flexrel.prune, model, calibration=[batch], budgets=[flexrel.MACs(BUDGET)])
    try:
        return call(criterion=flexrel.FlexRel())
    except flexrel.BudgetError as error:
        if "The criterion can score" not in str(error):
            raise
        return call(criterion=(flexrel.FlexRel(), flexrel.Magnitude()))


def zeros(model, batch):
    """Set half of what can be set to zero, and return what is said of it and what is so."""
    call = partial(flexrel.prune, model, calibration=[batch], budgets=[flexrel.Sparsity(ZEROS)])
    began = time.perf_counter()
    try:
        result = call(granularity="element", criterion=flexrel.Magnitude())
    except Exception as error:  # noqa: BLE001 - a network that fails is a result
        return failure(error, refused=isinstance(error, flexrel.FlexrelError))
    row = {"outcome": "cut", "call_s": time.perf_counter() - began}
    return row | {"said": result.achieved.weights_removed, "gone": gone(result.model, model)}


def gone(network, dense):
    """Return the share of the weights, of tensors of two axes or more, that is zero or not there.

    Counted in numpy, over the memory that the tensors lie in, so that tied weights count once.
    """

    def weights(module):
        tensors = (tensor.detach() for tensor in module.parameters() if tensor.ndim > 1)
        return {tensor.data_ptr(): tensor.float().numpy() for tensor in tensors}.values()

    there = sum(int((values != 0).sum()) for values in weights(network))
    return 1 - there / sum(values.size for values in weights(dense))


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


def last_layer(model, batch, shape):
    """Return the layer that makes the outputs, which is not to be cut."""
    found = []

    def note(module, _inputs, output):
        found.append((module, list(output.shape)))

    kinds = nn.Linear | nn.Conv1d | nn.Conv2d
    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, kinds)]
    shape_of(model, batch)
    for hook in hooks:
        hook.remove()
    fitting = [module for module, made in found if made == shape]
    return (fitting or [module for module, _ in found])[-1:]


def by_torch_pruning(model, batch, dense, report, limit):
    """Call it on fresh copies with other shares, until its cut is at the target.

    `call_s` is the time of the call that is kept, `search_s` of all. A further call is made while
    it can be expected to end within the limit.
    """
    share, known, best = 1 - BUDGET**0.5, [], None
    began = time.perf_counter()
    for tries in range(1, TRIES + 1):
        copied = copy.deepcopy(model)
        report({"stage": "the call"} if best is None else {})
        start = time.perf_counter()
        try:
            cut = torch_pruning_call(share, copied, batch, dense["shape"])
            row = {"call_s": time.perf_counter() - start, "share": share}
            row |= verify(cut, batch, dense)
        except Exception as error:  # noqa: BLE001 - a network that fails is a result
            row = failure(error, refused=False)
            row |= {"call_s": time.perf_counter() - start, "share": share}
        spent = time.perf_counter() - began
        if best is None or closer(row, best):
            best = row
        best |= {"search_s": spent, "tries": tries}
        report(best)
        known.append((share, row.get("ratio", 0.0)))  # 0: it can't be cut so far
        share = next_share(known)
        final = row["outcome"] in {"crashed", "broken"} or at_target(row)
        if final or spent * (1 + 1 / tries) > limit:
            break
    return best


def next_share(known):
    """Return the share to try next: on the line between the closest two that are known."""
    low = max((pair for pair in known if pair[1] > TARGET[1]), default=(0.0, 1.0))
    high = min((pair for pair in known if pair[1] < TARGET[0]), default=(1.0, 0.0))
    aim = (low[1] - sum(TARGET) / 2) / (low[1] - high[1])
    return low[0] + min(max(aim, 0.1), 0.9) * (high[0] - low[0])


def closer(row, best):
    if row["outcome"] != "cut":
        return False
    middle = sum(TARGET) / 2
    return best["outcome"] != "cut" or abs(row["ratio"] - middle) < abs(best["ratio"] - middle)


def at_target(row):
    """Return whether a row's cut is where it was asked for: by FlexRel's own count or the ruler."""
    ratio = row["own"] / row["own_dense"] if "own" in row else row.get("ratio", 1.0)
    return row["outcome"] == "cut" and TARGET[0] <= ratio <= TARGET[1]


def failure(error, *, refused):
    if refused:
        return {"outcome": "refused", "reason": " ".join(str(error).split())[:300]}
    last = traceback.extract_tb(error.__traceback__)[-1]  # many have no message of their own
    where = f"in {last.name} of {Path(last.filename).stem}"
    return {"outcome": "crashed", "reason": f"{reason(error)} ({where})"}


TOOLS = {
    "flexrel": by_flexrel,
    "torch-pruning": by_torch_pruning,
}


def warm_up(tool):
    """Let the tool load what it loads on the first call, so that it is not counted."""
    small = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
    small.append(nn.Linear(8, 4)).eval()
    batch = torch.randn(catalogue.SAMPLES, 8)
    dense = {"shape": [catalogue.SAMPLES, 4], "macs": multiply_adds(small, batch)}
    with suppress(Exception):  # the network's own call will tell
        TOOLS[tool](small, batch, dense, lambda _: None, 0)


# --- one process for each network and tool ----------------------------------------------------


def one(family, name, what, limit):
    """Measure, and print what is known so far as a line of JSON whenever there is more."""
    row = {"outcome": "crashed"}

    def report(news):
        row.update(news)
        print(json.dumps(row), flush=True)
        faulthandler.dump_traceback_later(limit, exit=True)  # whatever the process does

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, on loading and on untrained networks
        try:
            model, batch = prepared(family, name)
            dense = {"shape": shape_of(model, batch), "macs": multiply_adds(model, batch)}
        except Exception as error:  # noqa: BLE001 - a network that fails is a result
            report({"outcome": "skipped", "reason": f"does not run by itself: {reason(error)}"})
            return
        if what == "relevance":
            report({"stage": "relevance"})
            row.pop("stage")
            report({"outcome": "measured"} | relevance(model, batch))
            return
        if what == "zeros":
            report({"stage": "the call"})
            row.pop("stage")
            report(zeros(model, batch))
            return
        size = sum(parameter.numel() for parameter in model.parameters())
        report({"macs_dense": dense["macs"], "parameters_dense": size, "stage": "warming up"})
        warm_up(what)
        found = TOOLS[what](model, batch, dense, report, limit)
    row.pop("stage", None)
    report(found)


def in_process(family, name, what, limit):
    """Return the row of one network and tool, whatever becomes of its process."""
    command = [sys.executable, __file__, "--timeout", str(limit), "--one", family, name, what]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=4 * limit + 600, check=False
        )
        lines, code, errors = done.stdout, done.returncode, done.stderr
    except subprocess.TimeoutExpired as error:
        lines, code, errors = (error.stdout or b"").decode(), None, ""
    rows = [json.loads(line) for line in lines.splitlines() if line.startswith('{"outcome"')]
    row = (rows[-1] if rows else {}) | {"limit_s": limit}
    stage = row.pop("stage", None)
    if (stage is None and rows and code == 0) or row.get("outcome") in {"cut", "refused"}:
        return row  # an earlier try's result stands where a later one took too long
    if code is None or "Timeout (" in errors:
        return row | {"outcome": "timeout", "reason": f"over {limit:g} s in {stage or 'all'}"}
    last = (errors.strip().splitlines() or ["without a word"])[-1]
    ended = f"the process ended with status {code} in {stage or 'preparation'}: {last}"
    return row | {"outcome": "crashed", "reason": ended[:300]}


def blocks(args):
    """Yield the block of a network whenever there is one more of its rows."""
    there = {(b["family"], b["network"]): b for b in common.read("compatibility")}
    families = catalogue.QUICK if args.quick else args.families
    for family in families:
        for name, _ in catalogue.FAMILIES[family]():
            patterns = catalogue.QUICK[family] if args.quick else args.networks
            if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                continue
            empty = {"family": family, "network": name, "relevance": None, "cuts": {}}
            block = {} if args.quick else there.get((family, name), {})
            block = empty | block | {"versions": common.versions(*PACKAGES)}
            if not (args.missing and block["relevance"]):
                block["relevance"] = in_process(family, name, "relevance", args.timeout)
                yield block
            if not (args.missing and "zeros" in block):
                block["zeros"] = in_process(family, name, "zeros", args.timeout)
                yield block
            for tool in ("flexrel",) if args.quick else args.tools:
                if not (args.missing and tool in block["cuts"]):
                    block["cuts"][tool] = in_process(family, name, tool, args.timeout)
                    yield block


# --- page -----------------------------------------------------------------------------------


def page(found):
    """Yield the page's parts."""
    if not found:
        return
    yield "# Networks taken as they are"
    yield (
        "Made by `python benchmarks/compatibility.py`. Every classification network of "
        "torchvision, small members of timm's families and transformers' classes, with random "
        "weights and 2 samples; trained networks of the data packs (*zoo*); and four that are "
        "defined in `benchmarks/catalogue.py`. No network is changed for it."
    )
    yield "## Relevance"
    yield (
        "Under each rule is the median time over that of a forward and backward pass with "
        "gradients of the weights, taken once beside it on one thread, so read it as a size."
    )
    header = ["family", "networks", "all rules run", *RULES]
    families = {f: [b for b in found if b["family"] == f] for f in catalogue.FAMILIES}
    yield common.table(header, filter(None, (_rules(f, mine) for f, mine in families.items())))
    yield common.listed(_rules_that_fail(found))
    yield "## Cuts"
    yield (
        "A call asks for half the multiply-adds of a network; FlexRel's names one criterion, and "
        "magnitude beside it where that one can't score enough of a network; "
        "torch-pruning gets the first call of its README, repeated on fresh copies with other "
        "goals until the multiply-adds fit. Each has a process of its own and a "
        f"time limit, of {_limits(found)} s. *Cut at target*: the returned module runs, goes "
        "backward, gives outputs of the dense one's shape and keeps 0.48 to 0.50 of the "
        "multiply-adds, by FlexRel's own count or, for the others, by one ruler that counts every "
        "matrix product and "
        f"convolution that runs. Times were taken on two busy cores{_chosen(found)}."
    )
    header = ["family and tool", "networks", "cut at target", "by the ruler too", "cut, off target"]
    header += [*OUTCOMES, "ruler, median", "call, s: median", "max"]
    yield common.table(header, _summaries(families | {"all": found}))
    header = ["most frequent failures of others", "networks", "outcome", "message", "as on"]
    yield _table(header, _failures(found))
    yield "Networks that FlexRel does not cut at the target:"
    header = ["network", "family", "outcome", "own count / ruler", "reason"]
    yield _table(header, _missed(found))
    skipped = {b["network"]: row["reason"] for b, _, row in _rows(found) if _is_skipped(row)}
    skipped |= {f"timm's {name}": f"skipped: {why}" for name, why in catalogue.TIMM_SKIPPED.items()}
    yield common.listed(f"{name}: {why}" for name, why in skipped.items())
    yield from _counted(found)
    yield "## Network by network"
    yield (
        "*Weights read*: parameters of two axes or more that have stats; the others are not "
        "multiplied with activations as a layer's weights are (tokens, positions, scales, tables "
        "of biases). Two sizes: relevance was measured on a smaller network than what was cut. An "
        "empty cell was not measured."
    )
    header = ["network", "family", "parameters, M", "weights read", "rules that run", *TOOLS]
    yield common.table(header, map(_network, found))
    yield common.measured_with(max((block["versions"] for block in found), key=len))


def _counted(found):
    """Yield how what is said to be gone compares with a count, by kind of cut and family."""
    rows, apart = [], []
    for family in catalogue.FAMILIES:
        for kind in ("units", "zeros"):
            mine = [(b, _row_of(b, kind)) for b in found if b["family"] == family]
            told = [(b, row) for b, row in mine if row and "said" in row]
            if not told:
                continue
            off = [abs(row["said"] - row["gone"]) for _, row in told]
            gone = statistics.median(row["gone"] for _, row in told)
            equal = sum(one < SAME for one in off)
            rows.append([f"{family}, {kind}", len(told), equal, f"{max(off):.1e}", f"{gone:.3f}"])
            apart += [b["network"] for (b, _), one in zip(told, off, strict=True) if one >= SAME]
    if not rows:
        return
    yield "## What is said to be gone"
    yield (
        "The share of all weights, of tensors of two axes or more, that FlexRel says is gone or "
        "zero, against a count in the returned module: of the cuts above, *units*, and where half "
        "of the weights that can be set to zero are, *zeros*. Weights that can't be, as of a token "
        "embedding that is only looked up, are in the count and not among that half."
    )
    header = ["family and cut", "networks", "said what is so", "largest difference", "gone, median"]
    yield common.table(header, rows)
    yield common.listed(f"{name}: what is said is not so" for name in apart)


def _row_of(block, kind):
    return block.get("zeros") if kind == "zeros" else block["cuts"].get("flexrel")


def _limits(found):
    return ", ".join(f"{s:g}" for s in sorted({row["limit_s"] for _, _, row in _rows(found)}))


def _chosen(found):
    """Return in words how many of FlexRel's calls left the choice of the criterion to it."""
    named = flexrel.FlexRel().name
    others = [r for _, tool, r in _rows(found) if tool == "flexrel" and "criterion" in r]
    count = sum(row["criterion"] != named for row in others)
    return f"; at least {count} of FlexRel's cuts chose among its criteria" if count else ""


def _table(header, rows):
    rows = list(rows)
    return common.table(header, rows) if rows else ""


def _rows(found):
    """Yield each block with each of its tools and rows."""
    for block in found:
        for tool, row in block["cuts"].items():
            yield block, tool, row


def _is_skipped(row):
    return row["outcome"] == "skipped"


def _rules(family, found):
    rows = [b["relevance"]["rules"] for b in found if b["relevance"] and "rules" in b["relevance"]]
    good = [row for row in rows if all("ratio" in got for got in row.values())]
    medians = (
        f"{statistics.median(row[rule]['ratio'] for row in good):.2f}" if good else ""
        for rule in RULES
    )
    return [family, len(rows), len(good), *medians] if rows else []


def _rules_that_fail(found):
    """Yield each network with the rules that fail on it, those of one message together."""
    for block in found:
        failed = {}
        for rule, got in ((block["relevance"] or {}).get("rules") or {}).items():
            if "error" in got:
                failed.setdefault(got["error"], []).append(rule)
        for error, rules in failed.items():
            yield f"{block['network']}: {', '.join(rules)}: {common.quoted(error)}"


def _summaries(families):
    for family, found in families.items():
        for tool in TOOLS:
            rows = [row for _, t, row in _rows(found) if t == tool and not _is_skipped(row)]
            if rows:
                yield [f"{family}, {tool}", *_summary(rows)]


def _summary(rows):
    good = [row for row in rows if at_target(row)]
    ruled = sum(TARGET[0] <= row["ratio"] <= TARGET[1] for row in good)
    off = sum(row["outcome"] == "cut" for row in rows) - len(good)
    counts = [sum(row["outcome"] == outcome for row in rows) for outcome in OUTCOMES]
    seconds = [row["call_s"] for row in good]
    times = [f"{of(seconds):.2f}" if good else "" for of in (statistics.median, max)]
    ruler = f"{statistics.median(row['ratio'] for row in good):.3f}" if good else ""
    share = f"{len(good)} ({100 * len(good) / len(rows):.0f} %)"
    return [len(rows), share, ruled, off, *counts, ruler, *times]


def _failures(found, most=5):
    """Yield what the other tools fail at most often, with a network as an example."""
    for tool in list(TOOLS)[1:]:
        kinds = {}
        for block, of, row in _rows(found):
            if of == tool and row["outcome"] in OUTCOMES:
                kind = _kind(row.get("reason", ""))
                kinds.setdefault((row["outcome"], kind), []).append(block["network"])
        ranked = sorted(kinds.items(), key=lambda item: -len(item[1]))[:most]
        for (outcome, kind), names in ranked:
            yield [tool, len(names), outcome, common.quoted(kind), names[0]]


def _kind(message):
    """Return a message with its names and numbers left out, so that alike ones are one."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"|\b[\w]+(\.\w+)+\b", "…", message)
    return re.sub(r"\d+", "N", bare)[:110]


def _missed(found):
    for block, tool, row in _rows(found):
        if tool == "flexrel" and not at_target(row) and not _is_skipped(row):
            left = _left(row) if row["outcome"] == "cut" else ""
            why = common.quoted(row.get("reason", ""))
            outcome = "off target" if row["outcome"] == "cut" else row["outcome"]
            yield [block["network"], block["family"], outcome, left, why]


def _left(row):
    """Return the share of multiply-adds left: by FlexRel's own count, and by the ruler."""
    own = f"{row['own'] / row['own_dense']:.3f} / " if "own" in row else ""
    return f"{own}{row['ratio']:.3f}"


def _network(block):
    measured, cuts = block["relevance"] or {}, block["cuts"]
    sizes = [measured.get("parameters"), *(row.get("parameters_dense") for row in cuts.values())]
    sizes = dict.fromkeys(f"{size / 1e6:.1f}" for size in sizes if size)
    rules = measured.get("rules", {})
    run = f"{sum('ratio' in got for got in rules.values())} of {len(rules)}" if rules else ""
    weights = measured.get("weights")
    read = f"{weights - measured['unread']} of {weights}" if weights is not None else ""
    told = (_left(c) if c["outcome"] == "cut" else c["outcome"] for c in cuts.values())
    cells = dict(zip(cuts, told, strict=True))
    left = (cells.get(tool, "") for tool in TOOLS)
    return [block["network"], block["family"], " / ".join(sizes), read, run, *left]


def main():
    families, tools = tuple(catalogue.FAMILIES), tuple(TOOLS)
    parser = common.parser(__doc__)
    parser.add_argument("--families", nargs="+", choices=families, default=families)
    parser.add_argument("--networks", nargs="+", default=("*",), help="names or patterns")
    parser.add_argument("--tools", nargs="+", choices=tools, default=tools)
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one call")
    parser.add_argument("--missing", action="store_true", help="only what is not there yet")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    common.declare_operators()
    if args.one:
        one(*args.one, args.timeout)
        return
    common.run(args, "compatibility", blocks(args), ("family", "network"), page)


if __name__ == "__main__":
    main()
