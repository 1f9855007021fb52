"""Weights that were rounded to a grid take a byte a value, without anybody telling the packer."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flexrel_edge import Bfloat16, decode, encode
from flexrel_edge.codec import RUN
from flexrel_edge.format import describe
from flexrel_edge.scales import LARGEST, MAX_SCALE, on_grid, scaled

scales = st.floats(2.0**-149, 2.0**40, width=32)
steps = st.one_of(scales, scales.map(lambda s: float(np.float32(np.ldexp(1, math.frexp(s)[1])))))


@st.composite
def rounded(draw):
    """Rows of whole numbers times a step; some rows are zero, some numbers too large for 8 bits."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(0, 6))
    largest = draw(st.sampled_from([1, 7, 127, 127, 128, 300]))
    whole = draw(hnp.arrays(np.int32, (rows, columns), elements=st.integers(-largest, largest)))
    step = draw(hnp.arrays(np.float32, (rows, 1), elements=steps))
    return (whole * step).astype(np.float32) + np.float32(0)  # no minus zeros


def slow_grid(values):
    """The same by exact fractions, a row at a time; None where 8 bits don't do."""
    found = []
    for row in values.tolist():
        exact = [Fraction(value) for value in row]
        below = math.lcm(*[f.denominator for f in exact])
        step = Fraction(math.gcd(*[int(f * below) for f in exact]), below) or Fraction(1)
        whole = [int(f / step) for f in exact]
        if max(map(abs, whole), default=0) > LARGEST or step > MAX_SCALE:
            return None
        found.append((whole, float(step)))
    return found


@given(values=rounded())
@settings(max_examples=300)
def test_the_largest_step_that_divides_a_row_is_found_exactly(values):
    found, expected = on_grid(values), slow_grid(values)

    if expected is None:
        assert found is None
    else:
        assert found[0].tolist() == [whole for whole, _ in expected]
        assert found[1].tolist() == [step for _, step in expected]
        assert scaled(found[0], found[1][:, None]).tobytes() == values.tobytes()


@pytest.mark.parametrize(
    "odd", [np.nan, np.inf, -0.0, 1 / 3, 2.0**121], ids=["nan", "inf", "minus zero", "off", "huge"]
)
@pytest.mark.parametrize("row", [0, 3])
def test_one_value_that_no_scale_fits_is_enough(odd, row):
    values = np.tile(np.float32([0.5, -1, 0, 63.5]), (4, 1))
    assert on_grid(values) is not None

    values[row, 2] = odd

    assert on_grid(values) is None


def test_blocks_of_rows_make_no_difference(monkeypatch):
    rng = np.random.default_rng(0)
    step = 2.0 ** rng.integers(-9, 9, (50, 1))
    values = (rng.integers(-127, 128, (50, 40)) * step).astype(np.float32)
    whole, steps = on_grid(values)

    monkeypatch.setattr("flexrel_edge.scales._BLOCK", 90)

    again = on_grid(values)
    assert np.array_equal(again[0], whole)
    assert np.array_equal(again[1], steps)


@given(
    values=rounded(), tile=st.integers(1, 40), shape=st.sampled_from([(-1,), (-1, 1), (1, -1, 1)])
)
@settings(max_examples=200)
def test_every_bit_comes_back(values, tile, shape):
    tensor = np.tile(values, (1, tile)).reshape(len(values), *shape) if values.size else values

    assert decode(encode({"w": tensor})).tensors["w"].tobytes() == tensor.tobytes()


@pytest.mark.parametrize("largest", [7, 127])
@pytest.mark.parametrize("zeros", [0.0, 0.9])
def test_rounded_weights_take_hardly_more_than_the_entropy_of_the_whole_numbers(largest, zeros):
    rng = np.random.default_rng(0)
    rows, columns = 128, 2 * RUN // 128 * (10 if zeros else 1)
    whole = np.rint(rng.standard_normal((rows, columns)) * largest / 4).clip(-largest, largest)
    whole[whole == 0] = 1
    whole[rng.random((rows, columns)) < zeros] = 0
    tensor = (whole * rng.uniform(0.01, 0.02, (rows, 1)).astype(np.float16)).astype(np.float32)

    data = encode({"w": tensor})

    _, counts = np.unique(whole, return_counts=True)
    shares = counts / tensor.size
    entropy = -float((shares * np.log2(shares)).sum()) * tensor.size / 8
    (entry,) = describe(data).tensors
    assert (entry.kind, entry.scales_codec is None) == ("sparse" if zeros else "dense", False)
    assert len(data) < 1.02 * (entropy + 4 * rows)
    assert decode(data).tensors["w"].tobytes() == tensor.tobytes()


@pytest.mark.parametrize(
    "tensor",
    [
        np.float32([[1, 2], [4, 3]]),  # scales would take more than they save
        np.arange(100, dtype=np.float32),  # a vector has no rows
        np.arange(100).reshape(10, 10),  # only floating dtypes are scaled
        np.zeros((0, 5), np.float32),
        np.zeros((5, 0), np.float32),
        np.array(5, np.float32),
    ],
)
def test_where_scales_bring_nothing_there_are_none(tensor):
    data = encode({"w": tensor})

    assert describe(data).tensors[0].scales_codec is None
    assert np.array_equal(decode(data).tensors["w"], tensor)


def bfloat16_of(values):
    """The upper halves of float32 values that need no more."""
    bits = values.astype(np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return Bfloat16((bits >> 16).astype(np.uint16))


@pytest.mark.parametrize("make", [np.float16, bfloat16_of, np.float64])
@pytest.mark.parametrize("zeros", [0.0, 0.9])
def test_other_floating_dtypes_are_scaled_too_and_come_back_bit_for_bit(make, zeros):
    rng = np.random.default_rng(0)
    whole = rng.integers(-127, 128, (64, 300)) * (rng.random((64, 300)) >= zeros)
    steps = 2.0 ** rng.integers(-12, -7, (64, 1))
    tensor = make(whole * steps)

    data = encode({"w": tensor})
    found = decode(data).tensors["w"]

    assert len(data) < len(encode({"w": np.float32(whole * steps)})) + 60
    (entry,) = describe(data).tensors
    assert entry.scales_codec is not None
    bits = [t.bits if isinstance(t, Bfloat16) else t for t in (found, tensor)]
    assert bits[0].dtype == bits[1].dtype
    assert bits[0].tobytes() == bits[1].tobytes()


@given(
    whole=hnp.arrays(np.int8, 20, elements=st.integers(-127, 127)),
    step=st.floats(2.0**-149, MAX_SCALE, width=32, exclude_min=True),
)
@settings(max_examples=200)
def test_a_product_that_a_half_does_not_hold_is_the_nearest_of_it(whole, step):
    steps = np.float32([step])
    wide = torch.from_numpy(whole.astype(np.float32) * steps)

    bits = scaled(whole, steps, "bfloat16")
    assert np.array_equal(bits.view(np.int16), wide.bfloat16().view(torch.int16).numpy())
    assert np.array_equal(scaled(whole, steps, "float16"), wide.half().numpy())
    assert np.array_equal(scaled(whole, steps, "float64"), wide.double().numpy())


@pytest.mark.parametrize("odd", [1 / 3, np.nan, np.inf, 1e300, 1 + 2.0**-40])
def test_float64_that_is_no_float32_is_on_no_grid(odd):
    values = np.tile(np.float64([0.5, -1, 0, 63.5]), (4, 1))
    assert on_grid(values, "float64") is not None

    values[2, 1] = odd

    assert on_grid(values, "float64") is None


@pytest.mark.parametrize("count", [4, 16, 64])
def test_few_values_as_from_a_code_book_take_hardly_more_than_their_entropy(count):
    rng = np.random.default_rng(0)
    book = rng.standard_normal(count).astype(np.float32)
    shares = rng.dirichlet(np.ones(count))
    tensor = rng.choice(book, RUN, p=shares)

    data = encode({"w": tensor})

    _, counts = np.unique(tensor, return_counts=True)
    entropy = -float((counts * np.log2(counts / len(tensor))).sum()) / 8
    assert len(data) < 1.02 * entropy
    assert decode(data).tensors["w"].tobytes() == tensor.tobytes()
