"""Zeros by blocks and by groups: every bit comes back, and the mask takes what it has to say."""

import hashlib
import itertools
import math
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexrel_edge import PackError, decode, encode
from flexrel_edge.container import header_of
from flexrel_edge.difference import difference
from flexrel_edge.format import Reader, describe
from flexrel_edge.index import canonical
from flexrel_edge.positions import likely, masks_of, parted
from flexrel_edge.records import Blocks, Groups
from flexrel_edge.source import InMemory
from flexrel_edge.tensor import encode_stored
from flexrel_edge.update import Update

DTYPES = ["float16", "float32", "float64", "int8", "int64", "uint16"]
PLACES = {"linear": (256, 512), "convolution": (64, 128, 3, 3)}


def rng(seed=0):
    return np.random.default_rng(seed)


def n_of_m(shape, kept, size, axis, seed=0):
    """A mask of the largest `kept` random scores in every `size` along an axis."""
    score = np.moveaxis(rng(seed).random(shape), axis, -1)
    parts = score.reshape(*score.shape[:-1], -1, size)
    mask = parts.argsort(-1).argsort(-1) < kept
    return np.moveaxis(mask.reshape(score.shape), -1, axis)


def by_block(shape, rows, columns, density, seed=0):
    """A mask of whole blocks of the matrix."""
    matrix = (shape[0] // rows, math.prod(shape[1:]) // columns)
    kept = rng(seed).random(matrix) < density
    return kept.repeat(rows, 0).repeat(columns, 1).reshape(shape)


def kept_of(mask, dtype, seed=1):
    """Random bits, none of them zero, where the mask is true; elsewhere zero."""
    values = rng(seed).standard_normal(mask.shape).astype(np.float32)
    if np.dtype(dtype).kind != "f":
        values = np.rint(values * 30) + np.where(values < 0, -1, 1)
    return np.where(mask, values, 0).astype(dtype)


def tensor_in(data):
    (entry,) = describe(data).tensors
    return entry


@st.composite
def patterned(draw):
    """A tensor, and a pattern that divides it, whatever its zeros are."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    shape = [rows * draw(st.integers(1, 3)), columns * draw(st.integers(1, 3))]
    shape += draw(st.lists(st.integers(1, 3), max_size=2))
    axis = draw(st.integers(0, len(shape) - 1))
    size = draw(st.integers(2, 8))
    shape[axis] *= size
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    bits = rng(draw(st.integers(0, 99))).integers(1, 100, shape).astype(f"u{dtype.itemsize}")
    seed, density = draw(st.integers(0, 99)), draw(st.sampled_from([0.0, 0.1, 0.5, 0.9]))
    blocks = rows * columns > 1 and math.prod(shape[1:]) % columns == 0
    if blocks and draw(st.booleans()):
        mask = by_block(shape, rows, columns, density, seed) & (rng(seed).random(shape) < 0.8)
        return np.where(mask, bits, 0).view(dtype), Blocks(rows, columns, 0)
    mask = rng(seed).random(shape) < density
    return np.where(mask, bits, 0).astype(bits.dtype).view(dtype), Groups(size, axis)


def file_of(tensor, pattern):
    """A file whose tensor is coded by the pattern, whether or not that is shorter."""
    coded = encode_stored(tensor, None, "pcodec-1", sparse=True, pattern=pattern)
    row = ["w", tensor.dtype.name, list(tensor.shape), coded.kept]
    row += [coded.values.codec, len(coded.values), coded.positions.codec, len(coded.positions)]
    row.append([*vars(coded.pattern).values()])
    return sealed(row, b"".join(part.data for part in coded.parts))


def sealed(row, parts):
    index = zlib.compress(canonical({"metadata": {}, "tensors": [row]}), 9)
    sha256 = hashlib.sha256(index + parts).hexdigest()
    return header_of(sha256, len(index), len(parts)) + index + parts


@given(found=patterned())
@settings(max_examples=400)
def test_every_bit_comes_back(found):
    tensor, pattern = found
    kept = np.count_nonzero(tensor)
    blocks = isinstance(pattern, Blocks)
    whole = blocks and parted(tensor, pattern)[2].kept == tensor.size // math.prod(
        (pattern.rows, pattern.columns)
    )
    if whole or kept == tensor.size:  # then it must be dense, or said otherwise
        with pytest.raises(PackError, match=r"no zero|does not fit"):
            decode(file_of(tensor, pattern))
        return

    again = decode(file_of(tensor, pattern)).tensors["w"]

    assert again.tobytes() == tensor.tobytes()
    assert again.shape == tensor.shape


def entropy_of(mask, groups):
    """Bytes of so many masks of a group, each as likely."""
    return math.log2(groups) * mask.size / 8


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize(("kept", "size"), [(2, 4), (1, 4), (2, 8)])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("axis", [0, 1])
def test_n_of_m_takes_what_it_has_to_say(place, kept, size, axis, dtype):
    mask = n_of_m(PLACES[place], kept, size, axis)

    entry = tensor_in(encode({"w": kept_of(mask, dtype)}))

    assert entry.pattern == Groups(size, axis)
    bound = math.log2(math.comb(size, kept)) * mask.size / size / 8
    assert bound <= entry.positions_bytes < 1.02 * bound + 40


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (1, 16), (16, 1), (2, 32)])
@pytest.mark.parametrize("place", PLACES)
def test_blocks_take_what_they_have_to_say(place, rows, columns, dtype):
    mask = by_block(PLACES[place], rows, columns, 0.2)
    count = mask.size // (rows * columns)
    kept = int(np.count_nonzero(mask)) // (rows * columns)

    entry = tensor_in(encode({"w": kept_of(mask, dtype)}))

    assert entry.pattern == Blocks(rows, columns, kept)
    bound = math.log2(math.comb(count, kept)) / 8
    assert entry.positions_bytes < 1.03 * bound + 40


def test_whole_kernels_of_a_convolution_are_blocks_too():
    mask = by_block((64, 128, 3, 3), 1, 9, 0.3)

    assert tensor_in(encode({"w": kept_of(mask, "float32")})).pattern == Blocks(
        1, 9, int(np.count_nonzero(mask)) // 9
    )


def test_blocks_may_have_zeros_as_rounding_leaves_them():
    mask = by_block((256, 512), 4, 4, 0.2)
    values = np.where(mask, rng().integers(-3, 4, mask.shape), 0).astype(np.float32)

    data = encode({"w": values * np.float32(0.5)})

    entry = tensor_in(data)
    assert (entry.pattern.rows, entry.pattern.columns) == (4, 4)
    assert entry.kept < entry.stored
    assert np.array_equal(decode(data).tensors["w"], values * np.float32(0.5))


@pytest.mark.parametrize("shape", [(1000,), (64, 64), (8, 8, 3, 3), (0, 4), (4, 0), ()])
def test_zeros_one_by_one_are_gaps(shape):
    values = np.where(rng().random(shape) < 0.3, 1.5, 0).astype(np.float32)

    assert tensor_in(encode({"w": values})).pattern is None
    assert likely(values, 10**9 if values.ndim < 2 or not values.any() else 0) == []


def test_blocks_of_which_none_is_zero_are_not_tried():
    board = np.indices((16, 144)).sum(0) % 2  # every block of two has one

    assert not any(isinstance(p, Blocks) for p in likely(board.astype(np.int8), 10**6))


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_an_update_of_such_tensors_makes_the_new_file(precision):
    def network(seed):
        masks = n_of_m((64, 128, 3, 3), 2, 4, 1, seed), by_block((128, 256), 4, 4, 0.3, seed)
        return {name: kept_of(mask, precision) for name, mask in zip("ab", masks, strict=True)}

    old, new = encode(network(0)), encode(network(0) | {"b": network(1)["b"]})
    before, after = Reader(InMemory(old)), Reader(InMemory(new))

    update = difference(before, after)

    assert b"".join(Update(InMemory(update)).pieces(before)) == new
    assert {entry.pattern is None for entry in after.contents.tensors} == {False}


def u4(*values):
    return np.uint32(values).tobytes()


# Codes of a bit for each element of a group, the first the lowest; blocks counted row by row.
BY_HAND = [
    (
        ["w", "uint8", [2, 4], 3, "raw", 3, "raw", 2, [4, 1]],
        b"123\x05\x08",
        [*b"1\x002\0\0\0\x003"],
    ),
    (["w", "uint8", [2, 4], 3, "raw", 3, "raw", 4, [2, 0]], b"123\1\0\2\2", [*b"1\0\0\0\0\x0023"]),
    (
        ["w", "uint8", [2, 4], 3, "raw", 4, "raw", 4, [2, 2, 1]],
        b"12\x003" + u4(1),
        [*b"\0\x0012\0\0\x003"],
    ),
]


@pytest.mark.parametrize(("row", "parts", "values"), BY_HAND)
def test_what_is_written_by_hand_means_what_the_document_says(row, parts, values):
    assert decode(sealed(row, parts)).tensors["w"].reshape(-1).tolist() == values


@pytest.mark.parametrize(
    ("changes", "parts", "reason"),
    [
        ({8: [4, 2]}, b"123\x05\x08", "does not fit"),
        ({8: [4, -1]}, b"123\x05\x08", "does not fit"),
        ({8: [3, 1]}, b"123\x05\x08", "does not fit"),
        ({8: [1, 1]}, b"123\x05\x08", "does not fit"),
        ({2: [16], 8: [16, 0]}, b"123\x05\x08", "does not fit"),
        ({2: [0, 4]}, b"123\x05\x08", "keeps 3 of 0"),
        ({2: [0, 4], 3: 0, 5: 0, 7: 0}, b"", "does not fit"),
        ({8: [4]}, b"123\x05\x08", "has a pattern that is none: [4]"),
        ({8: []}, b"123\x05\x08", "has a pattern that is none: []"),
        ({8: [4, True]}, b"123\x05\x08", "has a pattern that is none"),
        ({8: [4, 1.0]}, b"123\x05\x08", "has a pattern that is none"),
        ({8: [1, 2, 3, 4]}, b"123\x05\x08", "has a pattern that is none"),
        ({8: None}, b"123\x05\x08", "an index row"),
        ({6: None, 7: 0, 5: 8}, b"12345678", "an index row"),
        ({7: 3}, b"123\x05\x08\0", "raw takes exactly 2"),
        ({}, b"123\x15\x08", "beyond its bits"),
        ({}, b"123\x05\x0c", "found another number in its groups"),
        ({}, b"123\x05\0", "found another number in its groups"),
        ({}, b"1\x003\x05\x08", "kept position is zero"),
        ({8: [2, 2, 1]}, b"123\x05\x08", "raw takes exactly 4"),
        ({8: [2, 3, 1]}, b"", "does not fit"),
        ({8: [3, 2, 1]}, b"", "does not fit"),
        ({8: [1, 1, 3]}, b"", "does not fit"),
        ({8: [0, 2, 1]}, b"", "does not fit"),
        ({8: [-2, -2, 1]}, b"", "does not fit"),
        ({8: [2, 2, 2]}, b"", "does not fit"),
        ({8: [2, 2, 0]}, b"", "does not fit"),
        ({8: [2, 2, -1]}, b"", "does not fit"),
        ({3: 5, 8: [2, 2, 1]}, b"", "does not fit"),
        ({8: [2, 2, 1], 5: 4, 7: 4}, b"12\x003" + u4(2), "beyond the 2 elements"),
        ({8: [2, 2, 1], 5: 4, 7: 4}, b"1234" + u4(0), "its blocks have another number"),
        (
            {3: 2, 8: [1, 2, 2], 5: 4, 7: 8},
            b"12\0\0" + u4(0, 0),
            "block at a kept position is zero",
        ),
    ],
)
def test_a_hostile_pattern_is_refused(changes, parts, reason):
    row = list(BY_HAND[0][0])
    for place, value in changes.items():
        row[place] = value

    with pytest.raises(PackError) as caught:
        decode(sealed(row, parts))

    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_masks_come_in_stretches_that_together_are_the_tensor():
    shape = (5, 2**13, 3)
    mask = rng().random(shape) < 0.5
    codes, _, _ = parted(mask.astype(np.int8), Groups(8, 1))

    found = list(masks_of(codes, shape, Groups(8, 1)))

    assert len(found) > 1
    starts, parts = zip(*found, strict=True)
    assert np.array_equal(np.concatenate(parts), mask.reshape(-1))
    ends = itertools.accumulate(map(len, parts), initial=0)
    assert list(starts) == list(ends)[:-1]
