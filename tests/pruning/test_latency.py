"""A network is pruned to a latency: what is returned was measured to keep to it."""

import importlib.util
import json
import pickle
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

import flexrel
from flexrel import BudgetError, Latency, Magnitude, PruneOptions, UsageError
from flexrel.cli.show import latency_line
from flexrel.core.latency import Timing
from flexrel.pruning import clock

DATA = [torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 32, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 9, 10),
    )


PLACES = {(1, 1): 64, (2, 2): 9, (): 1}  # of a layer's output, by its stride


@dataclass
class Runtime:
    """A runtime that pads widths to a step; layers of a network overlap, and it starts slowly."""

    step: int = 1
    start: float = 0.2  # milliseconds
    joined: float = 1.0  # how long layers take in a network, over how long each takes alone
    load: float = 1.0  # how busy the machine is at first; later it is not
    measured: int = 0
    dense: nn.Module = field(default_factory=network)

    def layer(self, outputs, inputs, places):
        outputs, inputs = (-(-width // self.step) * self.step for width in (outputs, inputs))
        return outputs * inputs * places * 1e-5

    def point(self, point):
        """Return what a layer takes alone."""
        return self.layer(point.outputs, point.inputs, PLACES[point.kind.stride])

    def time(self, model):
        layers = [layer for layer in model.modules() if hasattr(layer, "weight")]
        strides = [getattr(layer, "stride", ()) for layer in layers]
        shapes = [layer.weight.shape[:2] for layer in layers]
        alone = sum(self.layer(*s, PLACES[at]) for s, at in zip(shapes, strides, strict=True))
        return self.start + self.joined * alone

    def timed(self, model, dense, example, budget, predicted):
        self.measured += 1
        return Timing("torch", "0", 1, 1, self.time(model), self.time(self.dense), predicted)


@pytest.fixture
def runtime(monkeypatch):
    made = Runtime()
    monkeypatch.setattr(clock, "timed_file", lambda *_: b"")
    monkeypatch.setattr(clock, "dense_time", lambda *_: made.load * made.time(made.dense))
    monkeypatch.setattr(clock, "network_times", made.timed)
    monkeypatch.setattr(
        clock, "layer_times", lambda points, _: {point: made.point(point) for point in points}
    )
    return made


def pruned(*budgets, **options):
    options = {"criterion": Magnitude(), "recover": "none", **options}
    return flexrel.prune(network(), calibration=DATA, budgets=budgets, **options)


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_a_network_is_pruned_to_a_share_of_its_time(runtime, share):
    result = pruned(Latency(share))

    dense, cut = runtime.time(network()), runtime.time(result.model)
    assert 0.9 * share * dense <= cut <= share * dense
    assert result.timing.milliseconds == cut


def test_it_is_said_in_the_result_its_file_and_its_report(runtime, tmp_path):
    result = pruned("latency=50%")
    result.save(tmp_path / "out")

    told = json.loads((tmp_path / "out" / "result.json").read_text())
    dense, cut = runtime.time(network()), runtime.time(result.model)
    assert told["requested"]["latency_ms"] == pytest.approx(dense / 2)
    assert told["achieved"]["latency_ms"] == cut
    assert told["achieved"]["latency_dense_ms"] == dense
    assert told["timing"]["runtime"] == "torch"
    assert "latency, ms (torch 0, batch 1, 1 thread)" in result.report()
    assert pickle.loads(pickle.dumps(result)).timing == result.timing


def test_a_time_in_milliseconds_is_one(runtime):
    limit = 0.6 * runtime.time(network())

    result = pruned(Latency(f"{limit:.4f} ms"))

    assert 0.9 * limit <= runtime.time(result.model) <= limit
    assert result.requested["latency_ms"] == pytest.approx(limit, rel=1e-3)


@pytest.mark.parametrize("joined", [0.4, 2.5])
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_tables_that_are_wrong_about_the_whole_are_made_good_by_measuring(runtime, joined, start):
    runtime.joined, runtime.start = joined, start

    result = pruned("latency=70%")

    dense = runtime.time(network())
    assert 0.9 * 0.7 * dense <= runtime.time(result.model) <= 0.7 * dense


@pytest.mark.parametrize("load", [0.5, 3.0])
def test_how_busy_the_machine_was_at_first_makes_no_difference_to_a_share(runtime, load):
    runtime.load = load

    result = pruned("latency=50%")

    dense = runtime.time(network())
    assert 0.9 * 0.5 * dense <= runtime.time(result.model) <= 0.5 * dense
    assert result.requested["latency_ms"] == pytest.approx(dense / 2)


@pytest.mark.parametrize("step", [8, 16])
def test_widths_become_multiples_of_what_the_runtime_is_fast_at(runtime, step):
    runtime.step = step

    result = pruned("latency=50%")

    widths = [layer.out_channels for layer in result.model if isinstance(layer, nn.Conv2d)]
    assert all(width % step == 0 for width in widths)
    assert widths != [64, 64, 32]
    assert result.options["multiple_of"] == step


def test_a_layer_narrower_than_two_multiples_may_shrink_to_half_a_one(runtime):
    runtime.step = 8
    torch.manual_seed(0)
    narrow = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *network()[2:])
    narrow[2] = nn.Conv2d(8, 64, 3, padding=1)
    runtime.dense = narrow

    result = flexrel.prune(
        narrow,
        calibration=DATA,
        budgets=["latency=50%", "macs=10%"],
        criterion=Magnitude(),
        recover="none",
    )

    widths = [layer.out_channels for layer in result.model if isinstance(layer, nn.Conv2d)]
    assert widths[0] % 4 == 0
    assert all(width % 8 == 0 for width in widths[1:])


def test_a_multiple_that_is_asked_for_is_taken(runtime):
    runtime.step = 16

    result = pruned("latency=60%", options=PruneOptions(multiple_of=4))

    assert result.options["multiple_of"] == 4
    assert runtime.time(result.model) <= 0.6 * runtime.time(network())


def test_a_network_that_is_fast_enough_stays_whole(runtime):
    assert pruned("latency=100%").plan.removed == 0


def test_few_measurements_are_made_and_none_for_a_unit(runtime):
    pruned("latency=50%")

    assert runtime.measured <= 2 + 5 + 3


def test_criteria_are_compared_and_other_budgets_kept(runtime):
    result = pruned("latency=70%", "macs=40%", criterion=None, recover="closed-form")

    assert result.achieved.macs <= 0.4 * result.dense.macs
    assert runtime.time(result.model) <= 0.7 * runtime.time(network())
    assert len(result.options["chosen_from"]) > 1


def test_what_no_cut_saves_is_refused_with_the_closest(runtime):
    runtime.start = 10.0  # the layers are a small part

    with pytest.raises(BudgetError, match=r"ms of latency, but the closest possible is") as caught:
        pruned("latency=50%")

    assert caught.value.closest > caught.value.limit
    assert caught.value.unit == "ms"


def test_the_closest_that_is_told_was_measured_and_little_more_can_be_had(runtime):
    """Cut networks take half a millisecond longer than their layers say."""
    alone = runtime.time
    runtime.time = lambda model: alone(model) + (0.0 if model is runtime.dense else 0.5)

    with pytest.raises(BudgetError) as caught:
        pruned("latency=5%", options=PruneOptions(form="module"))

    told = caught.value.closest
    assert 0.7 < told < 0.72  # ms: what a call takes besides its layers, and a little for noise
    limit = 1.05 * told
    assert pruned(f"latency={limit:.4f}ms").timing.milliseconds <= limit


def test_blocks_that_go_whole_save_the_time_of_their_layers(runtime):
    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.branch = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 8))

        def forward(self, x):
            return x + self.branch(x)

    torch.manual_seed(0)
    runtime.start = 0.0
    runtime.dense = nn.Sequential(nn.Linear(4, 8), *map(Block, (10, 20, 30, 40)), nn.Linear(8, 2))
    result = flexrel.prune(
        runtime.dense,
        calibration=[torch.rand(16, 4)],
        budgets=["latency=70%"],
        granularity="depth",
        recover="none",
        criterion=Magnitude(),
    )

    assert result.plan.removed >= 1
    assert runtime.time(result.model) <= 0.7 * runtime.time(runtime.dense)


def test_zeros_save_no_time_and_are_refused_with_advice(runtime):
    with pytest.raises(BudgetError, match="Zeros save no time in these runtimes"):
        pruned("latency=50%", granularity="element")


def test_a_network_that_is_slower_than_it_was_expected_in_the_end_is_cut_again(
    runtime, monkeypatch
):
    times = []

    def slower(model, *rest):
        timing = runtime.timed(model, *rest)
        times.append(timing)
        if len(times) == 4:  # the network itself, repaired, is slower than its cut was
            return Timing("torch", "0", 1, 1, 1.2 * timing.milliseconds, timing.dense, 0.0)
        return timing

    monkeypatch.setattr(clock, "network_times", slower)

    result = pruned("latency=50%")

    assert result.timing.meets(Latency("50%"))
    assert result.timing == times[-1]


def test_two_latencies_are_refused():
    with pytest.raises(UsageError, match="2 budgets on latency; one runtime at a time"):
        pruned("latency=50%", "latency=50%@onnxruntime")


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [
        ("onnxruntime", "onnxruntime", "export"),
        ("onnxruntime", "onnx", "export"),
        ("openvino", "openvino", "openvino"),
    ],
)
def test_a_runtime_that_is_not_installed_is_refused_with_its_extra(
    monkeypatch, name, missing, extra
):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == missing else found("json")
    )

    with pytest.raises(UsageError, match=rf"pip install 'flexrel\[{extra}\]' \({missing} is not"):
        pruned(f"latency=50%@{name}")


def test_the_command_line_says_it_in_a_line(runtime):
    result = pruned("latency=50%")

    line = latency_line(result)

    assert f"{result.timing.milliseconds:.4g} ms of at most {result.timing.dense / 2:.4g}" in line
    assert latency_line(pruned("macs=50%")) == ""
