"""Rounding by least squares: against the formulas of OBS, and on networks."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import flexrel
from flexrel import Magnitude, Sparsity, prune
from flexrel.core.division import fitted_and_judged
from flexrel.core.precision import scales_of, to_grid
from flexrel.io import encode
from flexrel.pruning import pack
from flexrel.repair import round_
from flexrel.repair.gptq import rounded
from flexrel_edge.format import describe
from networks import Convolutional


def second_moments(rows, inputs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(rows, inputs, generator=generator, dtype=torch.float64) @ mix
    return x.mT @ x / rows


def slow_rounded(weight, xx, largest, free):
    """Hassibi and Stork: round one input, update the others by the inverse, strike it out."""
    squares = xx.diag()
    scales = scales_of((weight * free).float(), largest, squares[None].float()).double()
    inverse = torch.linalg.inv(xx + 0.01 * squares.mean() * torch.eye(len(xx)))
    weight = weight.clone()
    for at in squares.argsort(descending=True, stable=True).tolist():
        goal = to_grid(weight[:, at, None], scales, largest)[:, 0] * free[:, at]
        off = (weight[:, at] - goal) / inverse[at, at]
        weight -= off[:, None] * inverse[at]
        weight[:, at] = goal
        inverse = inverse - inverse[:, at, None] * inverse[at] / inverse[at, at]
        inverse[at, at] = 1.0  # it takes no further part
        inverse[at, :at] = inverse[at, at + 1 :] = 0
        inverse[:at, at] = inverse[at + 1 :, at] = 0
    return weight


@given(
    inputs=st.integers(1, 12),
    outputs=st.integers(1, 4),
    largest=st.sampled_from([1, 7, 127]),
    sparse=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=80)
def test_weights_are_those_of_obs_one_input_after_the_other(inputs, outputs, largest, sparse, seed):
    torch.manual_seed(seed)
    weight = torch.randn(2, outputs, inputs, dtype=torch.float64)
    xx = torch.stack([second_moments(50, inputs, seed), second_moments(50, inputs, seed + 1)])
    free = torch.rand(weight.shape) < 0.6 if sparse else torch.ones(weight.shape, dtype=torch.bool)

    found = rounded(weight, xx, largest, free if sparse else None)

    for w, x, f, got in zip(weight, xx, free, found, strict=True):
        assert torch.allclose(got, slow_rounded(w, x, largest, f.double()), atol=1e-9)
    assert not bool(found[~free].any())


def test_many_inputs_go_in_blocks_and_outputs_change_less_than_by_the_nearest():
    weight, xx = torch.randn(1, 5, 300, dtype=torch.float64), second_moments(900, 300)[None]

    found = rounded(weight, xx, 7)[0]

    assert torch.allclose(found, slow_rounded(weight[0], xx[0], 7, torch.ones(5, 300)), atol=1e-9)
    flat = weight[0].float()
    nearest = to_grid(flat, scales_of(flat, 7, torch.ones(1, 300)), 7)
    errors = [float(((w - weight[0]) @ xx[0] * (w - weight[0])).sum()) for w in (found, nearest)]
    assert errors[0] < 0.6 * errors[1]


def test_inputs_that_are_always_zero_are_no_trouble():
    xx = second_moments(50, 4)
    xx[2], xx[:, 2] = 0, 0

    assert bool(rounded(torch.randn(1, 3, 4, dtype=torch.float64), xx[None], 7).isfinite().all())
    assert bool(rounded(torch.ones(1, 3, 4).double(), torch.zeros(1, 4, 4).double(), 7).all())


@pytest.mark.parametrize("values", ["int8", "int4"])
@pytest.mark.parametrize("seed", range(4))
def test_inputs_that_never_vary_leave_each_value_to_itself(values, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 5))
    with torch.no_grad():
        model[0].weight.zero_()  # what a hard cut may leave: the same inputs for every sample
        model[0].bias.uniform_(0.1, 3)
    nearest, fitted = copy.deepcopy(model), copy.deepcopy(model)
    round_(nearest, values)
    round_(fitted, values, [torch.randn(300, 6)])

    assert torch.equal(fitted[2].weight, nearest[2].weight)
    with torch.no_grad():
        goal, found = (network(torch.zeros(1, 6)) for network in (model, fitted))
    assert torch.allclose(found, goal, atol=2e-3)  # the bias has 16 bits


def trained_like(seed=0):
    torch.manual_seed(seed)
    model = Convolutional()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(16, 3, 8, 8))
    return model.eval()


def images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 8, 8, generator=generator)


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_on_data_outputs_move_less_than_without_and_the_file_is_as_small(values):
    model, seen, new = trained_like(), [images(64, 1), images(64, 2)], images(256, 3)
    state = copy.deepcopy(model.state_dict())
    nearest, fitted = copy.deepcopy(model), copy.deepcopy(model)
    round_(nearest, values)
    round_(fitted, values, seen)

    with torch.no_grad():
        goal = model(new)
        apart = [float((net(new) - goal).square().sum()) for net in (fitted, nearest)]
    assert apart[0] < 0.5 * apart[1]
    assert len(encode(fitted, values)) < 1.01 * len(encode(nearest, values))
    assert encode(fitted, values) == encode(fitted)  # all of it is on the grid already
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_zeros_stay_zeros():
    model = trained_like()
    with torch.no_grad():
        for module in (model.first, model.depthwise, model.head):
            module.weight.masked_fill_(torch.rand(module.weight.shape) < 0.5, 0)
    fitted = copy.deepcopy(model)
    round_(fitted, "int4", [images(64, 1)])

    for module in ("first", "depthwise", "head"):
        before, after = model.get_submodule(module).weight, fitted.get_submodule(module).weight
        assert not bool(after[before == 0].any())


def test_pack_rounds_a_copy(tmp_path):
    model, seen = trained_like(), [images(64, 1)]
    state = copy.deepcopy(model.state_dict())
    fitted = copy.deepcopy(model)
    round_(fitted, "int4", fitted_and_judged(seen, model)[0])

    done = pack(model, tmp_path / "m", "int4", calibration=iter(seen))

    data = (tmp_path / "m").read_bytes()
    assert data == encode(fitted, metadata=describe(data).metadata)
    assert done.bytes == len(data)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_too_few_samples_to_hold_any_out_round_each_value_by_itself():
    model = trained_like()
    nearest, fitted = copy.deepcopy(model), copy.deepcopy(model)
    round_(nearest, "int8")
    round_(fitted, "int8", [images(2, 1)])

    assert encode(fitted) == encode(nearest)


@pytest.mark.parametrize("recover", ["closed-form", "none"])
def test_prune_says_what_rounding_cost_and_measures_what_the_file_holds(recover, tmp_path):
    model = trained_like()
    batches = [images(64, seed) for seed in range(3)]
    asked = {"budgets": [Sparsity(0.3)], "criterion": Magnitude(), "recover": recover}

    result = prune(model, calibration=batches, values="int4", **asked)

    result.save(tmp_path / "out")
    data = (tmp_path / "out" / "model.flexrel").read_bytes()
    assert len(data) == result.achieved.bytes
    assert encode(result.model, metadata=describe(data).metadata) == data
    if recover == "none":
        assert result.recovery == ()
        return
    repair, rounding = result.recovery
    assert rounding.name == "rounding to int4"
    assert rounding.before == repair.after < rounding.after == result.achieved.divergence
    fine = prune(model, calibration=batches, values="float32", **asked)
    assert fine.achieved.divergence == pytest.approx(rounding.before)
    assert len(encode(result.model)) < 0.5 * len(encode(fine.model))


def test_rounding_comes_after_training():
    model = trained_like()
    batches = [(images(32, seed), torch.arange(32) % 5) for seed in range(4)]
    tune = flexrel.FineTune(epochs=1, data=batches, distillation=1.0)

    result = prune(
        model,
        calibration=batches,
        budgets=[Sparsity(0.3)],
        criterion=Magnitude(),
        values="int8",
        recover=tune,
    )

    assert encode(result.model) == encode(result.model, "int8")
    names = [step.name for step in result.recovery]
    assert names[0] == "closed-form"
    last = result.recovery[-1]
    assert last.name == "rounding to int8" or not last.kept


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_auto_goes_on_to_whole_numbers_where_float16_brings_nothing(dtype):
    model = trained_like().to(dtype)
    batches = [images(64, seed).to(dtype) for seed in range(3)]

    result = prune(
        model,
        calibration=batches,
        budgets=[Sparsity(0.3)],
        criterion=Magnitude(),
        values="auto",
    )

    assert result.values in ("int8", "int4")
