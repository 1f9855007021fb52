"""Passes that stop at layers: they compute what one pass does, and leave nothing behind."""

import contextlib
import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from flexrel import ModelError
from flexrel.repair import reconstruct_
from flexrel.repair.layerwise import LayerwiseForward, plain_modes
from flexrel.repair.uses import uses_of
from flexrel.structure import apply
from networks import batch, bits, random_, same_bits
from repairs import error, mlp, normal, plan_of


class Modes(nn.Module):
    """Runs two layers in half precision, one under inference mode, one without gradients."""

    def __init__(self, between=None):
        super().__init__()
        sizes = zip((6, 12, 9, 8, 7), (12, 9, 8, 7, 3), strict=True)
        self.first, self.short, self.too, self.apart, self.last = (nn.Linear(*s) for s in sizes)
        self.between = between or nn.Identity()

    def forward(self, x):
        x = self.first(x).relu()
        with torch.autocast("cpu", torch.bfloat16):
            x = self.between(self.short(x).relu())
            x = self.too(x).relu()
        with torch.inference_mode():
            x = self.between(self.apart(x.float()).relu())
        with torch.no_grad():
            return self.between(self.last(x.clone()))


def modes():
    """Return all that a network may change about the thread that it runs in."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        torch._C._len_torch_function_stack(),
        torch.get_num_threads(),
    )


def passes_of(model, batches):
    """Return one pass a batch, and the names of the layers that they stop at."""
    uses, _ = uses_of(model, batch(batches[0]))
    by_name = {use.name: use for use in uses}
    return [LayerwiseForward(model, batch(x), by_name) for x in batches], list(by_name)


def seen_by(model, inputs, name):
    """Return what a layer takes in and gives in one pass through the network, by a hook."""
    seen, twin = [], copy.deepcopy(model)
    twin.get_submodule(name).register_forward_hook(
        lambda _, given, made: seen.append((given[0], made))
    )
    twin(inputs)
    return seen[0]


@pytest.mark.parametrize("kind", [mlp, lambda: random_(Modes()).eval()])
def test_passes_side_by_side_compute_bit_for_bit_what_one_pass_does(kind):
    model, batches = kind(), [normal(5, 6), normal(1, 6, seed=1), normal(9, 6, seed=2)]
    with plain_modes(torch.device("cpu"), inference=False):
        passes, names = passes_of(model, batches)
        for name in names:
            for one, inputs in zip(passes, batches, strict=True):
                stop = one.advance(name)
                given, made = seen_by(model, inputs, name)
                assert stop.call.inputs.equal(given)
                assert stop.outputs.equal(made)
        for one in passes:
            one.close()


@pytest.mark.parametrize("kind", [mlp, lambda: random_(Modes()).eval()])
def test_what_comes_behind_a_layer_that_was_changed_is_as_if_it_always_had_been(kind):
    """Also under autocast, which keeps the weights that it made short."""
    model, inputs = kind(), normal(5, 6)
    with plain_modes(torch.device("cpu"), inference=False):
        [one], names = passes_of(model, [inputs])
        one.advance(names[0])
        for layer, name in itertools.pairwise(names):
            model.get_submodule(layer).weight.mul_(-1.5)
            stop = one.advance(name, changed=True)
            given, made = seen_by(model, inputs, name)
            assert stop.call.inputs.equal(given)
            assert stop.outputs.equal(made)
        one.close()


def test_a_pass_that_joins_late_runs_through_what_was_repaired_before():
    model, inputs = mlp(), normal(5, 6)
    with plain_modes(torch.device("cpu"), inference=False):
        [one], names = passes_of(model, [inputs])
        stop = one.advance(names[-1])
        assert stop.call.inputs.equal(seen_by(model, inputs, names[-1])[0])
        one.close()


def test_of_a_layer_that_does_not_run_again_there_is_no_stop():
    model = mlp()
    with plain_modes(torch.device("cpu"), inference=False):
        [one], names = passes_of(model, [normal(5, 6)])
        one.advance(names[-1])
        for _ in range(2):
            assert one.advance(names[0]) is None


class Program(nn.Module):
    """A program inside a network, beside layers that are modules."""

    def __init__(self):
        super().__init__()
        inside = random_(nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 7))).eval()
        self.first = nn.Linear(6, 9)
        shapes = ({0: torch.export.Dim("samples")},)
        program = torch.export.export(inside, (torch.zeros(4, 9),), dynamic_shapes=shapes)
        self.inside = program.module()
        self.last = nn.Linear(7, 3)

    def forward(self, x):
        return self.last(self.inside(self.first(x).relu()).relu())


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # of torch's own programs
def test_passes_through_programs_can_be_left_and_entered_in_any_order():
    """ATen operations call a mode from inside of pybind11, whose calls have to end in order."""
    model, inputs = random_(Program()), normal(800, 6)
    cut, state = copy.deepcopy(model), torch.get_rng_state()
    with torch.no_grad():
        cut.first.weight[3:] = 0

    made, refused = reconstruct_(cut, model, None, [inputs[:400], inputs[400:]])

    assert not refused
    assert {"inside.0", "inside.2", "last"} <= {repair.layer for repair in made}
    assert torch.equal(torch.get_rng_state(), state)


def test_a_layer_that_is_called_as_an_operation_of_aten_is_left_alone():
    class Aten(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(6, 9), nn.Linear(9, 7), nn.Linear(7, 3)

        def forward(self, x):
            x = self.first(x).relu()
            x = torch.ops.aten.linear.default(x, self.second.weight, self.second.bias)
            return self.last(torch.ops.aten.add(x.relu(), x))

    model, inputs = random_(Aten()).eval(), normal(300, 6)
    cut = copy.deepcopy(model)
    with torch.no_grad():
        cut.first.weight[3:] = 0

    made, refused = reconstruct_(cut, model, None, [inputs[:100], inputs[100:]])

    assert refused == {"second": "the model calls it as torch.ops, where a pass can't be stopped"}
    assert "last" in [repair.layer for repair in made if repair.changed]


# --- modes of torch -------------------------------------------------------------------------------

OUTSIDE = {
    "nothing": contextlib.nullcontext,
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.float16),
}


@pytest.mark.parametrize("outside", OUTSIDE)
def test_layers_under_modes_are_repaired_and_the_modes_are_as_before(outside):
    model, inputs = random_(Modes()).eval(), normal(400, 6)
    plan = plan_of(model, inputs[:2], {"first": [0, 2, 5], "short": [1]})
    cut = apply(model, plan)
    network, plain = copy.deepcopy(cut), copy.deepcopy(cut)
    batches = [inputs[:100], inputs[100:110], inputs[110:]]

    with OUTSIDE[outside]():
        before = modes()
        made, refused = reconstruct_(network, model, plan, batches)
        assert modes() == before

    assert not refused
    assert {"short", "too", "apart"} <= {repair.layer for repair in made if repair.changed}
    assert error(network, model, inputs) < 0.5 * error(cut, model, inputs)
    reconstruct_(plain, model, plan, batches)
    assert all(t.equal(plain.state_dict()[name]) for name, t in network.state_dict().items())


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("backwards", [True, False])
def test_passes_that_are_closed_unfinished_leave_the_modes_as_they_were(inference, backwards):
    model = random_(Modes()).eval()
    before = modes()
    with plain_modes(torch.device("cpu"), inference=inference):
        inside = modes()
        passes, _ = passes_of(model, [normal(5, 6), normal(5, 6), normal(5, 6)])
        for one, name in zip(passes, ("too", "apart", "short"), strict=True):
            one.advance(name)
            assert modes() == inside
        passes += passes_of(model, [normal(5, 6)])[0]  # and one that has not begun
        for one in passes[::-1] if backwards else passes:
            one.close()
            assert modes() == inside
    assert modes() == before


def test_what_a_network_sets_and_leaves_set_is_put_back():
    class Leaves(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(6, 9), nn.Linear(9, 7), nn.Linear(7, 3)

        def forward(self, x):
            x = self.first(x).relu()
            torch.set_grad_enabled(mode=False)
            torch.set_autocast_enabled("cpu", enabled=True)
            x = self.second(x).float()
            torch.set_autocast_enabled("cpu", enabled=False)
            return self.last(functional.relu(x))

    model, inputs = random_(Leaves()).eval(), normal(300, 6)
    plan = plan_of(model, inputs[:2], {"first": [0, 2]})
    cut = apply(model, plan)
    before = modes()

    reconstruct_(cut, model, plan, [inputs[:100], inputs[100:]])

    assert modes() == before


# --- errors of the network ------------------------------------------------------------------------


class Failing(nn.Module):
    """Raises when it runs for the n-th time, in this network or a copy of it."""

    def __init__(self, at):
        super().__init__()
        self.count = [0]
        self.at = at

    def __deepcopy__(self, memo):
        return self

    def forward(self, x):
        self.count[0] += 1
        if self.count[0] == self.at:
            raise ArithmeticError("half way")
        return x


@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize("at", range(1, 20))
def test_a_network_that_raises_half_way_leaves_nothing_behind(at, outside):
    failing = Failing(0)
    model = random_(Modes(failing)).eval()
    inputs = normal(40, 6)
    plan = plan_of(model, inputs[:2], {"first": [3]})
    cut = apply(model, plan)
    dense, others, state = bits(model), bits(cut)[1:], torch.get_rng_state()
    failing.count[0], failing.at = 0, at  # three times a pass: two to see the layers, two a batch

    with OUTSIDE[outside]():
        before = modes()
        batches = [inputs[:20], inputs[20:30], inputs[30:]]
        if at <= 18:  # the last of the three is behind the last layer, so it does not come to it
            with pytest.raises(ModelError, match="half way"):
                reconstruct_(cut, model, plan, batches)
        else:
            reconstruct_(cut, model, plan, batches)
        assert modes() == before

    assert torch.equal(torch.get_rng_state(), state)
    assert same_bits(bits(model), dense)
    assert bits(cut)[1:] == others


class Sampled(nn.Module):
    """Draws what it passes on, as a variational autoencoder does, in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.code, self.last = nn.Linear(6, 8), nn.Linear(7, 3)
        self.decode = nn.Linear(8, 7)

    def forward(self, x):
        means = self.code(x)
        return self.last(self.decode(means + torch.randn_like(means)).tanh())


def test_what_a_network_draws_is_drawn_alike_before_and_after_the_cut():
    model, inputs = random_(Sampled()).eval(), normal(400, 6)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    cut = copy.deepcopy(model)
    made, refused = reconstruct_(cut, model, None, [inputs[:200], inputs[200:]])

    assert not refused
    assert made == []  # the two are the same network, so nothing is to repair
    assert torch.equal(torch.get_rng_state(), state)
