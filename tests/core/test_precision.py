"""What rounding does to a network: how far values move, and what the file then takes."""

import copy
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from flexrel import UsageError
from flexrel.core.precision import VALUES, scales_of, shortened, stored, to_grid
from flexrel.io import encode, load
from flexrel.pruning import pack
from flexrel.repair import round_

LARGEST = {"int8": 127, "int4": 7}
floats = st.floats(width=32)
ordinary = st.floats(-1e6, 1e6, width=32)


def network(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        *(nn.Conv2d(3, 20, 3), nn.BatchNorm2d(20), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(20 * 36, 30), nn.ReLU(), nn.Linear(30, 1)),
    )
    return net(torch.randn(9, 3, 8, 8)) is not None and net.eval()


def short(value):
    """The nearest number of 11 significant bits, by its definition."""
    if not math.isfinite(value) or value == 0:
        return value
    fraction, exponent = math.frexp(value)
    return math.ldexp(round(fraction * 2**11), exponent - 11)


@given(values=hnp.arrays(np.float32, st.integers(0, 20), elements=floats))
@settings(max_examples=200)
def test_vectors_keep_11_significant_bits(values):
    found = shortened(torch.from_numpy(values)).numpy()

    with np.errstate(over="ignore"):
        expected = np.array([short(v) for v in values.tolist()], np.float64).astype(np.float32)
    small = np.abs(values) < np.finfo(np.float32).tiny  # they have fewer bits
    assert np.array_equal(found[~small], expected[~small], equal_nan=True)
    assert (np.abs(found[small] - values[small]) <= 2.0**-137).all()


@given(
    rows=hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=ordinary),
    largest=st.sampled_from([7, 127]),
)
@example(rows=np.float32([[0, 1e-45]]), largest=7)
@settings(max_examples=200)
def test_of_the_scales_tried_each_row_gets_the_one_that_costs_least(rows, largest):
    rows = torch.from_numpy(rows)
    weights = torch.rand(1, rows.shape[1])

    scales = scales_of(rows, largest, weights)

    assert bool((scales > 0).all())
    for row, scale in zip(rows, scales, strict=True):
        top = float(row.abs().max())
        cost = float(((to_grid(row[None], scale[None], largest) - row) ** 2 * weights).sum())
        for clip in (1, 0.9, 0.75, 0.5):
            fraction, exponent = math.frexp(clip * top / largest)
            tried = math.ldexp(math.ceil(fraction * 256 - 1e-4), exponent - 8) or 1.0
            tried = torch.tensor([[tried]]).clamp_min(torch.finfo(torch.float32).tiny)
            other = float(((to_grid(row[None], tried, largest) - row) ** 2 * weights).sum())
            assert cost <= other * (1 + 1e-3) + 1e-30


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_matrices_become_whole_numbers_times_a_scale_for_each_output(values):
    model = network()
    rounded = copy.deepcopy(model)
    round_(rounded, values)

    for name, tensor in model.state_dict().items():
        found = rounded.state_dict()[name]
        if tensor.ndim < 2:
            assert torch.equal(found, shortened(tensor) if tensor.is_floating_point() else tensor)
            continue
        for old, new in zip(tensor.flatten(1), found.flatten(1), strict=True):
            exact = [Fraction(value) for value in new.tolist()]
            below = math.lcm(*[f.denominator for f in exact])
            whole = [int(f * below) for f in exact]
            assert max(map(abs, whole)) / math.gcd(*whole) <= LARGEST[values]
            assert float((new - old).abs().max()) <= float(old.abs().max()) / LARGEST[values] * 1.6


@pytest.mark.parametrize("values", VALUES)
def test_what_is_rounded_is_rounded_once_and_loads_as_it_is(values, tmp_path):
    model = network()
    rounded = copy.deepcopy(model)
    round_(rounded, values)

    assert encode(model, values) == encode(rounded, values)
    again = copy.deepcopy(rounded)
    round_(again, values)
    pack(model, tmp_path / "m", values)
    fresh = load(tmp_path / "m", into=network(1))
    for name, tensor in rounded.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
        assert torch.equal(fresh.state_dict()[name], tensor)
        assert fresh.state_dict()[name].dtype == tensor.dtype


def test_each_step_down_makes_a_smaller_file_and_moves_outputs_further():
    model, x = network(), torch.randn(64, 3, 8, 8)
    sizes, errors = [], []
    for values in ("float32", "float16", "int8", "int4"):
        rounded = copy.deepcopy(model)
        round_(rounded, values)
        sizes.append(len(encode(model, values)))
        with torch.no_grad():
            exact, found = model(x), rounded(x)
        errors.append(float((found - exact).square().mean() / exact.square().mean()))

    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert sizes[2] < 0.35 * sizes[0]
    assert sizes[3] < 0.6 * sizes[2]
    assert errors[2] < 1e-3 < errors[3] < 0.1


def test_zeros_stay_zeros_and_a_row_of_them_is_no_trouble():
    rows = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.3, -2.0], [-0.0, 1e-44, 0.0]])

    for values in ("int8", "int4"):
        found = stored("w", rows, values)
        assert bool((found[rows == 0] == 0).all())
        assert not bool(found[0].any())
        assert not bool(torch.signbit(found[found == 0]).any())


def test_whole_numbers_and_what_has_few_bits_already_stay():
    half, brain = torch.randn(2, 3).half(), torch.randn(2, 3).bfloat16()

    for values in VALUES:
        assert stored("w", torch.arange(6).view(2, 3), values).dtype == torch.int64
        assert torch.equal(stored("w", half[0], values), half[0])
        assert torch.equal(stored("w", brain[0], values), brain[0])
    for values in ("float32", "float16", "bfloat16"):
        assert stored("w", half, values) is half
        assert stored("w", brain, values) is brain
    wide = torch.randn(2, 3, dtype=torch.float64)
    assert stored("w", wide, "float32") is wide
    assert torch.equal(stored("w", wide, "float16"), wide.half())
    assert torch.equal(stored("w", wide, "bfloat16"), wide.bfloat16())


@given(values=hnp.arrays(np.float64, st.integers(0, 20), elements=ordinary))
def test_vectors_of_float64_keep_11_significant_bits(values):
    found = shortened(torch.from_numpy(values))

    assert found.tolist() == [short(v) for v in values.tolist()]


HALVES = [torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("values", ["int8", "int4"])
@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 1e4, "most"])
def test_products_of_scales_and_whole_numbers_are_numbers_of_the_dtype(dtype, values, size):
    torch.manual_seed(0)
    top = min(torch.finfo(dtype).max, 1e36) if size == "most" else size
    rows = torch.randn(40, 30, dtype=torch.float64)
    rows = (rows / rows.abs().amax(1, keepdim=True) * top).to(dtype)

    found = stored("w", rows, values)

    assert found.dtype == dtype
    assert bool(found.isfinite().all())
    for row in found.tolist():
        exact = [Fraction(value) for value in row]
        below = math.lcm(*[f.denominator for f in exact])
        whole = [int(f * below) for f in exact]
        assert max(map(abs, whole)) / max(math.gcd(*whole), 1) <= LARGEST[values]
    step = top / LARGEST[values] * (2 if dtype == torch.bfloat16 else 1.13)
    step = max(step, 2.0**-24 if dtype == torch.float16 else 0)  # float16 has none finer
    assert float((found.double() - rows.double()).abs().max()) <= 0.6 * step + 0.11 * top
    assert torch.equal(stored("w", found, values), found)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("values", ["int8", "int4"])
@pytest.mark.parametrize("seen", [0, 40])
def test_networks_of_any_precision_take_the_bytes_of_float32_and_load_bit_for_bit(
    dtype, values, seen, tmp_path
):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 90), nn.ReLU(), nn.Linear(90, 60)).to(dtype)
    batches = [torch.randn(seen, 100, dtype=dtype)] if seen else []
    rounded = copy.deepcopy(model)
    round_(rounded, values, batches)
    wide = copy.deepcopy(model).float()
    round_(wide, values, [batch.float() for batch in batches])
    pack(rounded, tmp_path / "m", values)
    fresh = load(tmp_path / "m", into=copy.deepcopy(model))

    assert (tmp_path / "m").read_bytes() == encode(rounded)  # all of it is on the grid already
    assert len(encode(rounded)) < 1.05 * len(encode(wide))
    x = torch.randn(64, 100, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(fresh(x), rounded(x))
        apart = [float((net(x) - model(x)).double().square().mean()) for net in (rounded, fresh)]
        apart += [float((wide(x.float()) - model(x)).double().square().mean())]
    assert apart[0] == apart[1] < 4.5 * apart[2] + 1e-4
    for name, tensor in rounded.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor)
        assert fresh.state_dict()[name].dtype == dtype


def test_what_scales_can_not_reach_is_refused_by_its_size():
    with pytest.raises(UsageError, match=r"w has a value of 1e\+300, which int8 can't hold"):
        stored("w", torch.tensor([[1.0, 1e300]], dtype=torch.float64), "int8")


@pytest.mark.parametrize("odd", [math.nan, math.inf])
@pytest.mark.parametrize("values", ["int8", "int4"])
def test_what_is_no_number_can_not_be_a_whole_one(odd, values):
    with pytest.raises(UsageError, match="w has a value that is no finite number, which int"):
        stored("w", torch.tensor([[1.0, odd]]), values)

    assert stored("w", torch.tensor([1.0, odd]), values)[0] == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("values", ["int8", "int4"])
def test_very_large_values_keep_a_scale_that_a_reader_takes(values, dtype):
    most = LARGEST[values] * 2.0**120
    rows = torch.tensor([[most, -1e-3 * most]]).to(dtype)

    model = nn.Linear(2, 1, bias=False)
    model.weight = nn.Parameter(stored("w", rows, values))

    assert model.weight[0, 0] == rows[0, 0]
    assert encode(model, values) == encode(model)


@pytest.mark.parametrize("seen", [0, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("values", "most"), [("int8", 2.0**127), ("int4", 2.0**123)])
def test_larger_values_are_refused_and_never_cut_off(values, most, dtype, seen):
    """Of the largest scale that a reader takes, 2^120, one more step is too far."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False)).to(dtype)
    with torch.no_grad():
        model[0].weight[0, 1] = most * 1.02
    batches = [torch.randn(seen, 2, dtype=dtype) * 1e-30] if seen else []

    with pytest.raises(UsageError, match=rf"0.weight has a value of .* which {values} can't hold"):
        round_(model, values, batches)


def test_all_of_float16_is_within_a_step_of_int8_and_int4():
    rows = torch.tensor([[65504.0, 1.0]], dtype=torch.float16)
    for values, largest in LARGEST.items():
        found = float(stored("w", rows, values)[0, 0])
        assert abs(found - 65504) <= 65504 / largest


def test_empty_matrices_are_no_trouble():
    assert stored("w", torch.zeros(0, 3), "int8").shape == (0, 3)
    assert stored("w", torch.zeros(3, 0), "int4").shape == (3, 0)
