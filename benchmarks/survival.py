"""Which networks can be cut to half their multiply-adds as they are, by FlexRel and two others.

    python benchmarks/survival.py                measure, then write the tables into README.md
    python benchmarks/survival.py --missing      only what results/survival.json doesn't have

The call names one criterion: choosing among eleven by data says nothing of random weights.
Needs the extra "oracles", torch-pruning and torch-kirigami. Each network and tool has a process of
its own and a time limit, so that what crashes or hangs is a result. Results are saved after each.
"""

import argparse
import copy
import faulthandler
import fnmatch
import importlib
import inspect
import json
import re
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import common
import flexrel
import survivors
from flexrel import cost, forms, pipeline
from flexrel.allocate import ALLOCATIONS
from flexrel.batches import read_batches
from flexrel.records import Measurement, silent
from flexrel.trials import Trials

BUDGET = 0.5  # of the multiply-adds
TARGET = (0.48, 0.50)  # within 2 % from below
TOKENS, VOCABULARY = 32, 1000
TRIES = 8  # of a tool whose goal is not multiply-adds
OUTCOMES = ("cut", "broken", "refused", "crashed", "timeout")


class Skipped(Exception):  # noqa: N818 - no error of the network's
    """The network does not run by itself."""


# --- networks that are defined here -----------------------------------------------------------


def convolutions(inputs, outputs):
    layers = []
    for before in (inputs, outputs):
        layers += [nn.Conv2d(before, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Segmentation: skips are concatenated, transposed convolutions go up."""

    def __init__(self, widths=(32, 64, 128, 256), classes=5):
        super().__init__()
        pairs = list(zip((3, *widths), widths, strict=False))
        self.down = nn.ModuleList(convolutions(*pair) for pair in pairs)
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(low, high, 2, 2) for low, high in steps)
        self.merge = nn.ModuleList(convolutions(2 * high, high) for _, high in steps)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x):
        skips = []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = merge(torch.cat([skip, up(x)], 1))
        return self.head(x)


class Distillation(nn.Module):
    """A block that keeps a quarter of its channels at each step and goes on with the rest."""

    def __init__(self, width):
        super().__init__()
        self.kept = width // 4
        self.rest = width - self.kept
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(self.rest, width, 3, padding=1)
        self.third = nn.Conv2d(self.rest, self.kept, 3, padding=1)
        self.fuse = nn.Conv2d(3 * self.kept, width, 1)

    def forward(self, x):
        kept, rest = self.split(self.first(x))
        more, rest = self.split(self.second(rest))
        return x + self.fuse(torch.cat([kept, more, self.third(rest)], 1))

    def split(self, x):
        return torch.split(functional.leaky_relu(x, 0.05), (self.kept, self.rest), dim=1)


class SuperResolution(nn.Module):
    """Two times the side: channel splits, chunks that gate each other, and pixel shuffle."""

    def __init__(self, width=48, blocks=4, scale=2):
        super().__init__()
        self.scale = scale
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(Distillation(width) for _ in range(blocks)))
        self.gate = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.tail = nn.Conv2d(width, 3 * scale**2, 3, padding=1)

    def forward(self, x):
        features = self.head(x)
        value, gate = self.gate(self.body(features) + features).chunk(2, dim=1)
        details = functional.pixel_shuffle(self.tail(value * torch.sigmoid(gate)), self.scale)
        return details + functional.interpolate(x, scale_factor=self.scale, mode="bilinear")


class Dilated(nn.Module):
    def __init__(self, width, dilation):
        super().__init__()
        self.wide = nn.Conv1d(width, 2 * width, 3, padding=dilation, dilation=dilation)
        self.norm = nn.BatchNorm1d(2 * width)
        self.narrow = nn.Conv1d(width, width, 1)

    def forward(self, x):
        return x + self.narrow(functional.glu(self.norm(self.wide(x)), dim=1))


class Audio(nn.Module):
    """Sound as it is, to classes: strided convolutions, then gated and dilated ones."""

    def __init__(self, width=64, classes=35):
        super().__init__()
        layers, before = [], 1
        for after, kernel, stride in ((width // 2, 80, 16), (width, 3, 4)):
            layers += [nn.Conv1d(before, after, kernel, stride, bias=False)]
            layers += [nn.BatchNorm1d(after), nn.ReLU()]
            before = after
        self.stem = nn.Sequential(*layers)
        self.blocks = nn.Sequential(*(Dilated(width, 2**level) for level in range(4)))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean(2))


class Recurrent(nn.Module):
    """Text to classes: an LSTM of two layers in both directions, and a small head."""

    def __init__(self, width=128, classes=10):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True, bidirectional=True)
        self.hidden, self.head = nn.Linear(2 * width, width), nn.Linear(width, classes)

    def forward(self, ids):
        states, _ = self.lstm(self.tokens(ids))
        return self.head(functional.relu(self.hidden(states.mean(1))))


def defined_networks():
    """Yield each network's name, and how to make it and its batch."""
    image = partial(survivors.image, 64)
    ids = partial(torch.randint, VOCABULARY, (survivors.SAMPLES, TOKENS))
    sound = partial(torch.randn, survivors.SAMPLES, 1, 8000)
    kinds = {
        "u-net": (UNet, image),
        "super-resolution": (SuperResolution, image),
        "audio": (Audio, sound),
        "lstm": (Recurrent, ids),
    }

    def make(network, batch):
        return network(), batch()

    for name, (network, batch) in kinds.items():
        yield name, partial(make, network, batch)


# --- networks of others -----------------------------------------------------------------------


def zoo_networks():
    """Yield the networks of the data packs, with the weights they were trained to."""
    packs = common.data_packs()
    sides = {"lenet": (1, 28), "efficientnet_lite0": (3, 96), "mobilenetv2": (3, 96)}
    sides |= {"squeezenet11": (3, 96)}

    def make(name):
        if name == "minilm":
            return packs.minilm(), common.sentences(packs)[: survivors.SAMPLES]
        channels, side = sides.get(name, (3, 32))
        return packs.network(name), torch.randn(survivors.SAMPLES, channels, side, side)

    for name in (*packs.NETWORKS, "minilm"):
        yield name, partial(make, name)


def transformers_networks():
    library = importlib.import_module("transformers")
    small = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    classes = {"num_labels": 10, "vocab_size": VOCABULARY, "pad_token_id": 0}
    text = {**small, "intermediate_size": 512, **classes}
    vision = {**small, "intermediate_size": 512, "num_labels": 10, "image_size": 64}
    vision |= {"patch_size": 8}
    gpt = {"n_embd": 128, "n_layer": 4, "n_head": 4, **classes}
    gpt |= {"bos_token_id": 1, "eos_token_id": 2}
    distil = {"dim": 128, "n_layers": 4, "n_heads": 4, "hidden_dim": 512, **classes}
    t5 = {"d_model": 128, "d_kv": 32, "d_ff": 512, "num_layers": 4, "num_heads": 4, **classes}
    grouped = {**text, "intermediate_size": 344, "num_key_value_heads": 2}
    swin = {"image_size": 64, "patch_size": 2, "embed_dim": 32, "depths": [2, 2, 2]}
    swin |= {"num_heads": [2, 4, 8], "window_size": 4, "num_labels": 10}
    kinds = {
        "BertModel": ("BertConfig", text),
        "BertForSequenceClassification": ("BertConfig", text),
        "DistilBertForSequenceClassification": ("DistilBertConfig", distil),
        "RobertaForSequenceClassification": ("RobertaConfig", text),
        "GPT2LMHeadModel": ("GPT2Config", gpt),
        "GPT2ForSequenceClassification": ("GPT2Config", gpt),
        "T5EncoderModel": ("T5Config", t5),
        "LlamaForCausalLM": ("LlamaConfig", grouped),
        "LlamaForSequenceClassification": ("LlamaConfig", grouped),
        "Qwen2ForCausalLM": ("Qwen2Config", grouped),
        "ViTForImageClassification": ("ViTConfig", vision),
        "DeiTForImageClassification": ("DeiTConfig", vision),
        "SwinForImageClassification": ("SwinConfig", swin),
    }

    def make(name, config, settings):
        configured = getattr(library, config)(**settings)
        configured.use_cache = False
        model = getattr(library, name)(configured)
        if "image_size" in settings:
            return model, {"pixel_values": survivors.image(settings["image_size"])}
        ids = torch.randint(3, VOCABULARY, (survivors.SAMPLES, TOKENS))
        return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    for name, (config, settings) in kinds.items():
        yield name, partial(make, name, config, settings)


FAMILIES = {
    "torchvision": survivors.torchvision_networks,
    "timm": survivors.timm_networks,
    "transformers": transformers_networks,
    "zoo": zoo_networks,
    "defined": defined_networks,
}


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
    structure = forms.analyse(model, example, granularity)
    analysed = time.perf_counter()
    order = ALLOCATIONS["global"]
    trials = Trials(model, structure, None, order, "float32", None, None, silent)
    macs, size = cost.macs(structure), cost.parameters(structure)
    dense = Measurement("dense", removed=0.0, parameters=size, macs=macs, bytes=0)
    count = trials.units_for(criterion, [flexrel.MACs(BUDGET)], dense)
    trials.removal(criterion).plan(count)
    ended = time.perf_counter()
    return {"planning_s": ended - began, "analyse_s": analysed - began}


STAGES = ((forms, "analyse"), (pipeline, "calibrate"), (Trials, "choose"), (Trials, "measure"))


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
    except Exception as error:  # noqa: BLE001 - the call meets it again
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


# --- one process for each network and tool ----------------------------------------------------


def prepared(family, name):
    """Return a network, its batch and what is known of it before it is cut."""
    make = dict(FAMILIES[family]())[name]
    torch.manual_seed(0)
    try:
        model, batch = make()
        survivors.fresh(model)
        if family != "zoo":  # those are trained
            survivors.enliven(model, batch)
        survivors.plain(model, batch)
        survivors.fresh(model)
        dense = {"shape": output_shape(model, batch), "macs_dense": multiply_adds(model, batch)}
    except Exception as error:
        raise Skipped(survivors.reason(error)) from error
    return model, batch, dense | {"parameters_dense": parameters(model)}


def one(family, name, tool, limit):
    """Measure, and print what is known so far as a line of JSON whenever there is more."""
    row = {"family": family, "network": name, "tool": tool, "outcome": "crashed"}
    row |= {"limit_s": limit}

    def report(news, seconds=None):
        row.update(news)
        print(json.dumps(row), flush=True)
        if seconds:  # the process ends when they are over, whatever it does
            faulthandler.dump_traceback_later(seconds, exit=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, on loading and on untrained networks
        try:
            model, batch, dense = prepared(family, name)
        except Skipped as error:
            report({"outcome": "skipped", "reason": f"does not run by itself: {error}"})
            return
        report({**dense, "stage": "warming up", "requested": int(BUDGET * dense["macs_dense"])})
        warm_up(tool)
        found = TOOLS[tool](model, batch, dense, report, limit)
        faulthandler.cancel_dump_traceback_later()
    row.pop("stage", None)
    report(found)


def in_process(family, name, tool, limit):
    """Return the row of one network and tool, whatever becomes of its process."""
    command = [sys.executable, __file__, "--timeout", str(limit), "--one", family, name, tool]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=4 * limit + 600, check=False
        )
        lines, code, errors = done.stdout, done.returncode, done.stderr
    except subprocess.TimeoutExpired as error:
        lines, code, errors = (error.stdout or b"").decode(), None, ""
    rows = [json.loads(line) for line in lines.splitlines() if line.startswith('{"family"')]
    row = rows[-1] if rows else {"family": family, "network": name, "tool": tool}
    stage = row.pop("stage", None)
    if (stage is None and rows and code == 0) or row.get("outcome") in {"cut", "refused"}:
        return row  # an earlier try's result stands where a later one took too long
    if code is None or "Timeout (" in errors:
        return row | {"outcome": "timeout", "reason": f"over {limit:g} s in {stage or 'all'}"}
    last = (errors.strip().splitlines() or ["without a word"])[-1]
    ended = f"the process ended with status {code} in {stage or 'preparation'}: {last}"
    return row | {"outcome": "crashed", "reason": ended[:300]}


def chosen(families, only, tools):
    for family in families:
        for name, _ in FAMILIES[family]():
            if not only or any(fnmatch.fnmatch(name, pattern) for pattern in only):
                yield from ((family, name, tool) for tool in tools)


def run(families, only, tools, *, limit, jobs, missing):
    """Measure network after network; keep those of an earlier run that are not measured now."""
    try:
        rows = {key(row): row for row in common.load("survival")["rows"]}
    except FileNotFoundError:
        rows = {}
    packages = ("torch", "torchvision", "timm", "transformers", "torch-pruning", "torch-kirigami")
    content = {"versions": {name: version(name) for name in packages}}
    todo = [k for k in chosen(families, only, tools) if not (missing and k in rows)]
    print(f"{len(todo)} to measure")
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(in_process, *k, limit) for k in todo]
        try:
            for count, future in enumerate(as_completed(futures), 1):
                row = future.result()
                rows[key(row)] = row
                common.save("survival", content | {"rows": list(rows.values())})
                print(f"{count}/{len(todo)}", *key(row), said(row), sep="  ", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


def key(row):
    return row["family"], row["network"], row["tool"]


def said(row):
    if row["outcome"] == "cut":
        where = "at target" if at_target(row) else "off target"
        return f"{where} {ratios(row)} in {row['call_s']:.1f} s"
    return f"{row['outcome']}: {row.get('reason', '')[:150]}"


# --- tables -----------------------------------------------------------------------------------


def ratios(row):
    """Return the share of multiply-adds left: by FlexRel's own count, and by the ruler."""
    own = f"{row['own'] / row['own_dense']:.3f} / " if "own" in row else ""
    return f"{own}{row['ratio']:.3f}"


def middle(rows, name, form="{:.2f}", of=statistics.median):
    values = [row[name] for row in rows if row.get(name) is not None]
    return form.format(of(values)) if values else ""


def summary(family, tool, rows):
    counts = [sum(row["outcome"] == outcome for row in rows) for outcome in OUTCOMES[1:]]
    target = [row for row in rows if at_target(row)]
    share = f"{len(target)} ({100 * len(target) / len(rows):.0f} %)"
    seconds = [middle(target, "call_s"), middle(target, "call_s", of=max)]
    plans = [middle(rows, "planning_s"), middle(rows, "planning_s", of=max)]
    ruler = middle(target, "ratio", "{:.3f}")
    off_target = sum(row["outcome"] == "cut" for row in rows) - len(target)
    ruled = sum(TARGET[0] <= row["ratio"] <= TARGET[1] for row in target)
    cells = [len(rows), share, ruled, off_target, *counts, ruler, *seconds, *plans]
    return [f"{family}, {tool}", *cells]


def summaries(rows):
    header = ["family and tool", "networks", "cut and verified at target", "by the ruler too"]
    header += ["cut, off target", *OUTCOMES[1:], "ruler, median", "call, s: median", "max"]
    header += ["planning, s: median", "max"]
    lines = []
    for family in (*FAMILIES, "all"):
        for tool in TOOLS:
            found = [r for r in rows if family in {r["family"], "all"} and r["tool"] == tool]
            if found:
                lines.append(summary(family, tool, found))
    return common.table(header, lines)


def times(rows):
    """Return where the time of FlexRel's calls went."""
    rows = [row for row in rows if row["tool"] == "flexrel" and row["outcome"] == "cut"]
    header = ["FlexRel's cuts", "networks", "whole call, s", "planning, s"]
    header += [f"{name}, s" for _, name in STAGES]
    lines = []
    for family in FAMILIES:
        found = [row for row in rows if row["family"] == family]
        parts = [row["stages_s"] for row in found]
        cells = [middle(parts, name) for _, name in STAGES]
        if found:
            call = [middle(found, "call_s"), middle(found, "planning_s")]
            lines.append([family, len(found), *call, *cells])
    return common.table(header, lines) if lines else ""


def plainly(text):
    """Return a message as a table cell takes it."""
    return "`" + text.replace("`", "'").replace("|", "\\|") + "`" if text else ""


def without_target(rows):
    """Return every network that FlexRel does not cut at the target, and why."""
    header = ["network", "family", "outcome", "own count / ruler", "planning, s", "reason"]
    lines = []
    for row in rows:
        if row["tool"] == "flexrel" and not at_target(row):
            outcome = "off target" if row["outcome"] == "cut" else row["outcome"]
            left = ratios(row) if row["outcome"] == "cut" else ""
            seconds = middle([row], "planning_s")
            why = plainly(row.get("reason", ""))
            lines.append([row["network"], row["family"], outcome, left, seconds, why])
    return common.table(header, lines) if lines else ""


def disagreeing(rows):
    """Return the cuts at the target by FlexRel's own count that the ruler sees elsewhere."""
    header = ["at target by FlexRel's count of layers only", "family", "own count / ruler"]
    header += ["own count of the dense network over the ruler's"]
    lines = []
    for row in rows:
        if "own" in row and at_target(row) and not TARGET[0] <= row["ratio"] <= TARGET[1]:
            seen = f"{row['own_dense'] / row['macs_dense']:.3f}"
            lines.append([row["network"], row["family"], ratios(row), seen])
    return common.table(header, lines) if lines else ""


def kind_of(reason):
    """Return a message with its names and numbers left out, so that alike ones are one."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"|\b[\w]+(\.\w+)+\b", "…", reason)
    return re.sub(r"\d+", "N", bare)[:110]


def failures(rows, most=5):
    """Return what the other tools fail at most often, with a network as an example."""
    lines = []
    for tool in list(TOOLS)[1:]:
        kinds = {}
        for row in rows:
            if row["tool"] == tool and row["outcome"] in OUTCOMES[1:]:
                kind = kind_of(row.get("reason", ""))
                kinds.setdefault((row["outcome"], kind), []).append(row["network"])
        ranked = sorted(kinds.items(), key=lambda item: -len(item[1]))[:most]
        for (outcome, kind), names in ranked:
            lines.append([tool, len(names), outcome, plainly(kind), names[0]])
    header = ["most frequent failures", "networks", "outcome", "message", "as on"]
    return common.table(header, lines) if lines else ""


def show():
    content = common.load("survival")
    rows = sorted(content["rows"], key=lambda row: list(FAMILIES).index(row["family"]))
    skipped = [row for row in rows if row["outcome"] == "skipped" and row["tool"] == "flexrel"]
    rows = [row for row in rows if row["outcome"] != "skipped"]
    lines = [f"- {row['network']}: skipped: {row['reason']}" for row in skipped]
    lines += [f"- timm's {n}: skipped: {why}" for n, why in survivors.TIMM_SKIPPED.items()]
    missed = without_target(rows)
    if missed:
        title = "Every network that FlexRel does not cut at the target"
        missed = f"<details><summary>{title}</summary>\n\n{missed}\n\n</details>"
    text = [summaries(rows), times(rows), disagreeing(rows), failures(rows), missed]
    text.append("\n".join(lines))
    common.replace_section("survival", "\n\n".join(part for part in text if part))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=tuple(FAMILIES), default=tuple(FAMILIES))
    parser.add_argument("--only", nargs="+", help="networks, by name or pattern, as in resnet*")
    parser.add_argument("--tools", nargs="+", choices=tuple(TOOLS), default=tuple(TOOLS))
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one call")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--missing", action="store_true", help="only what is not there yet")
    parser.add_argument("--show", action="store_true", help="the tables, from the JSON")
    parser.add_argument("--one", nargs=3, help="FAMILY NETWORK TOOL: in this process, to stdout")
    args = parser.parse_args()
    common.declare_operators()
    if args.one:
        one(*args.one, args.timeout)
        return
    if not args.show:
        limits = {"limit": args.timeout, "jobs": args.jobs, "missing": args.missing}
        run(args.families, args.only, args.tools, **limits)
    show()


if __name__ == "__main__":
    main()
