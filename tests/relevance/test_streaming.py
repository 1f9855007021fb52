"""Calibrating as a stream: bounds, weights of samples, dtypes, wrappers, and stops."""

import copy
import gc
import itertools
import time
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional

from flexrel import ModelError, RelevanceStats, calibrate
from flexrel.core.running import fingerprint
from flexrel.relevance import RULES


def classifier():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 25, 3),
    )
    return net.double().eval()


def images(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 5, 5, generator=draw, dtype=torch.float64)


def assert_close(found, expected, tolerance=1e-10):
    assert list(found) == list(expected)
    for name, layer in expected.items():
        for field in ("input", "output", "input_absolute", "output_absolute"):
            torch.testing.assert_close(
                getattr(found[name], field), getattr(layer, field), rtol=tolerance, atol=tolerance
            )


# --- how much is read ---------------------------------------------------------------------------


def test_no_more_batches_are_read_than_asked_for():
    read = []

    def endless():
        for index in itertools.count():
            read.append(index)
            yield images(2, seed=index)

    found = calibrate(classifier(), endless(), max_batches=3)

    assert read == [0, 1, 2]
    assert found.samples == 6
    assert_close(found, calibrate(classifier(), [images(2, seed=s) for s in range(3)]))


def test_after_its_time_no_further_batch_is_read_and_the_one_begun_counts():
    def slow():
        for index in itertools.count():
            time.sleep(0.05)
            yield images(2, seed=index)

    found = calibrate(classifier(), slow(), max_seconds=0.12)

    assert 2 <= found.samples <= 6


def test_memory_of_a_batch_is_given_back_before_the_next():
    alive = []

    def batches():
        for index in range(3):
            gc.collect()
            assert all(reference() is None for reference in alive)
            yield images(2, seed=index)

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = classifier()

        def forward(self, x):
            out = self.net(x)
            alive.append(weakref.ref(out))
            return out

    for rule in RULES:
        gc.disable()
        try:
            calibrate(Watched(), batches(), rule)
        finally:
            gc.enable()


class Kept:
    """Lives as long as the graph whose hook holds it."""


@pytest.mark.parametrize("rule", RULES)
def test_a_graph_is_freed_without_the_garbage_collector(rule):
    hooked = []

    class Hooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = classifier()

        def forward(self, x):
            hidden, keep = self.net[:3](x), Kept()
            hidden.register_hook(lambda _: keep and None)
            hooked.append(weakref.ref(keep))
            return self.net[3:](hidden)

    gc.collect()
    gc.disable()
    try:
        calibrate(Hooked(), [images(2), images(2, seed=1)], rule)
        assert hooked
        assert all(reference() is None for reference in hooked)
    finally:
        gc.enable()


# --- how often a sample counts ------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_a_sample_of_weight_two_counts_twice(rule):
    x, labels = images(3), torch.tensor([0, 2, 1])
    weights = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    twice = x[[0, 1, 1]], labels[[0, 2, 2]]

    for output in ("label", "predicted", "norm"):
        batch = {"input": x, "labels": labels, "sample_weight": weights}
        found = calibrate(classifier(), [batch], rule, output)
        expected = calibrate(classifier(), [(twice[0], labels[[0, 1, 1]])], rule, output)
        assert_close(found, expected)
        assert found.samples == 3.0


def test_weights_come_in_dicts_and_reach_a_callable():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = classifier()

        def forward(self, x):
            return self.net(x)

    x, weights = images(3), [0.5, 0.25, 1.0]

    def first(output, _):
        return output[:, 0]

    found = calibrate(Named(), [{"x": x, "sample_weight": weights}], output=first)

    parts = [
        calibrate(Named(), [x[i : i + 1]], output=first).scaled(w) for i, w in enumerate(weights)
    ]
    assert_close(found, parts[0] + parts[1] + parts[2])
    assert found.samples == 1.75


def test_weights_need_an_output_with_a_row_a_sample():
    model = nn.Sequential(nn.Linear(3, 3), nn.Flatten(0))

    with pytest.raises(ModelError, match=r"returns \[6\] for 2 samples"):
        calibrate(model, [{"input": torch.ones(2, 3), "sample_weight": [1.0, 2.0]}])


# --- what models may be -------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_bfloat16_models_come_close_to_float32(rule):
    model, x = classifier().float(), images(8).float()
    narrow = copy.deepcopy(model).bfloat16()

    found = calibrate(narrow, [x.bfloat16()], rule, "norm")

    expected = calibrate(model, [x], rule, "norm")
    for name, layer in expected.items():
        assert found[name].output.dtype == torch.float64
        scale = layer.output_absolute.max().item()
        torch.testing.assert_close(found[name].output, layer.output, rtol=0, atol=0.05 * scale)


COMPILES = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own


@COMPILES
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
@pytest.mark.parametrize("rule", ["gradient-input", "gamma"])
def test_wrapped_models_have_the_names_and_relevance_of_what_is_inside(wrap, rule):
    found = calibrate(wrap(classifier()), [images(4)], rule)

    expected = calibrate(classifier(), [images(4)], rule)
    assert_close(found, expected)
    assert found.model == expected.model


@COMPILES
def test_a_part_that_is_compiled_in_place_runs_as_written():
    model = classifier()
    model[0].compile()

    assert_close(
        calibrate(model, [images(4)], "zplus"), calibrate(classifier(), [images(4)], "zplus")
    )


class Wordy(dict):
    """Looks like what Hugging Face's models return."""


def test_the_logits_of_a_mapping_are_its_class_scores():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = classifier()

        def forward(self, x):
            return Wordy(loss=None, logits=self.net(x))

    found = calibrate(Classifier(), [images(4)])

    assert found.output == "predicted"
    torch.testing.assert_close(
        found["net.4"].output, calibrate(classifier(), [images(4)])["4"].output
    )


# --- which model they belong to -----------------------------------------------------------------


def test_a_fingerprint_is_of_structure_and_names_alone():
    model = classifier()
    trained = copy.deepcopy(model).bfloat16().train()
    trained[0].weight.data.zero_()

    assert fingerprint(trained) == fingerprint(model)
    others = [
        nn.Sequential(*model, nn.Identity()),
        nn.Sequential(*model[:2], nn.GELU(), *model[3:]),
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), *model[1:]),
        nn.Sequential(*model[:4], nn.Linear(100, 4)),
        nn.ModuleDict({"net": model}),
    ]
    assert len({fingerprint(other) for other in [model, *others]}) == 6


def test_stats_of_strangers_with_the_same_layers_are_refused(tmp_path):
    ours = calibrate(classifier(), [images(2)])
    theirs = classifier()
    theirs[2] = nn.GELU()
    calibrate(theirs, [images(2)]).save(tmp_path / "theirs")

    with pytest.raises(Exception, match="different networks don't add: fingerprints"):
        ours + RelevanceStats.load(tmp_path / "theirs")


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.last = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)
        self.gain = nn.Parameter(torch.ones(1, 2))

    def forward(self, x):
        return self.last(self.cells(x)[0][:, -1]) * self.gain


def test_weights_without_relevance_are_named_also_from_a_file(tmp_path):
    found = calibrate(Recurrent(), [torch.ones(2, 5, 3)])

    assert found.unmeasured == ("gain", "cells.weight_ih_l0", "cells.weight_hh_l0")
    found.save(tmp_path / "found")
    assert RelevanceStats.load(tmp_path / "found").unmeasured == found.unmeasured


class Experts(nn.Module):
    """Sends a batch to one of two layers, by the sign of its sum."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.experts, self.last = nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4)]), nn.Linear(4, 2)
        self.double()

    def forward(self, x):
        return self.last(functional.relu(self.experts[int(x.sum() > 0)](x)))


def test_layers_that_ran_for_one_of_two_sets_add_up():
    x = torch.ones(2, 3, dtype=torch.float64)

    total = calibrate(Experts(), [x]) + calibrate(Experts(), [-x])

    assert_close(total, calibrate(Experts(), [x, -x]))
    assert {"experts.0", "experts.1"} <= set(total)
    assert calibrate(Experts(), [x]).unmeasured == ("experts.0.weight",)
    assert total.unmeasured == ()


# --- stops and faults ---------------------------------------------------------------------------


def test_ctrl_c_between_batches_leaves_the_model_as_it_was():
    model = classifier().train()
    wants = [p.requires_grad for p in model.parameters()]

    def interrupted():
        yield images(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, interrupted(), "gamma")

    assert model.training
    assert [p.requires_grad for p in model.parameters()] == wants
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Faulty(nn.Module):
    def __init__(self, fault):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.fault = nn.Linear(3, 3), nn.Linear(3, 2), fault

    def forward(self, x):
        return self.last(self.fault(self.first(x)))


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (lambda x: torch.log(-x.abs()), "torch.log$"),
        (lambda x: (x - x).sqrt() * 0 + x, "the way back through torch.sqrt$"),
        (lambda x: x / 0 * 0, "torch.mul$"),
    ],
)
def test_a_nan_names_the_first_operation_that_made_it(fault, named):
    with pytest.raises(ModelError, match=f"NaN or infinite in batch 1; it first is in {named}"):
        calibrate(Faulty(Once(fault)), [torch.ones(2, 3), torch.ones(2, 3)])


class Once:
    """Does nothing in the first batch."""

    def __init__(self, fault):
        self.fault, self.calls = fault, 0

    def __call__(self, x):
        self.calls += 1
        return x * 1 if self.calls == 1 else self.fault(x)


def test_a_dead_output_is_refused_with_what_it_started_from():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    model[0].bias.data.fill_(-100)

    with pytest.raises(ModelError, match=r"is 0 in all 1 layers for all 2 samples.*\(predicted\)"):
        calibrate(model, [torch.ones(2, 3)])
