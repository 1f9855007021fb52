"""What goes in comes out, bit for bit but -0.0; and nothing is stored the long way."""

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import flexrel_edge
from flexrel_edge import Bfloat16, FlexrelError, decode, encode
from flexrel_edge.codec import RUN
from flexrel_edge.format import describe

NUMPY_DTYPES = [
    *("float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
]
INF, SUBNORMAL = 0x7C00, 0x0001  # float16, as are the two NaNs
QUIET_NAN, SIGNALLING_NAN = 0x7E2A, 0xFC01

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = text.filter(bool)


@st.composite
def arrays(draw):
    """Any bits in any dtype and shape; many zeros, so that sparse coding is tried."""
    dtype = np.dtype(draw(st.sampled_from(NUMPY_DTYPES)))
    bits = np.dtype(f"u{dtype.itemsize}")
    top = 1 if dtype == np.bool_ else np.iinfo(bits).max
    some = st.one_of(st.just(0), st.integers(0, top))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    return draw(hnp.arrays(bits, shape, elements=some, fill=st.just(0))).view(dtype)


@st.composite
def long_arrays(draw):
    """Long enough for pcodec to pay; smooth values, so that it finds something."""
    dtype = np.dtype(draw(st.sampled_from(NUMPY_DTYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.standard_normal(draw(st.integers(1, 3000))) * 30
    values[rng.random(len(values)) < draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))] = 0
    return np.abs(values).astype(dtype) if dtype.kind in "bu" else values.astype(dtype)


def same(left, right):
    if isinstance(left, Bfloat16) or isinstance(right, Bfloat16):
        return same(left.bits, right.bits)
    return (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())


def without_minus_zeros(tensor):
    """The tensor element by element, 0.0 where it is -0.0."""
    if tensor.dtype.kind != "f":
        return tensor
    bits = tensor.copy().view(f"u{tensor.itemsize}").reshape(-1)
    for at, value in enumerate(tensor.reshape(-1)):
        if value == 0:
            bits[at] = 0
    return bits.view(tensor.dtype).reshape(tensor.shape)


def round_trip(tensor):
    return decode(encode({"w": tensor})).tensors["w"]


@given(tensor=st.one_of(arrays(), long_arrays()))
@settings(max_examples=400)
def test_every_bit_comes_back(tensor):
    assert same(round_trip(tensor), without_minus_zeros(tensor))


@given(tensors=st.dictionaries(names, arrays(), max_size=4), metadata=st.dictionaries(text, text))
def test_names_and_metadata_come_back_and_encoding_again_gives_the_same_bytes(tensors, metadata):
    data = encode(tensors, metadata=metadata)

    packed = decode(data)

    assert packed.metadata == metadata
    assert list(packed.tensors) == sorted(tensors)
    assert all(same(packed.tensors[name], without_minus_zeros(tensors[name])) for name in tensors)
    assert encode(packed.tensors, metadata=packed.metadata) == data


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3), (4, 4, 4)])
@pytest.mark.parametrize("fill", [0, 1])
def test_all_zero_and_all_kept_in_every_dtype(dtype, shape, fill):
    tensor = np.full(shape, fill, dtype)

    assert same(round_trip(tensor), tensor)


def test_bits_that_arithmetic_would_change_come_back_and_count_as_kept():
    odd = [INF, SUBNORMAL, QUIET_NAN, SIGNALLING_NAN]
    sparse = np.array(odd + [0] * 95, np.uint16).view(np.float16)
    data = encode({"dense": sparse[:4], "sparse": sparse})

    tensors = decode(data).tensors

    assert tensors["dense"].view(np.uint16).tolist() == odd
    assert tensors["sparse"].view(np.uint16).tolist() == odd + [0] * 95
    assert [(entry.kind, entry.kept) for entry in describe(data).tensors] == [
        ("dense", 4),
        ("sparse", 4),
    ]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("layout", ["sparse", "dense", "scaled", "groups", "blocks"])
def test_a_zero_of_either_sign_is_a_zero_and_comes_back_as_plus_zero(dtype, layout):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 64)).astype(np.float16).astype(np.float32)
    mask = rng.random((64, 64)) < 0.1
    if layout == "groups":
        mask = np.argsort(np.argsort(rng.random((64, 16, 4)), -1), -1).reshape(64, 64) < 2
    if layout == "blocks":
        mask = np.kron(rng.random((16, 16)) < 0.2, np.ones((4, 4))) != 0
    if layout == "scaled":
        weight = np.float32(rng.integers(1, 128, (64, 64)) * rng.choice([-1, 1], (64, 64)) / 64)
    if layout == "dense":
        mask = rng.random((64, 64)) < 0.99
    plain, signed = np.where(mask, weight, np.float32(0)), weight * mask
    assert np.signbit(signed[~mask]).any()
    if dtype == "bfloat16":
        plain, signed = ((t.view(np.uint32) >> 16).astype(np.uint16) for t in (plain, signed))
        plain, signed = Bfloat16(plain), Bfloat16(signed)
    else:
        plain, signed = plain.astype(dtype), signed.astype(dtype)

    assert encode({"w": signed}) == encode({"w": plain})
    assert same(round_trip(signed), plain)


def test_the_integer_that_looks_like_minus_zero_stays():
    tensor = np.array([-(2**31), 0, 5], np.int32)

    assert same(round_trip(tensor), tensor)
    assert same(round_trip(tensor.view(np.uint32)), tensor.view(np.uint32))


@pytest.mark.parametrize("zeros", [0.0, 0.9])
def test_more_than_one_run(zeros):
    rng = np.random.default_rng(0)
    tensor = rng.integers(1, 200, int(2.5 * RUN / (1 - zeros))).astype(np.uint16)
    tensor[rng.random(len(tensor)) < zeros] = 0
    data = encode({"w": tensor})

    (entry,) = describe(data).tensors
    assert entry.kept > 2 * RUN
    assert entry.values_codec == "pcodec-1"
    assert same(decode(data).tensors["w"], tensor)


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 50)])
def test_bfloat16_bits_come_back_and_are_read_as_the_float32_of_the_same_value(shape, tmp_path):
    rng = np.random.default_rng(0)
    bits = np.array(rng.integers(0, 2**16, shape), np.uint16)
    path = tmp_path / "w.flexrel"
    flexrel_edge.write(path, {"w": Bfloat16(bits)})

    assert same(decode(path.read_bytes()).tensors["w"], Bfloat16(bits))
    read = flexrel_edge.read(path)["w"]
    # A float32 is little-endian; its upper two bytes are the bfloat16, its lower two are zero.
    halves = np.frombuffer(read.tobytes(), "<u2").reshape(*shape, 2)
    assert (read.dtype, read.shape) == (np.float32, shape)
    assert np.array_equal(halves[..., 1], bits)
    assert not halves[..., 0].any()


@pytest.mark.parametrize(
    "odd",
    [
        np.arange(12, dtype=">f4").reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(24.0)[::-2],
        np.broadcast_to(np.float32(3), (2, 3)),
    ],
    ids=["big-endian", "column-major", "strided", "broadcast"],
)
def test_memory_layout_does_not_matter(odd):
    tensor = round_trip(odd)

    assert np.array_equal(tensor, odd)
    assert tensor.dtype == odd.dtype.newbyteorder("=")


def test_what_comes_back_is_the_readers_own_memory():
    data = encode({"raw": np.arange(3), "flag": np.array([True]), "coded": np.arange(1000)})

    for tensor in decode(data).tensors.values():
        tensor[0] = 7

    assert decode(data).tensors["raw"].tolist() == [0, 1, 2]


@given(st.permutations(["b", "a", "ä", "a.b"]))
def test_the_order_of_tensors_does_not_change_the_bytes(order):
    tensors = {name: np.frombuffer(name.encode(), np.uint8) for name in order}

    assert encode(tensors) == encode(dict(sorted(tensors.items())))


@given(tensor=st.one_of(arrays(), long_arrays()))
def test_no_tensor_takes_more_than_its_plain_bytes(tensor):
    (entry,) = describe(encode({"w": tensor})).tensors

    assert entry.bytes <= tensor.nbytes
    assert entry.total == tensor.size
    assert entry.kept == np.count_nonzero(np.frombuffer(tensor.tobytes(), f"u{tensor.itemsize}"))


def test_a_pruned_tensor_takes_hardly_more_than_its_entropy():
    rng = np.random.default_rng(0)
    n, density = 1_000_000, 0.1
    tensor = np.where(rng.random(n) < density, rng.choice([-1, 1], n), 0).astype(np.float32)
    # Kept or not: the binary entropy a position; -1 or 1: one bit a kept element.
    bits = n * -(density * np.log2(density) + (1 - density) * np.log2(1 - density)) + n * density

    (entry,) = describe(encode({"w": tensor})).tensors

    assert 0.99 < entry.bytes / (bits / 8) < 1.02


def test_int8_takes_hardly_more_than_its_entropy():
    counts = [2**k for k in range(14)]  # value k occurs 2**k times, in random order
    values = np.random.default_rng(0).permutation(np.repeat(np.arange(1, 15), counts))
    shares = np.array(counts) / sum(counts)
    bits = len(values) * -(shares * np.log2(shares)).sum()

    (entry,) = describe(encode({"w": values.astype(np.int8)})).tensors

    assert entry.bytes / (bits / 8) < 1.05


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"": np.zeros(1)}, "use a non-empty text"),
        ({"\ud800": np.zeros(1)}, "use a non-empty text"),
        ({"w": np.zeros(1, complex)}, "complex128"),
        ({"w": np.array(["text"])}, "dtype str"),
        ({"w": np.array([None])}, "object"),
        ({"w": np.uint8([0, 2]).view(np.bool_)}, "neither 0 nor 1"),
    ],
)
def test_what_cannot_be_packed_is_refused_by_name(tensors, reason):
    with pytest.raises(FlexrelError, match=reason) as caught:
        encode(tensors)

    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="needs 33 axes")
def test_too_many_axes_are_refused():
    with pytest.raises(FlexrelError, match="32 axes"):
        encode({"w": np.zeros((1,) * 33)})


def test_metadata_that_are_no_utf8_are_refused():
    with pytest.raises(FlexrelError, match="metadata"):
        encode({}, metadata={"by": "\udfff"})


def test_more_metadata_than_a_reader_takes_are_refused():
    with pytest.raises(FlexrelError, match="version 1 allows 4194304"):
        encode({}, metadata={"note": "x" * 2**24})


def test_metadata_that_repeat_come_back_though_readers_bound_how_far_an_index_expands():
    metadata = {"text": "a" * 10**6}

    assert flexrel_edge.decode(encode({}, metadata=metadata)).metadata == metadata


def test_bfloat16_bits_of_another_width_are_refused():
    with pytest.raises(FlexrelError, match="uint16, found uint32"):
        Bfloat16(np.zeros(1, np.uint32))


@given(tensors=st.dictionaries(names, arrays(), max_size=3))
@settings(max_examples=50)
def test_a_file_is_a_safetensors_file_of_two_tensors(tensors):
    """Their own reader is the judge."""
    data = encode(tensors)

    outer = safetensors.numpy.load(data)

    assert {name: (part.dtype, part.ndim) for name, part in outer.items()} == {
        "index": (np.uint8, 1),
        "data": (np.uint8, 1),
    }
    assert data.endswith(outer["index"].tobytes() + outer["data"].tobytes())
