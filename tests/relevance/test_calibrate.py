"""Calibration: what it starts from, what it copes with, and that it leaves no trace."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional

from flexrel import FlexrelError, ModelError, UsageError, calibrate


def normal(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64)


def filled(module, seed=0):
    """The module in float64, with parameters of a seed."""
    module.double()
    for at, parameter in enumerate(module.parameters()):
        parameter.data.copy_(normal(*parameter.shape, seed=seed + at))
    return module


def assert_same(one, two, tolerance=1e-12):
    """The same layers have the same sums, to a share of each vector's largest value."""
    assert list(one) == list(two)
    assert one.samples == two.samples
    for name in one:
        for field in ("input", "output", "input_absolute", "output_absolute"):
            a, b = getattr(one[name], field), getattr(two[name], field)
            assert a.shape == b.shape
            assert (a - b).abs().max() <= tolerance * b.abs().max(), (name, field)


def classifier():
    return filled(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3, bias=False))
    )


IMAGES = normal(4, 1, 5, 5, seed=9)


# --- what relevance starts from -----------------------------------------------------------------


def two_by_two():
    """Outputs for the samples below: [-3, 11] and [-3, 1]."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight = nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    return layer, torch.tensor([[1.0, 2.0], [-1.0, 1.0]])


@pytest.mark.parametrize(
    ("output", "named", "inputs", "outputs"),
    [
        # a * W[1] = [1*3, 2*4] and [-1*3, 1*4]; b[1] = 11 and 1
        ("predicted", "predicted", [0, 12], [0, 12]),
        ("auto", "predicted", [0, 12], [0, 12]),
        # labels 0 and 1: a * W[0] = [1*1, 2*-2], then [-3, 4]; b[0] = -3, then b[1] = 1
        ("label", "label", [-2, 0], [-3, 1]),
        # a * (b @ W) = [1*30, 2*50] and [-1*0, 1*10]; b * b = [9, 121] and [9, 1]
        ("norm", "norm", [30, 110], [18, 122]),
        # a * W[0] = [1, -4] and [-1, -2]; b[0] = -3 twice
        (lambda out, labels: out[:, 0], "<lambda>", [0, -6], [-6, 0]),
        # the labels arrive: minus the first sample's, plus the second's
        (lambda out, labels: (2 * labels - 1) * out[:, 0], "<lambda>", [-2, 2], [0, 0]),
    ],
)
def test_relevance_starts_from_what_output_says(output, named, inputs, outputs):
    layer, x = two_by_two()

    statistics = calibrate(layer, [(x, torch.tensor([0, 1]))], output=output)

    assert statistics[""].input.tolist() == inputs
    assert statistics[""].output.tolist() == outputs
    assert statistics.output == named
    assert statistics.rule == "gradient-input"
    assert statistics.samples == 2


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64])
def test_labels_may_be_any_whole_numbers(dtype):
    layer, x = two_by_two()

    statistics = calibrate(layer, [(x, torch.tensor([0, 1], dtype=dtype))], output="label")

    assert statistics[""].output.tolist() == [-3, 1]


def test_labels_may_be_a_list():
    layer, x = two_by_two()

    assert calibrate(layer, [[x, [0, 1]]], output="label")[""].output.tolist() == [-3, 1]


@pytest.mark.parametrize(
    ("head", "chosen"),
    [
        (nn.Identity(), "predicted"),  # [samples, 3]
        (nn.Linear(3, 1).double(), "norm"),  # [samples, 1]: no classes to choose from
        (nn.Unflatten(1, (1, 3)), "norm"),  # [samples, 1, 3]
        (nn.Sequential(nn.Linear(3, 1).double(), nn.Flatten(0)), "norm"),  # [samples]
    ],
)
def test_auto_starts_from_the_predicted_class_only_where_there_are_class_scores(head, chosen):
    statistics = calibrate(nn.Sequential(classifier(), head), [IMAGES, IMAGES])

    assert statistics.output == chosen


def test_a_callable_is_named_in_the_statistics():
    def second(out, labels):
        return out[:, 1]

    assert calibrate(classifier(), [IMAGES], output=second).output == "second"


def test_a_predictor_of_one_number_a_sample_has_the_relevance_of_its_square():
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Flatten(0))
    model[0].weight = nn.Parameter(torch.tensor([[2.0, -1.0]]))

    layer = calibrate(model, [torch.tensor([[1.0, 1.0], [3.0, 2.0]])])["0"]

    assert layer.output.tolist() == [1 + 16]  # b * b of b = 1 and 4
    assert layer.input.tolist() == [2 + 24, -1 - 8]  # a * b * w


# --- forms of batches ---------------------------------------------------------------------------


class Named(nn.Module):
    """Takes its inputs by name, as Hugging Face's models do."""

    def __init__(self):
        super().__init__()
        self.inner = classifier()

    def forward(self, pixels, scale=None, labels=None):
        if labels is not None:
            raise TypeError("labels were passed on")
        return self.inner(pixels if scale is None else pixels * scale)


def test_dicts_tuples_and_tensors_give_the_same():
    labels = torch.tensor([0, 2, 1, 1])
    model = Named()
    expected = calibrate(model, [(IMAGES, labels)], output="label")

    assert_same(calibrate(model, [{"pixels": IMAGES, "labels": labels}], output="label"), expected)
    assert_same(calibrate(model, [{"label": labels, "pixels": IMAGES}], output="label"), expected)
    assert_same(calibrate(model, [[IMAGES, labels]], output="label"), expected)
    assert_same(calibrate(model, [IMAGES]), calibrate(model, [(IMAGES,)]))


def test_arguments_that_are_no_tensors_are_passed_on():
    assert_same(
        calibrate(Named(), [{"pixels": IMAGES, "scale": 2.0}]), calibrate(Named(), [2 * IMAGES])
    )


def test_layers_may_be_called_by_keyword():
    class ByKeyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, x):
            return self.inner(input=x)

    model = filled(ByKeyword())
    x = normal(4, 3)

    usual = nn.Sequential(OrderedDict(inner=model.inner))
    assert_same(calibrate(model, [x]), calibrate(usual, [x]))


def test_batches_are_read_once_and_told_to_progress():
    told = []

    statistics = calibrate(
        classifier(), iter([IMAGES, IMAGES[:1]]), progress=lambda *step: told.append(step)
    )

    assert statistics.samples == 5
    assert told == [("calibrating", 1, None), ("calibrating", 2, None)]


# --- awkward networks: each against the same network written without the awkwardness -------------


class Network(nn.Module):
    """Layers that all variants share, and a forward that is given to it."""

    def __init__(self, forward):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.again = nn.Conv2d(2, 2, 3, padding=1)
        self.linear = nn.Linear(5, 5)
        self.last = nn.Linear(5, 3)
        self.run = forward
        filled(self)

    def forward(self, x):
        return self.run(self, x)


def head(net, x):
    return net.last(x.mean((1, 2)))


def plain(net, x):
    y = functional.relu(net.conv(x * 2))
    z = functional.relu(net.again(y) + y)
    return head(net, torch.tanh(functional.relu(net.linear(z))))


def overwriting(net, x):
    x.mul_(2)  # the batch itself
    y = net.conv(x).relu_()
    z = net.again(y)
    z += y
    z = functional.relu(z, inplace=True)
    w = net.linear(z)  # a view, made of a matrix product
    w.relu_()
    return head(net, w.tanh())


def overwriting_a_slice(net, x):
    y = functional.relu(net.conv(x * 2))
    z = net.again(y)
    z[:, 0] += y[:, 0]
    z[:, 1:].add_(y[:, 1:])
    w = net.linear(z.relu())
    torch.relu_(w[:])
    return head(net, w.tanh())


def overwriting_what_a_layer_read(net, x):
    y = functional.relu(net.conv(x * 2))
    z = functional.relu(net.again(y) + y) + 0
    w = net.linear(z)
    z.zero_()
    return head(net, torch.tanh(functional.relu(w)))


@pytest.mark.parametrize(
    "forward", [overwriting, overwriting_a_slice, overwriting_what_a_layer_read]
)
def test_activations_overwritten_in_place_count_with_the_value_they_had(forward):
    batches = [normal(3, 2, 4, 5), normal(2, 2, 4, 5, seed=1)]
    before = copy.deepcopy(batches)

    found = calibrate(Network(forward), batches)

    assert_same(found, calibrate(Network(plain), batches))
    assert list(found) == ["again", "conv", "last", "linear"]
    assert all(map(torch.equal, batches, before))


class Tokenwise(nn.Module):
    """Linear layers over [samples, tokens, features], whose outputs are views."""

    def __init__(self, activation):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.activation, self.calls = activation, 0
        filled(self)

    def forward(self, x):
        self.calls += 1
        return self.last(self.activation(self.first(x))).mean(1)


def test_a_view_that_alone_is_overwritten_is_not_lost():
    # Autograd forgets a view once it is overwritten: no gradient of it ever comes.
    x = normal(2, 5, 3)

    found = calibrate(Tokenwise(torch.relu_), [x])

    assert list(found) == ["first", "last"]
    assert_same(found, calibrate(Tokenwise(torch.relu), [x]))


@pytest.mark.parametrize(("activation", "again"), [(torch.relu, 0), (torch.relu_, 1)])
def test_only_a_model_that_overwrites_a_view_runs_a_batch_again_and_only_the_first(
    activation, again
):
    model = Tokenwise(activation)

    calibrate(model, [normal(2, 5, 3)] * 3)

    assert model.calls == 3 + again


def test_an_inplace_relu_module_changes_nothing():
    inplace, plain = classifier(), classifier()
    inplace[1].inplace = True

    assert_same(calibrate(inplace, [IMAGES]), calibrate(plain, [IMAGES]))


def test_whole_number_inputs_that_the_model_overwrites_are_the_callers_no_more():
    class Clamps(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(3, 2)
            self.layer = nn.Linear(2, 2)

        def forward(self, x, index):
            return self.layer(x + self.table(index.clamp_(max=2)))

    index = torch.tensor([0, 9])

    calibrate(Clamps(), [{"x": torch.ones(2, 2), "index": index}])

    assert index.tolist() == [0, 9]


def test_a_layer_that_is_called_twice_has_the_sum_of_both_calls():
    # The twin calls a copy instead, so each call has its own statistics.
    def twice(net, x):
        return head(net, net.linear(net.conv(net.conv(x).relu()).relu()))

    def once_each(net, x):
        return head(net, net.linear(net.again(net.conv(x).relu()).relu()))

    model, twin = Network(twice), Network(once_each)
    twin.again.load_state_dict(model.conv.state_dict())
    x = normal(3, 2, 4, 5)

    found, apart = calibrate(model, [x]), calibrate(twin, [x])

    both = apart["conv"] + apart["again"]
    torch.testing.assert_close(found["conv"].input, both.input)
    torch.testing.assert_close(found["conv"].output, both.output)
    torch.testing.assert_close(found["conv"].input_absolute, both.input_absolute)
    assert "again" not in found


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_layer_may_be_called_on_inputs_of_different_sizes(size):
    # A size of 1 would broadcast: its relevance must not count at every position.
    def pyramid(second):
        def forward(net, x):
            coarse = functional.adaptive_avg_pool2d(x, size)
            return head(net, net.conv(x)) + second(net)(coarse).mean((1, 2, 3))[:, None]

        return forward

    model = Network(pyramid(lambda net: net.conv))
    twin = Network(pyramid(lambda net: net.again))
    twin.again.load_state_dict(model.conv.state_dict())
    x = normal(3, 2, 4, 5)

    found, apart = calibrate(model, [x]), calibrate(twin, [x])

    both = apart["conv"] + apart["again"]
    torch.testing.assert_close(found["conv"].input, both.input)
    torch.testing.assert_close(found["conv"].output, both.output)


def test_batches_may_differ_in_spatial_size():
    model = filled(nn.Sequential(nn.Conv1d(1, 2, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten()))
    wide, narrow = normal(2, 1, 9), normal(3, 1, 5)

    both = calibrate(model, [wide, narrow])

    assert_same(both, calibrate(model, [wide]) + calibrate(model, [narrow]))


def test_layers_that_the_output_does_not_depend_on_have_no_statistics():
    def forward(net, x):
        net.again(x)  # called in vain
        return head(net, net.conv(x))  # `linear` is never called

    assert list(calibrate(Network(forward), [normal(2, 2, 4, 5)])) == ["conv", "last"]


def test_a_layer_fed_with_a_constant_has_the_relevance_of_its_output_alone():
    def forward(net, x):
        return net.last(x.mean((1, 2))) + net.linear(torch.ones(1, 5, dtype=x.dtype))[:, :3]

    x = normal(4, 2, 3, 5)
    model = Network(forward)
    made = model.linear(torch.ones(1, 5, dtype=x.dtype))[0, :3].detach()
    winners = model(x).argmax(dim=1)

    layer = calibrate(model, [x], output="predicted")["linear"]

    assert not layer.input.any()
    expected = [float(made[c]) * int((winners == c).sum()) for c in range(3)]
    torch.testing.assert_close(layer.output[:3], torch.tensor(expected, dtype=torch.float64))
    assert not layer.output[3:].any()


def test_a_constant_may_be_overwritten_by_the_model():
    def forward(net, x):
        made = net.linear(torch.ones(1, 2, 5, dtype=x.dtype)).relu_()
        return net.last(x.mean((1, 2))) + made[:, 0, :3]

    assert list(calibrate(Network(forward), [normal(4, 2, 3, 5)])) == ["last", "linear"]


def test_a_frozen_part_under_no_grad_does_not_matter_to_the_rest():
    def forward(net, x):
        with torch.no_grad():
            frozen = net.conv(x)
        return head(net, net.linear(x) + frozen)

    assert list(calibrate(Network(forward), [normal(2, 2, 4, 5)])) == ["last", "linear"]


def test_an_operation_that_lets_no_gradient_back_hides_what_is_before_it():
    class Wall(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return None

    def forward(net, x):
        return head(net, net.linear(x) + Wall.apply(net.conv(x)))

    assert list(calibrate(Network(forward), [normal(2, 2, 4, 5)])) == ["last", "linear"]


def test_an_input_used_twice_has_its_whole_gradient_in_each_layer():
    # R(a) is the relevance of the activation, however many operations read it: a * (w1 + w2)
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
            self.one.weight = nn.Parameter(torch.tensor([[2.0]]))
            self.two.weight = nn.Parameter(torch.tensor([[5.0]]))

        def forward(self, x):
            return self.one(x) + self.two(x)

    statistics = calibrate(Fork(), [torch.tensor([[3.0]])], output=lambda out, labels: out[:, 0])

    assert statistics["one"].input.tolist() == statistics["two"].input.tolist() == [3 * (2 + 5)]
    assert statistics["one"].output.tolist() == [6]
    assert statistics["two"].output.tolist() == [15]


def test_evaluation_mode_is_what_counts():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.9), nn.Flatten(), nn.Linear(18, 3)
    ).double()
    expected = calibrate(model.eval(), [IMAGES])

    assert_same(calibrate(model.train(), [IMAGES]), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float32, 1e-5)])
def test_narrow_floats_come_close_and_are_summed_in_float64(dtype, tolerance):
    narrow = classifier().to(dtype)
    x = IMAGES.to(dtype)
    exact = calibrate(copy.deepcopy(narrow).double(), [x.double()], output="norm")

    found = calibrate(narrow, [x], output="norm")

    assert found["0"].input.dtype == torch.float64
    assert_same(found, exact, tolerance)


def test_a_model_that_is_one_layer_is_named_by_the_empty_name():
    assert list(calibrate(nn.Linear(2, 2), [torch.ones(1, 2)])) == [""]


def test_a_layer_under_two_names_counts_under_the_first():
    layer = filled(nn.Linear(3, 3))
    twice = calibrate(nn.Sequential(layer, nn.Tanh(), layer), [normal(4, 3)])

    assert list(twice) == ["0"]


# --- no trace -----------------------------------------------------------------------------------


class Careless(nn.Module):
    """Draws random numbers as it runs, and fails on a call of one's choice."""

    def __init__(self):
        super().__init__()
        self.calls_left, self.failure = 0, None

    def forward(self, x):
        if self.failure is not None:
            self.calls_left -= 1
            if self.calls_left == 0:
                raise self.failure
        return x + 1e-3 * torch.rand_like(x)


def model_in_use():
    """Modes, wishes for gradients, and gradients are all mixed, as in the middle of training."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(2),
        Careless(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(18, 4),
        nn.Linear(4, 3),
    ).double()
    model.train()
    model[2].eval()
    model[7].eval()
    model[0].weight.requires_grad_(False)
    model[7].bias.requires_grad_(False)
    model[6].weight.grad = torch.full_like(model[6].weight, 0.25)
    model[0].weight.grad = torch.full_like(model[0].weight, -1.0)  # from before it was frozen
    model[4].register_forward_hook(lambda *_: None)  # the user's own
    return model


def trace(model):
    """All that must be as it was. Gradients by identity, too."""
    hooks = {
        (name, attribute): list(value)
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if "hooks" in attribute and value is not None
    }
    parameters = list(model.parameters())
    return {
        "hooks": hooks,
        "forward": [vars(module).get("forward") for module in model.modules()],
        "modes": [module.training for module in model.modules()],
        "wants": [parameter.requires_grad for parameter in parameters],
        "gradients": [id(parameter.grad) for parameter in parameters],
        "values of gradients": [p.grad.tolist() for p in parameters if p.grad is not None],
        "tensors": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
        "identities": [id(tensor) for tensor in (*parameters, *model.buffers())],
        "random state": torch.random.get_rng_state().tolist(),
        "gradient mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
    }


def drawing(count):
    """Batches that draw from the global random state, as a shuffling loader does."""
    return (torch.randn(3, 1, 5, 5, dtype=torch.float64) for _ in range(count))


def test_success_leaves_no_trace():
    model = model_in_use()
    before = trace(model)

    calibrate(model, drawing(3))

    assert trace(model) == before


class Ran(Exception):
    pass


@pytest.mark.parametrize(
    ("failure", "seen"),
    [(RuntimeError("no luck"), ModelError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_exception_in_the_model_leaves_no_trace(failure, seen, call):
    model = model_in_use()
    model[3].failure, model[3].calls_left = failure, call
    before = trace(model)

    with pytest.raises(seen):
        calibrate(model, drawing(3))

    assert model[3].calls_left == 0
    assert trace(model) == before


def test_an_exception_from_the_batches_passes_and_leaves_no_trace():
    def batches():
        yield from drawing(1)
        raise Ran

    model = model_in_use()
    before = trace(model)

    with pytest.raises(Ran):
        calibrate(model, batches())

    assert trace(model) == before


@pytest.mark.parametrize("failure", [Ran(), KeyboardInterrupt()])
def test_an_exception_from_the_callable_or_progress_passes_and_leaves_no_trace(failure):
    def fail(*_):
        raise failure

    model = model_in_use()
    before = trace(model)

    with pytest.raises(type(failure)):
        calibrate(model, drawing(2), output=fail)
    with pytest.raises(type(failure)):
        calibrate(model, drawing(2), progress=fail)

    assert trace(model) == before


def test_an_exception_in_the_backward_pass_leaves_no_trace():
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise KeyboardInterrupt

    class Last(nn.Module):
        def forward(self, x):
            return Fails.apply(x)

    model = model_in_use().append(Last())
    before = trace(model)

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, drawing(2))

    assert trace(model) == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_batch_after_a_good_one_leaves_no_trace(bad):
    model = model_in_use()
    before = trace(model)

    with pytest.raises(UsageError):
        calibrate(model, [IMAGES, torch.full_like(IMAGES, bad)])

    assert trace(model) == before


def test_the_batch_keeps_its_values_and_its_gradient():
    x = IMAGES.clone().requires_grad_()
    (x * 3).sum().backward()
    before = x.grad.clone()

    calibrate(classifier(), [x])

    assert torch.equal(x.grad, before)
    assert torch.equal(x, IMAGES)
    assert x.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_that_want_no_gradients_get_the_same_statistics(mode):
    model, labels = classifier(), torch.tensor([0, 2, 1, 1])
    expected = calibrate(model, [(IMAGES, labels)], output="label")

    with mode():
        made_inside = (IMAGES.clone(), labels.clone())
        before = trace(model)
        found = calibrate(model, [made_inside], output="label")
        assert trace(model) == before

    assert_same(found, expected)
    assert_same(calibrate(model, [made_inside], output="label"), expected)


def test_parameters_that_wanted_gradients_still_train_afterwards():
    model = classifier()

    calibrate(model, [IMAGES])
    model(IMAGES).sum().backward()

    assert all(parameter.grad is not None for parameter in model.parameters())


# --- errors -------------------------------------------------------------------------------------


class Returns(nn.Module):
    """A layer, and then whatever is made of its result."""

    def __init__(self, of):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.of = of

    def forward(self, x):
        return self.of(self.layer(x))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Embedding(5, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(self.table(x)).mean(1)


def raises(error):
    def of(x):
        raise error

    return of


ROWS = torch.ones(2, 3)
LABELS = torch.tensor([0, 2])


def identity(x):
    return x


@pytest.mark.parametrize(
    ("of", "batches", "options", "says"),
    [
        (identity, [ROWS], {"rule": "delta"}, "rule 'delta' is not known.*gradient-input, epsilon"),
        (identity, [ROWS], {"rule": 3}, "rule= must be a name.*is a int"),
        (
            identity,
            [ROWS],
            {"rule": {"conv*": "gamma"}},
            "no layer fits the pattern 'conv.*'layer'",
        ),
        (identity, [ROWS], {"max_batches": 0}, "max_batches=0 must be a whole number"),
        (identity, [ROWS], {"max_seconds": 0}, "max_seconds=0 must be above 0"),
        (identity, [ROWS], {"output": "logit"}, "output 'logit' is not known.*label, predicted"),
        (identity, [], {}, "calibration set is empty"),
        (identity, ROWS, {}, r"one tensor of shape \(2, 3\); pass an iterable of batches"),
        (identity, [ROWS, ROWS / 0], {}, "batch 1 .*6 NaN or infinite values of 6"),
        (identity, [ROWS * float("nan")], {}, "batch 0 .*6 NaN"),
        (identity, [(ROWS, LABELS), ROWS], {"output": "label"}, "batch 1 has none"),
        (identity, [(ROWS, LABELS + 1)], {"output": "label"}, r"labels of batch 0.*0 \.\.\. 2"),
        (identity, [(ROWS, LABELS - 1)], {"output": "label"}, "labels of batch 0"),
        (identity, [(ROWS, LABELS.float())], {"output": "label"}, "whole numbers"),
        (identity, [(ROWS, LABELS[:, None])], {"output": "label"}, "2 whole numbers"),
        (lambda x: x[:1], [(ROWS, LABELS)], {"output": "label"}, "1 whole numbers"),
        (identity, [(ROWS, LABELS[:1])], {}, "2 inputs but 1 labels"),
        (identity, [(ROWS, 1)], {}, "2 inputs but one label"),
        (identity, [(ROWS, ["a", "b"])], {}, "labels of batch 0 are a list"),
        (identity, [(ROWS, {"a": 1})], {}, "labels of batch 0 are a dict"),
        (identity, [ROWS], {"output": lambda out, _: out}, r"must return \[2\].*\[2, 3\]"),
        (identity, [ROWS], {"output": lambda out, _: out.sum()}, r"must return \[2\].*\[\]"),
        (identity, [ROWS], {"output": lambda out, _: 1.0}, r"must return \[2\].*float"),
        (identity, ["text"], {}, "batch 0 is a str"),
        (identity, [ROWS, None], {}, "batch 1 is a NoneType"),
        (identity, [(ROWS, LABELS, 3)], {}, "weights of batch 0 must be 2 numbers"),
        (identity, [(ROWS, LABELS, None, None)], {}, "batch 0 is a tuple"),
        (identity, [ROWS[:0]], {}, r"shape \(0, 3\): no sample"),
        (identity, [torch.tensor(1.0)], {}, r"shape \(\): no sample"),
        (identity, [{}], {}, "batch 0 has no input tensor, but nothing"),
        (identity, [("text", LABELS)], {}, "batch 0 has no input tensor, but str"),
    ],
)
def test_a_wrong_request_is_a_usage_error_of_one_line(of, batches, options, says, unchecked):
    with pytest.raises(UsageError, match=says) as caught:
        calibrate(Returns(of), batches, **options)

    assert caught.value.exit_code == 2
    assert isinstance(caught.value, FlexrelError)
    assert "\n" not in str(caught.value)


def best_is_0(x):
    return -(x * torch.tensor([1.0, 0.0, 1.0])).abs()


def breaks_autograd(x):
    y = x.exp()
    y += 1
    return y


@pytest.mark.parametrize(
    ("model", "batch", "options", "says"),
    [
        (Returns(lambda x: (x, x)), ROWS, {}, "returns a tuple, not a tensor of scores.*output="),
        (Returns(lambda x: {"rows": x, "b": 0}), ROWS, {}, "returns a dict with rows, b, not"),
        (Returns(lambda x: x.argmax(1)), ROWS, {}, "returns a Tensor, not a tensor of scores"),
        (Returns(lambda x: x[..., None]), ROWS, {"output": "predicted"}, r"\[2, 3, 1\]"),
        (Returns(lambda x: x[:, :1]), (ROWS, LABELS), {"output": "label"}, r"\[2, 1\].*'norm'"),
        (Returns(torch.Tensor.detach), ROWS, {}, "no gradient reaches the input"),
        (Returns(torch.ones_like), ROWS, {}, "no gradient reaches the input"),
        (Returns(torch.zeros_like), ROWS, {}, "no gradient reaches the input"),
        (Returns(best_is_0), ROWS, {}, "relevance is 0 in all 1 layers for all 2"),
        (Returns(breaks_autograd), ROWS, {}, "can't go back through the model on batch 0"),
        (Returns(lambda x: x / 0), ROWS, {}, "NaN or infinite in batch 0; it first is in"),
        (Returns(raises(RuntimeError("bad\nluck"))), ROWS, {}, r"\(2, 3\)\): bad$"),
        (Returns(raises(KeyError("a key"))), ROWS, {}, r"\(2, 3\)\): 'a key'$"),
        (Returns(raises(AssertionError())), ROWS, {}, r"\(2, 3\)\): AssertionError$"),
        (Returns(identity), torch.ones(2, 4), {}, r"batch 0 \(inputs of shape \(2, 4\)\): mat1"),
        (Returns(identity), {"y": ROWS}, {}, "unexpected keyword argument 'y'"),
        (nn.Conv2d(1, 2, 3), torch.ones(1, 5, 5), {}, "'' got an input of 3 axes; it must have"),
        (nn.Conv1d(1, 2, 3), torch.ones(1, 5), {}, "'' got an input of 2 axes"),
    ],
)
def test_a_network_that_can_not_be_followed_is_a_model_error_of_one_line(
    model, batch, options, says
):
    with pytest.raises(ModelError, match=says) as caught:
        calibrate(model, [batch], **options)

    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_an_error_of_the_model_keeps_its_cause():
    with pytest.raises(ModelError) as caught:
        calibrate(Returns(raises(Ran("why"))), [ROWS])

    assert isinstance(caught.value.__cause__, Ran)


def test_a_model_under_no_grad_is_a_model_error():
    class Frozen(nn.Linear):
        @torch.no_grad
        def forward(self, x):
            return super().forward(x)

    with pytest.raises(ModelError, match="no_grad"):
        calibrate(Frozen(3, 2), [ROWS])


def test_a_model_made_in_inference_mode_is_a_model_error():
    with torch.inference_mode():
        model = nn.Linear(3, 2)

    with pytest.raises(ModelError, match="inference_mode"):
        calibrate(model, [ROWS])

    assert model.weight.requires_grad
