"""Which rule a layer takes: names, patterns, depth, rules of one's own, and what is refused."""

import math

import pytest
import torch
from torch import nn

from flexrel import UsageError, calibrate
from flexrel.relevance import RULES, Affine, ByDepth, ByName, Epsilon, Gamma, ZPlus, rule_of
from probes import close, fill, first_score, normal, same_stats


class Recorded:
    """A rule of the user's own: plain gradients, and a list of what it was called with."""

    name = "recorded"

    def __init__(self):
        self.calls = []

    def __call__(self, layer, inputs, outputs, gradient):
        self.calls.append((layer, inputs.clone(), outputs.clone(), gradient.clone()))
        return layer.backward(gradient, layer.weight, inputs)


def three_layers(seed=0, *, bias=True):
    parts = [fill(nn.Linear(3, 3, bias=bias), seed + at) for at in range(3)]
    return nn.Sequential(parts[0], nn.Tanh(), parts[1], nn.Tanh(), parts[2])


def test_a_users_rule_is_called_with_each_layers_inputs_outputs_and_gradient():
    network, rule = three_layers(), Recorded()
    x = normal(2, 3)

    stats = calibrate(network, [x], rule, first_score)

    assert stats.rule == "recorded"
    assert [call[0].name for call in rule.calls] == ["4", "2", "0"]
    values = x
    for name, (layer, inputs, outputs, gradient) in zip("024", rule.calls[::-1], strict=True):
        part = network[int(name)]
        assert isinstance(layer, Affine)
        assert (layer.geometry, layer.groups) == (None, 1)
        assert torch.equal(layer.weight, part.weight)
        assert torch.equal(layer.bias, part.bias)
        close(inputs, values)
        close(outputs, part(values).detach())
        close((outputs * gradient).sum(0), stats[name].output)
        close(layer.forward(inputs, layer.weight, layer.bias), outputs)
        values = torch.tanh(outputs)
    assert rule.calls[0][3].tolist() == [[1, 0, 0]] * 2


def test_a_users_rule_decides_what_an_input_gets():
    class Half(Recorded):
        def __call__(self, layer, inputs, outputs, gradient):
            return super().__call__(layer, inputs, outputs, gradient) / 2

    network = nn.Sequential(fill(nn.Linear(3, 3)), fill(nn.Linear(3, 2), 1))
    x = normal(2, 3)

    found = calibrate(network, [x], Half(), first_score)
    expected = calibrate(network, [x], "gradient-input", first_score)

    close(found["1"].input, expected["1"].input / 2)
    close(found["0"].input, expected["0"].input / 4)


def test_a_convolution_tells_a_rule_its_geometry():
    layer = fill(nn.ConvTranspose1d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2))
    rule = Recorded()

    calibrate(layer, [normal(2, 4, 3)], rule)

    geometry = rule.calls[0][0].geometry
    assert (geometry.stride, geometry.padding, geometry.dilation) == ((2,), ((1, 1),), (1,))
    assert (geometry.output_padding, geometry.transposed, geometry.groups) == ((1,), True, 2)


def test_a_layer_takes_the_rule_of_the_first_pattern_that_fits():
    one, two, rest = Recorded(), Recorded(), Recorded()
    rule = ByName((("0", one), ("[02]", two)), rest)

    calibrate(three_layers(), [normal(2, 3)], rule)

    assert [[layer.name for layer, *_ in r.calls] for r in (one, two, rest)] == [
        ["0"],
        ["2"],
        ["4"],
    ]


def test_a_mapping_of_patterns_is_a_rule_by_name_with_epsilon_for_the_rest():
    network, x = three_layers(), normal(2, 3)
    mapping = {"0": "zplus", "2": Gamma(2.0)}
    by_name = ByName((("0", RULES["zplus"]), ("2", Gamma(2.0))), RULES["epsilon"])

    found, expected = (calibrate(network, [x], rule) for rule in (mapping, by_name))

    same_stats(found, expected)
    assert rule_of(mapping) == by_name
    assert found.rule == expected.rule == by_name.name
    assert all(rule in found.rule for rule in ("0: zplus", "2: gamma(2)", "epsilon"))


def test_patterns_decide_by_layer_what_each_rule_alone_does_there():
    network, x = three_layers(), normal(2, 3)

    mixed = calibrate(network, [x], {"4": "zplus", "*": "gamma"})
    top = calibrate(network, [x], "zplus")

    close(mixed["4"].input, top["4"].input)
    with pytest.raises(AssertionError):
        close(mixed["2"].input, top["2"].input)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("sigma", "'sigma' is not known; there are: gradient-input, epsilon"),
        ({"0": "sigma"}, "'sigma' is not known"),
        ({"0": {"0": "gamma"}}, "one rule, not a mapping"),
        (0.25, "but is a float"),
        ({"layer4.*": "gamma"}, "no layer fits the pattern 'layer4.\\*'"),
    ],
)
def test_what_is_no_rule_is_refused(rule, told, unchecked):
    with pytest.raises(UsageError, match=told):
        calibrate(three_layers(), [normal(2, 3)], rule)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Epsilon(-1.0),
        lambda: Epsilon(share=math.nan),
        lambda: Gamma(-0.1),
        lambda: Gamma(math.inf),
        lambda: ZPlus(-1.0),
        lambda: ByDepth((), "none"),
        lambda: ByDepth(((0.5, Gamma()),), "half"),
        lambda: ByDepth(((1.0, Gamma()), (0.5, Gamma())), "falling"),
    ],
)
def test_a_rule_of_impossible_numbers_is_refused(make):
    with pytest.raises(UsageError):
        make()


def test_a_rule_by_depth_goes_from_0_at_the_first_layer_to_1_at_the_last():
    near, middle, far = Recorded(), Recorded(), Recorded()
    rule = ByDepth(((0.3, near), (0.5, middle), (1.0, far)), "three")

    calibrate(three_layers(), [normal(2, 3)], rule)

    told = [[(layer.name, layer.depth) for layer, *_ in r.calls] for r in (near, middle, far)]
    assert told == [[("0", 0.0)], [("2", 0.5)], [("4", 1.0)]]


def test_depth_counts_calls_of_layers_in_the_order_that_they_run():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.late, self.norm, self.early = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)

        def forward(self, x):
            return self.late(self.norm(self.early(self.early(x))))

    rule = Recorded()

    calibrate(fill(Backwards()), [normal(2, 3)], rule)

    assert [(layer.name, layer.depth) for layer, *_ in rule.calls] == [
        ("late", 1.0),
        ("early", 0.5),
        ("early", 0.0),
    ]


def test_the_composite_is_gamma_then_epsilon_of_a_share_then_0():
    network, x = three_layers(), normal(4, 3)

    same_stats(
        calibrate(network, [x], "composite"),
        calibrate(
            network, [x], {"0": Gamma(0.25), "2": Epsilon(0.0, share=0.25), "4": Epsilon(0.0)}
        ),
    )


SPLIT_NETWORKS = {
    "linear": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (6, 3)),
    "conv": (lambda: nn.Sequential(nn.Conv1d(3, 2, 2), nn.ReLU(), nn.Flatten()), (6, 3, 4)),
    "tokens": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Flatten()), (6, 5, 3)),
    "attention": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0),
        (6, 5, 4),
    ),
}


@pytest.mark.parametrize("rule", [Epsilon(0.0, share=0.25), "composite"])
@pytest.mark.parametrize("kind", SPLIT_NETWORKS)
def test_stats_of_parts_of_a_batch_add_up_to_those_of_the_batch(kind, rule):
    make, shape = SPLIT_NETWORKS[kind]
    network, x = fill(make()), normal(*shape, seed=1)

    same_stats(
        calibrate(network, x.split([1, 3, 2]), rule, "norm"), calibrate(network, [x], rule, "norm")
    )
