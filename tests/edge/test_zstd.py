"""The codec for devices that pcodec has no wheel for: the same tensors in somewhat larger files."""

import hashlib
import json
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import flexrel_edge
from flexrel_edge import FlexrelError, PackError
from flexrel_edge.codec import Part, decode_part, encode_run
from flexrel_edge.format import describe
from flexrel_edge.records import STORAGE

zstd = pytest.importorskip(
    "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd",
    reason="the extra zstd is not installed",
)
RNG = np.random.default_rng(0)
DTYPES = [np.dtype(name) for name in STORAGE if name != "bfloat16"]


def codecs_of(data):
    return {codec for entry in describe(data).tensors for codec, _ in entry.lengths} - {None}


@given(st.data(), st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_side=40, min_side=0))
def test_every_bit_comes_back(data, dtype, shape):
    tensor = data.draw(hnp.arrays(dtype, shape))
    tensor[tensor == 0] = 0  # of either sign

    packed = flexrel_edge.encode({"t": tensor}, codec="zstd-1")

    found = flexrel_edge.decode(packed).tensors["t"]
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert found.tobytes() == tensor.tobytes()
    assert codecs_of(packed) <= {"raw", "zstd-1"}


def test_a_run_is_a_frame_of_the_elements_bytes_by_their_place():
    values = np.arange(1000, dtype="<u4") * 70000
    packed = flexrel_edge.encode({"t": values}, codec="zstd-1")
    entry = describe(packed).tensors[0]
    assert (entry.values_codec, entry.positions_codec) == ("zstd-1", None)

    frame = packed[-entry.bytes :][: entry.values_bytes]

    planes = np.frombuffer(zstd.decompress(frame), np.uint8).reshape(4, -1)
    assert planes.T.copy().view("<u4").ravel().tolist() == values.tolist()


def test_long_and_pruned_and_scaled_tensors_come_back_and_are_smaller_than_plain():
    long = np.where(RNG.random(600_000) < 0.2, RNG.standard_normal(600_000), 0).astype(np.float32)
    whole = RNG.integers(-127, 128, (300, 1000)).astype(np.float32) * np.float32(3 / 256)

    packed = flexrel_edge.encode({"long": long, "whole": whole}, codec="zstd-1")

    found = flexrel_edge.decode(packed).tensors
    assert found["long"].tobytes() == long.tobytes()
    assert found["whole"].tobytes() == whole.tobytes()
    kept = np.count_nonzero(long)
    assert len(packed) < 1.05 * (4 * kept + 600_000 * 0.722 / 8 + whole.size)


def test_updates_lead_from_either_codec_to_either(tmp_path):
    old = RNG.standard_normal((200, 300)).astype(np.float32)
    new = np.where(RNG.random(old.shape) < 0.01, 0, old)
    for before in ("pcodec-1", "zstd-1"):
        for after in ("pcodec-1", "zstd-1"):
            flexrel_edge.write(tmp_path / "old", {"w": old}, codec=before)
            size = flexrel_edge.write(tmp_path / "new", {"w": new}, codec=after)
            assert flexrel_edge.diff(tmp_path / "old", tmp_path / "new", tmp_path / "up") < size / 9

            flexrel_edge.patch(tmp_path / "old", tmp_path / "up", tmp_path / "out")

            assert (tmp_path / "out").read_bytes() == (tmp_path / "new").read_bytes()


VALUES = np.arange(100, dtype="<u4")
FRAME = encode_run(VALUES, "zstd-1")


def wide(data):
    """A frame that asks for a window of 2^27 bytes."""
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.strategy: 1}
    compressor = zstd.ZstdCompressor(options=options)
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize(
    "run",
    [
        b"",
        FRAME[:-1],
        FRAME + b"\0",
        FRAME + FRAME,
        FRAME[:8] + bytes([FRAME[8] ^ 255]) + FRAME[9:],
        zstd.compress(bytes(399)),
        zstd.compress(bytes(401)),
        zstd.compress(bytes(10**8)),
        wide(VALUES.tobytes()),
        b"hello, this is none",
    ],
)
def test_a_frame_that_does_not_hold_the_elements_is_refused(run):
    with pytest.raises(PackError, match="zstd-1 does not"):
        decode_part(Part("zstd-1", run), VALUES.dtype, 100)


def test_the_frame_from_which_those_are_made_is_accepted():
    assert decode_part(Part("zstd-1", FRAME), VALUES.dtype, 100).tolist() == VALUES.tolist()


def test_two_codecs_in_one_file_are_refused():
    data = flexrel_edge.encode({"a": VALUES, "b": VALUES})
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    length = header["index"]["shape"][0]
    index, parts = json.loads(zlib.decompress(data[start : start + length])), data[start + length :]
    assert index["tensors"][1][4] == "pcodec-1"
    index["tensors"][1][4] = "zstd-1"
    index = zlib.compress(json.dumps(index, sort_keys=True, separators=(",", ":")).encode(), 9)
    header["__metadata__"]["sha256"] = hashlib.sha256(index + parts).hexdigest()
    header["data"]["data_offsets"] = [len(index), len(index) + len(parts)]
    header["index"] = {"data_offsets": [0, len(index)], "dtype": "U8", "shape": [len(index)]}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    with pytest.raises(PackError, match="parts are in pcodec-1 and zstd-1; one alone may be"):
        flexrel_edge.decode(len(text).to_bytes(8, "little") + text + index + parts)


def test_an_unknown_codec_is_refused():
    with pytest.raises(FlexrelError, match="'lzma' is not known; there are: pcodec-1, zstd-1"):
        flexrel_edge.encode({"w": VALUES}, codec="lzma")


@pytest.mark.parametrize(
    ("codec", "reason"),
    [("pcodec-1", "install pcodec, or pack with"), ("zstd-1", r"flexrel-edge\[zstd\]")],
)
def test_without_its_library_a_codec_says_what_to_install(monkeypatch, codec, reason):
    packed = flexrel_edge.encode({"w": VALUES}, codec=codec)

    def missing(_):
        raise ImportError

    monkeypatch.setattr("flexrel_edge.codec.wrapped", None)
    monkeypatch.setattr("flexrel_edge.codec.import_module", missing)

    with pytest.raises(FlexrelError, match=reason):
        flexrel_edge.decode(packed)
    with pytest.raises(FlexrelError, match=reason):
        flexrel_edge.encode({"w": VALUES}, codec=codec)
