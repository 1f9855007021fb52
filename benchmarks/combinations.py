"""Random budgets and targets together: each is met, or refused with what is possible instead.

    python benchmarks/combinations.py                 200 of them (about an hour)
    python benchmarks/combinations.py --first 30 --count 10
    python benchmarks/combinations.py --quick         six of them; writes no page
    python benchmarks/combinations.py --show          the page, from the JSON

Six small networks are trained on handwritten digits for seconds, which come with scikit-learn. Of
each case network, granularity, values, up to four budgets and two targets are drawn. What comes
back is saved, loaded into a network of full width and measured here: length of the file, torch's
own count of multiply-adds, parameters counted, activations of its exported program, accuracy and
loss. What is refused is asked for again with the number that the refusal names, until nothing is.
"""

import copy
import importlib
import json
import math
import random
import re
import tempfile
import time
from collections import Counter
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import common
from flexrel import Accuracy, FlexrelError, PruneOptions, dry_run, export, load, prune
from flexrel.cli import demo
from flexrel.io.asked import asked_rows

CASES, QUICK = 200, (0, 1, 2, 3, 4, 5)
EPOCHS, RATE, BATCH = 8, 0.005, 50  # of training
CALIBRATED = 256  # images
KINDS = ("bytes", "parameters", "macs", "sparsity", "memory", "link", "latency")
SHARES = (1, 3, 3, 3, 3, 3, 1)  # how often each of them
COUNTS, HOW_OFTEN = (0, 1, 2, 3, 4), (15, 35, 30, 12, 8)  # budgets together
GRANULARITIES = ("channel", "element", "2:4", "1:4", "block:4x4", "depth", "auto")
OF_THESE = (30, 22, 8, 5, 8, 7, 20)
VALUES = ("float32", "int8", "auto", "float16", "int4", "bfloat16")
OF_VALUES = (40, 20, 20, 8, 6, 6)
RATES = ("1 Mbit/s", "250 kbit/s", "125 kB/s")
REFUSALS = 8  # of one case, after each of which the number that it names is asked for
LONGEST = 1200  # characters of a refusal
NOISE = 1.1  # times the latency that a refusal names: machines are busier at one time than another
AGAIN = 1.25  # times the latency promised that it may take when it is timed here, beside others
TIMED = 30  # calls of each network, in turn
CLOSE = 1e-6  # of metrics, computed here in another order
_REFUSED = re.compile(
    r"asked for (at least|at most) (\S+) (.+?), but the closest possible is (\S+) \3\."
)
_WANTED = re.compile(
    r"asked for (\S+) at (most|least) (\S+), but the network as it came has (\S+);"
)


# --- networks -------------------------------------------------------------------------------


class Residual(nn.Module):
    """A residual block, of more channels and half the side if asked."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.passed = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x):
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.passed(x) + self.norm2(self.conv2(y)))


class Inverted(nn.Module):
    """An inverted residual: expanded, convolved channel by channel, projected."""

    def __init__(self, channels, inner):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6()),
            *(nn.Conv2d(inner, inner, 3, 1, 1, groups=inner, bias=False), nn.BatchNorm2d(inner)),
            *(nn.ReLU6(), nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels)),
        )

    def forward(self, x):
        return x + self.body(x)


class Encoder(nn.Module):
    """A transformer's layer, normalised before."""

    def __init__(self, width, heads, inner):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.inner, self.outer = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x):
        y = self.norm1(x)
        parts = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in self.inputs)
        y = functional.scaled_dot_product_attention(*parts)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.outer(functional.gelu(self.inner(self.norm2(x))))

    @property
    def inputs(self):
        return self.query, self.key, self.value


class Rows(nn.Module):
    """A transformer that reads an image row by row."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.place = nn.Parameter(0.1 * torch.randn(8, 32))
        self.layers = nn.Sequential(Encoder(32, 4, 64), Encoder(32, 4, 64))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x):
        x = self.layers(self.embed(x.squeeze(1)) + self.place)
        return self.head(self.norm(x).mean(1))


def _stem(width):
    return nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()


def _head(width):
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)


def _grouped():
    return nn.Sequential(
        *_stem(32),
        *(nn.Conv2d(32, 32, 3, 1, 1, groups=4, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, 2, 1, groups=8), nn.ReLU(), nn.Dropout(0.2)),
        *_head(64),
    )


def _mlp():
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2)),
        *(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def _inverted():
    return nn.Sequential(*_stem(16), *(Inverted(16, 64) for _ in range(3)), *_head(16))


def _residual():
    blocks = (Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 32, 1))
    return nn.Sequential(*_stem(16), *blocks, *_head(32))


NETWORKS = {
    "digits": demo.DigitsNetwork,
    "residual": _residual,
    "transformer": Rows,
    "mlp": _mlp,
    "inverted": _inverted,
    "grouped": _grouped,
}


@cache
def data():
    """Return the digits."""
    return demo.digits()


@cache
def trained(name):
    """Return a network trained for seconds."""
    torch.manual_seed(0)
    return fitted(NETWORKS[name](), data().train_x, data().train_y, BATCH)


def fitted(model, images, labels, batch, generator=None):
    """Return the network, trained in place on samples that the generator puts in order."""
    model.train()
    steps = EPOCHS * math.ceil(len(images) / batch)
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images), generator=generator).split(batch):
            loss = functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


# --- what is measured here ------------------------------------------------------------------


def metrics_of(model, batches=None):
    """Return accuracy and loss on the evaluation images."""
    with torch.no_grad():
        pairs = [(model(x), y) for x, y in batches or data().evaluation]
    scores, labels = (torch.cat(side) for side in zip(*pairs, strict=True))
    right = (scores.argmax(1) == labels).sum()
    return {
        "accuracy": float(right) / len(labels),
        "loss": float(functional.cross_entropy(scores.double(), labels)),
    }


def macs_of(model):
    """Return the multiply-adds of one image, by torch's own counter."""
    plain = sdpa_kernel(SDPBackend.MATH)  # the products of fused attention are not counted
    with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
        model(data().train_x[:1])
    return counter.get_total_flops() // 2


def memory_of(model):
    """Return the bytes of tensors that one image's program holds at once, weights left out."""
    program = torch.export.export(model, (data().train_x[:1].clone(),), strict=False)
    nodes = [node for node in program.graph.nodes if node.op in ("placeholder", "call_function")]
    weights = {
        *program.graph_signature.inputs_to_parameters,
        *program.graph_signature.inputs_to_buffers,
    }
    sizes, alive = {}, {}
    for at, node in enumerate(nodes):
        for value in _tensors(node.meta["val"]):
            key = StorageWeakRef(value.untyped_storage())
            sizes.setdefault(key, 0 if node.name in weights else value.untyped_storage().nbytes())
            reads = [nodes.index(user) if user in nodes else len(nodes) for user in node.users]
            first, last = alive.get(key, (at, at))
            alive[key] = (first, max(last, len(nodes) if node.op == "placeholder" else at, *reads))
    return max(
        sum(sizes[key] for key, (first, last) in alive.items() if first <= at <= last)
        for at in range(len(nodes))
    )


def _tensors(value):
    return [value] if isinstance(value, torch.Tensor) else list(value or ())


def share_of_time(dense, pruned, runtime, batch):
    """Return the share of the dense network's time that another takes, each at its best."""
    images = data().train_x[:batch]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        works = [
            _work(net, images, runtime, f"{folder}/{at}") for at, net in enumerate((dense, pruned))
        ]
        times = [[common.timed(work) for work in works] for _ in range(TIMED)]
    dense_s, pruned_s = map(min, zip(*times, strict=True))
    return pruned_s / dense_s


def _work(network, images, runtime, path):
    if runtime == "torch":
        export(network, images, f"{path}.pt2")
        return partial(torch.export.load(f"{path}.pt2").module(), images)
    library = importlib.import_module("onnxruntime")
    export(network, images, f"{path}.onnx")
    options = library.SessionOptions()
    options.intra_op_num_threads = 1
    session = library.InferenceSession(f"{path}.onnx", options)
    return partial(session.run, None, {session.get_inputs()[0].name: images.numpy()})


# --- what is asked --------------------------------------------------------------------------


@cache
def dense_amounts(name):
    """Return what a network takes, by the name of a budget's resource; latency in milliseconds."""
    model = trained(name)
    images = data().train_x[:1]
    with torch.no_grad():
        model(images)
        slow = min(common.timed(partial(model, images)) for _ in range(TIMED))
    size = dry_run(model, calibration=data().calibration[:1]).amounts
    return {
        "bytes": next(one.dense for one in size if one.resource == "bytes"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "macs": macs_of(model),
        "memory": memory_of(model),
        "latency": 1000 * slow,
    }


def drawn(number):
    """Return the case of that number: what is asked of which network."""
    draw = random.Random(number)  # noqa: S311 - the same cases each time
    name = draw.choice(list(NETWORKS))
    granularity = draw.choices(GRANULARITIES, OF_THESE)[0]
    if granularity == "depth" and name in ("mlp", "grouped"):  # have no blocks
        granularity = "channel"
    count = draw.choices(COUNTS, HOW_OFTEN)[0]
    kinds = draw.choices(KINDS, SHARES, k=3 * count)
    kinds = list(dict.fromkeys(kinds))[:count]
    if len(kinds) == 3 and draw.random() < 0.3:
        kinds[-1] = kinds[0]  # twice the same, one of them tighter
    kinds = [kind for at, kind in enumerate(kinds) if kind != "latency" or kind not in kinds[:at]]
    targets = []
    if not kinds or draw.random() < 0.45:
        targets = _targets(draw, name)
    by_data = all(text.startswith("accuracy") for text in targets) and draw.random() < 0.5
    rate = draw.choice(RATES)
    return {
        "case": number,
        "network": name,
        "granularity": granularity,
        "values": draw.choices(VALUES, OF_VALUES)[0],
        "budgets": [_budget(draw, name, kind, rate) for kind in kinds],
        "targets": targets,
        "minimise": draw.choice(("bytes", "bytes", "macs", "parameters")) if targets else "bytes",
        "evaluate": "data" if by_data else "function",
    }


def _share(draw):
    low, high = draw.choices(((0.3, 0.95), (0.05, 0.3), (0.0005, 0.05)), (60, 28, 12))[0]
    return math.exp(draw.uniform(math.log(low), math.log(high)))


def _budget(draw, name, kind, rate):
    share = _share(draw)
    if kind == "sparsity":
        return f"sparsity={100 * (1 - share):.3g}%"
    after = {"link": f"@{rate}", "latency": f"@{draw.choice(('torch', 'onnxruntime'))}"}.get(
        kind, ""
    )
    if kind == "latency":
        after += f",batch={draw.choice((1, 8))}"
        share = max(share, 0.2)
    if draw.random() < 0.5:
        return f"{kind}={100 * share:.4g}%{after}"
    share *= draw.choice((1, 1, 1, 1.5))  # some ask for no less than there is
    if kind == "link":
        bits = share * 8 * dense_amounts(name)["bytes"]
        return f"link={1000 * bits / _bits(rate):.4g}ms{after}"
    amount = share * dense_amounts(name)[kind]
    if kind == "latency":
        return f"latency={1000 * amount:.4g}us{after}"
    units = {"bytes": ("", "kB", "KiB"), "memory": ("", "kB", "KiB")}.get(kind, ("", "k", "M"))
    unit = draw.choice(units)
    factor = {"": 1, "KiB": 1024, "M": 10**6}.get(unit, 1000)
    if amount < factor / 10:
        unit, factor = "", 1
    return f"{kind}={max(amount, 1) / factor:.{0 if factor == 1 else 3}f}{unit}"


def _bits(rate):
    number, unit = rate.split()
    return float(number) * {"Mbit/s": 10**6, "kbit/s": 1000, "kB/s": 8000}[unit]


def _targets(draw, name):
    dense = metrics_of(trained(name))
    accuracy, loss = dense["accuracy"], dense["loss"]
    known = (
        lambda: f"accuracy-drop={draw.choice((0.3, 1, 2, 5, 10))}%",
        lambda: f"accuracy-{draw.choice((0.5, 1, 3, 8))}%",
        lambda: (
            f"accuracy>={100 * (accuracy - draw.choice((-0.02, -0.001, 0.005, 0.02, 0.1))):.2f}%"
        ),
        lambda: f"loss<={loss * draw.choice((0.8, 1.2, 2, 4)):.3g}",
        lambda: f"loss+{draw.choice((0.02, 0.1, 0.5))}",
        lambda: f"loss+{draw.choice((5, 30, 100))}%",
    )
    return [one() for one in draw.sample(known, draw.choice((1, 1, 1, 2)))]


# --- asking, and asking again ---------------------------------------------------------------


def call(case, times):
    """Return what `prune` returns for a case."""
    batches = data().evaluation
    told = case["evaluate"] == "data"
    return prune(
        trained(case["network"]),
        calibration=data().calibration,
        evaluate=(Accuracy(batches) if told else metrics_of) if case["targets"] else None,
        target=case["targets"],
        budgets=[_with_cache(text, times) for text in case["budgets"]],
        granularity=case["granularity"],
        values=case["values"],
        options=PruneOptions(effort="fast", outputs="classes", minimise=case["minimise"]),
    )


def _with_cache(text, times):
    return f"{text},cache={times}" if text.startswith("latency") else text


def relaxed(case, error):
    """Return the case with what the refusal names in the place of what was asked; None: nothing."""
    told = str(error)
    refusals = _REFUSED.findall(told)
    for least, _, what, closest in refusals:
        name = what.rpartition(" of ")[2]
        case = _with_limit(case, name, closest.replace(",", ""), least, what)
    if refusals:
        return case
    if found := _WANTED.search(told):
        metric, bound, _, dense = found.groups()
        return _with_limit(case, metric, dense, f"at {bound}", metric)
    for granularity in ("channel", "element"):
        if "granularity" in told and case["granularity"] in ("auto", "depth"):
            return {**case, "granularity": granularity}
    return None


def _with_limit(case, name, number, bound, what):
    """Return the case with another limit on a resource or metric."""
    kind = name.lower()
    if kind not in KINDS:
        new = f"{name}{'>=' if bound == 'at least' else '<='}{number}"
        others = [text for text in case["targets"] if not text.startswith(name)]
        return {**case, "targets": [*others, new]}
    unit = what.partition(" of ")[0] if " of " in what else ""
    unit = {"bytes": "B"}.get(unit, unit)
    if kind == "latency":
        number = f"{NOISE * float(number):.5g}"

    def told(text):
        asked, _, rest = text.partition("=")
        if asked != kind:
            return text
        return f"{asked}={number}{unit}" + "".join(rest.partition("@")[1:])

    return {**case, "budgets": [told(text) for text in case["budgets"]]}


def dry(case, times):
    """Return what the dry run says, and how long it took."""
    began = time.monotonic()
    try:
        found = dry_run(
            trained(case["network"]),
            calibration=data().calibration,
            budgets=[_with_cache(text, times) for text in case["budgets"]],
            granularity=case["granularity"],
            values=case["values"],
            options=PruneOptions(effort="fast", outputs="classes"),
        )
    except FlexrelError as error:
        return {"refused": str(error), "seconds": time.monotonic() - began}
    closest = {one.resource: one.closest for one in found.amounts}
    refused = [one.resource for one in found.amounts if one.refused]
    return {"impossible": refused, "closest": closest, "seconds": time.monotonic() - began}


def measure(number, times, folder):
    """Return the block of a case: what came of it, and all that is wrong with that."""
    case = asked = drawn(number)
    block = {**case, "dry": dry(case, times), "refusals": [], "faults": []}
    faults, began = block["faults"], time.monotonic()
    for _ in range(REFUSALS):
        started = time.monotonic()
        try:
            result = call(asked, times)
            break
        except FlexrelError as error:
            told = str(error)
            named = [what.rpartition(" of ")[2] for _, _, what, _ in _REFUSED.findall(told)]
            kind = named or [type(error).__name__]
            spent = time.monotonic() - started
            block["refusals"].append({"of": kind, "told": told, "seconds": spent})
            if "\n" in told or len(told) > LONGEST:
                faults.append(f"no line of words: {told}")
            following = relaxed(asked, error)
            if following is None or following == asked:
                faults.append(f"refused without an alternative: {told}")
                return {**block, "seconds": time.monotonic() - began}
            asked = following
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            faults.append(f"{type(error).__name__}: {error}")
            return {**block, "seconds": time.monotonic() - began}
    else:
        faults.append(f"refused {REFUSALS} times")
        return {**block, "seconds": time.monotonic() - began}
    block["seconds"] = time.monotonic() - began
    place = folder / str(number)
    block |= {"asked": {key: asked[key] for key in ("budgets", "targets", "granularity")}}
    block["slack"] = checked(asked, result, place, faults)
    faults += contradicted(block)
    return block | {"removed": result.achieved.removed, "with": common.versions("torch")}


def contradicted(block):
    """Return where the dry run and the call itself differ."""
    refused = [name for one in block["refusals"] for name in one["of"] if name.lower() in KINDS]
    told = block["dry"].get("impossible", refused)
    missed = [name for name in told if name not in refused]
    surprises = [name for name in refused if name not in told]
    return [
        *(f"the dry run says that {name} is impossible, and it was not" for name in missed),
        *(f"the dry run says that {name} is possible, and it was refused" for name in surprises),
    ]


# --- what came back -------------------------------------------------------------------------


def checked(case, result, folder, faults):
    """Return how much there is to spare of each limit, as a share of it; faults are added."""
    result.save(folder)
    record = json.loads((folder / "result.json").read_text())
    dense = trained(case["network"])
    file = folder / "model.flexrel"
    network = result.model if result.form == "exported" else load(file, into=copy.deepcopy(dense))
    own = {"bytes": file.stat().st_size, "macs": macs_of(network)}
    zeros = record["granularity"] not in ("channel", "depth") or record["then"]
    own["parameters"] = sum(
        int(p.count_nonzero()) if zeros else p.numel() for p in network.parameters()
    )
    own["sparsity"] = record["achieved"]["sparsity"]  # of what can be pruned: tests count it
    own["memory"] = memory_of(network)
    slack = {}
    for text in case["budgets"]:
        kind, _, rest = text.partition("=")
        amount, _, after = rest.partition("@")
        key = {"link": "link_s", "memory": "memory_bytes", "latency": "latency_ms"}.get(kind, kind)
        rate = after.partition(",")[0]
        if kind == "latency":
            own["latency"] = _time(record, dense, network, after, faults)
        if kind == "link":
            own["link"] = 8 * own["bytes"] / _bits(rate)
        limit = _limit(case, kind, amount, rate, record)
        sign = -1 if kind == "sparsity" else 1
        over = sign * (own[kind] - limit)
        if over > CLOSE * limit:
            faults.append(f"{text}: takes {own[kind]}, {limit} at most")
        said = record["achieved"][key]
        exact = kind != "parameters" or not zeros  # zeros by chance are not counted out
        if (exact and abs(said - own[kind]) > CLOSE * said) or said < (1 - CLOSE) * own[kind]:
            faults.append(f"{text}: reported are {said}, and it takes {own[kind]}")
        slack[text] = -over / limit if limit else 0.0
        _told(record, key, said, limit, sign, faults)
    _done(case, record, network, slack, faults)
    return slack


def _limit(case, kind, amount, rate, record):
    """Return the limit of a text, counted here."""
    if kind == "sparsity":
        return float(amount.rstrip("%")) / (100 if amount.endswith("%") else 1)
    if not amount.endswith("%"):
        number, unit = re.fullmatch(r"([0-9.]+)(\D*)", amount).groups()
        factor = {"k": 1e3, "M": 1e6, "kB": 1e3, "KiB": 1024, "ms": 1e-3, "us": 1e-6}.get(unit, 1)
        return float(number) * factor * (1000 if kind == "latency" else 1)
    share = float(amount[:-1]) / 100
    if kind in ("bytes", "link"):
        whole = record["achieved"]["bytes_dense"]
        return share * (whole if kind == "bytes" else 8 * whole / _bits(rate))
    if kind == "latency":
        return share * record["achieved"]["latency_dense_ms"]
    return share * dense_amounts(case["network"])[kind]


def _time(record, dense, network, after, faults):
    runtime, _, batch = after.partition(",batch=")
    said = record["timing"]["milliseconds"]
    expected = said / record["timing"]["dense"]
    again = share_of_time(dense, network, runtime, int(batch))
    if again > AGAIN * expected:
        faults.append(f"latency: {expected:.0%} of the dense network's promised, {again:.0%} here")
    return said


def _told(record, key, said, limit, sign, faults):
    """Add a fault if the row of the report that has the limit says anything else of it."""
    rows = [row for row in asked_rows(record) if row.asked]
    names = {"macs": "multiply-adds", "link_s": "over the link", "memory_bytes": "activations"}
    names |= {"bytes": "bytes of the file", "latency_ms": "latency", "sparsity": "ed"}
    row = [
        one
        for one in rows
        if one.name.endswith(names.get(key, key))
        or (key == "latency_ms" and one.name.startswith("latency"))
    ]
    if len(row) != 1:
        faults.append(f"{key}: {len(row)} rows of the report have it")
        return
    spare = float(re.match(r"[\d.,e-]+", row[0].slack)[0].replace(",", ""))
    true = (100 if key == "sparsity" else 1) * sign * (record["requested"][key] - said)
    rough = max(0.0051 if key == "sparsity" else 0.51 * (limit > 1000), 6e-4 * abs(true))
    if abs(spare - true) > rough or row[0].verdict != "met":
        faults.append(f"{key}: {row[0].slack!r}, {row[0].verdict}, where {true} is to spare")


def _done(case, record, network, slack, faults):
    """Check accuracy and loss on the images that were searched with."""
    batches, promise = data().evaluation, record["promise"]
    if promise and promise["aside"]:
        batches = batches[::2]
    if not case["targets"]:
        return
    own, dense = (metrics_of(one, batches) for one in (network, trained(case["network"])))
    names = ("accuracy",) if case["evaluate"] == "data" else ("accuracy", "loss")
    for name in names:
        said = record["achieved"]["metrics"][name]
        if abs(said - own[name]) > CLOSE * max(1, own[name]):
            faults.append(f"{name}: reported is {said}, and it is {own[name]}")
    for text in case["targets"]:
        metric, bound = _bound(text, dense)
        sign = 1 if metric == "loss" else -1
        if sign * (own[metric] - bound) > CLOSE * abs(bound):
            faults.append(f"{text}: {metric} is {own[metric]}, the limit {bound}")
        slack[text] = sign * (bound - own[metric])
    if len(record["targets"]) != len(case["targets"]):
        faults.append(f"targets in the record: {record['targets']}")


def _bound(text, dense):
    """Return the metric of a target, and the worst that it may come to."""
    metric, operator, number, percent = re.fullmatch(
        r"(accuracy-drop|accuracy|loss)(=|>=|<=|\+|-)([\d.e-]+)(%?)", text
    ).groups()
    number = float(number)
    if metric == "accuracy-drop":
        return "accuracy", dense["accuracy"] - number / 100
    if operator in (">=", "<="):
        return metric, number / (100 if percent else 1)
    change = number / 100 * dense[metric] if percent else number
    return metric, dense[metric] + (change if operator == "+" else -change)


def blocks(args):
    with tempfile.TemporaryDirectory() as folder:
        first = args.first
        numbers = QUICK if args.quick else range(first, first + args.count)
        for number in numbers:
            block = measure(number, f"{folder}/times", Path(folder))
            print(number, len(block["refusals"]), block["faults"], f"{block['seconds']:.0f} s")
            yield block


# --- page -----------------------------------------------------------------------------------


def page(found):
    """Yield the page's parts: how many were met or refused, what there is to spare, all faults."""
    if not found:
        return
    yield "# Budgets and targets together"
    yield (
        f"Made by `python benchmarks/combinations.py`: {len(found)} random requests, of up to four "
        "budgets and two targets together, on six small networks trained on handwritten digits, "
        "with effort fast. What comes back is measured anew: the file's length, multiply-adds "
        "by torch's counter, parameters, activations of the exported program, accuracy and loss "
        "of the network loaded from the file. What is refused is asked for again with the number "
        "that the refusal names. Other programs ran on the machine meanwhile."
    )
    yield common.table(("granularity", *_OUTCOMES, "faults"), list(_outcomes(found)))
    yield _in_words(found)
    yield "How much is left of the tightest budget, of requests without a target, in percent:"
    yield common.table(("granularity", "requests", "median", "90 %", "most"), list(_room(found)))
    faults = [f"case {one['case']}: {fault}" for one in found for fault in one["faults"]]
    yield common.listed(faults)
    yield common.measured_with(found[-1]["with"])


_OUTCOMES = ("requests", "met", "refused, then met", "after two or more", "not met")


def _outcomes(found):
    names = [*dict.fromkeys(one["granularity"] for one in found)]
    for name in (*sorted(names), "all"):
        own = [one for one in found if name in (one["granularity"], "all")]
        after = Counter(
            "not met" if "slack" not in one else min(len(one["refusals"]), 2) for one in own
        )
        faults = sum(bool(one["faults"]) for one in own)
        yield [name, len(own), *(after[key] for key in (0, 1, 2, "not met")), faults]


def _in_words(found):
    refusals = [refusal for one in found for refusal in one["refusals"]]
    budgets = [r["seconds"] for r in refusals if set(map(str.lower, r["of"])) & {*KINDS[:-1]}]
    dry = [one["dry"]["seconds"] for one in found if "latency" not in str(one["budgets"])]
    timed = [one["dry"]["seconds"] for one in found if "latency" in str(one["budgets"])]
    return (
        f"A budget that can't be met is refused after {_seconds(budgets)}; a dry run takes "
        f"{_seconds(dry)}, with a budget on latency, for which layers are timed, "
        f"{_seconds(timed)}. More than one refusal is for a target, which is looked at once the "
        "budgets are possible, or for two targets, of which one is told at a time."
    )


def _seconds(times):
    times = sorted(times)
    if not times:  # of few requests
        return "a time that none here tells"
    return f"{times[len(times) // 2]:.1f} s in the median, {times[-1]:.1f} s at most"


def _room(found):
    free = [one for one in found if "slack" in one and not one["targets"] and one["slack"]]
    for name in sorted({one["asked"]["granularity"] for one in free}):
        own = sorted(
            100 * min(one["slack"].values()) for one in free if one["asked"]["granularity"] == name
        )
        at = (len(own) // 2, min(len(own) * 9 // 10, len(own) - 1), -1)
        yield [name, len(own), *(f"{abs(max(own[place], 0)):.2f}" for place in at)]


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--count", type=int, default=CASES, help="how many")
    args = parser.parse_args()
    common.run(args, "combinations", blocks(args), ("case",), page)


if __name__ == "__main__":
    main()
