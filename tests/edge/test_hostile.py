"""Damaged files, and files made to harm: each is refused, each with its own reason in one line."""

import hashlib
import json
import pickle
import re
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy

from flexrel_edge import FlexrelError, PackError, decode, encode
from flexrel_edge.format import describe
from flexrel_edge.index import check_growth
from flexrel_edge.positions import positions_from
from flexrel_edge.records import Entry, gap_dtype

SMALL = {
    "bias": np.float32([0.5, -1.5]),
    "flags": np.array([True, False, False, True]),
    "weight": np.where(np.arange(200) % 7, 0, np.arange(200)).astype(np.float32).reshape(10, 20),
}


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def sealed(index, parts=b"", **changes):
    """A file around any index bytes, with a right checksum; `changes` go into the marks."""
    marks = {
        "format": "flexrel",
        "version": "1",
        "sha256": hashlib.sha256(index + parts).hexdigest(),
    }
    at, end = len(index), len(index) + len(parts)
    header = canonical(
        {
            "__metadata__": marks | changes,
            "index": {"dtype": "U8", "shape": [at], "data_offsets": [0, at]},
            "data": {"dtype": "U8", "shape": [len(parts)], "data_offsets": [at, end]},
        }
    )
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + index + parts


def built(*rows, parts=b"", metadata=None):
    """A file of any rows, with a right checksum."""
    index = canonical({"metadata": metadata or {}, "tensors": list(rows)})
    return sealed(zlib.compress(index), parts)


def refusal(data):
    """The message with which the bytes are refused; it is one line."""
    with pytest.raises(PackError) as caught:
        decode(data)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def f4(*values):
    return np.float32(values).tobytes()


def u4(*values):
    return np.uint32(values).tobytes()


def test_the_builder_of_these_tests_builds_what_is_accepted():
    """Else every refusal below could have another cause."""
    row = ["w", "float32", [2, 2], 1, "raw", 4, "raw", 4]

    tensor = decode(built(row, parts=f4(5) + u4(2), metadata={"by": "us"})).tensors["w"]

    assert tensor.tolist() == [[0, 0], [5, 0]]


def test_every_change_of_one_byte_is_refused():
    data = encode(SMALL, metadata={"by": "us"})

    for at in range(len(data)):
        for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255, ord(" ") ^ ord("0")):
            with pytest.raises(PackError):
                decode(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])


def test_every_cut_and_every_byte_too_many_is_refused():
    data = encode(SMALL)

    for cut in range(len(data)):
        with pytest.raises(PackError):
            decode(data[:cut])
    assert refusal(data[:7]).startswith("cut short: 7 bytes, 8 needed")
    for extra in (b"\0", b" ", b"\xff", data):
        assert "bytes too many" in refusal(data + extra)


def test_what_describe_refuses_decode_refuses_too_and_damage_in_a_part_is_found_by_both():
    data = encode(SMALL)

    for broken in (data[:-1], data[:-1] + bytes([data[-1] ^ 1])):
        with pytest.raises(PackError):
            describe(broken)
        refusal(broken)


@pytest.mark.parametrize(
    "data",
    [pickle.dumps({"w": [1.0]}, protocol) for protocol in (2, 3, 4, 5)]
    + [b"PK\x03\x04\x00\x00\x08\x08" + bytes(100)],
)
def test_a_pickle_or_torch_file_is_named_as_such(data):
    assert "pickles are never read" in refusal(data)


def test_a_safetensors_file_of_others_is_not_ours():
    plain = safetensors.numpy.save({"w": np.zeros(3)})
    marked = safetensors.numpy.save({"w": np.zeros(3)}, {"format": "pt", "version": "1"})

    assert "not a FlexRel file" in refusal(plain)
    assert "format 'pt'" in refusal(marked)
    long = safetensors.numpy.save({"w" * 70_000: np.zeros(3)}, {"format": "flexrel"})
    assert "65536 are allowed" in refusal(long)


def test_a_later_version_asks_for_an_update_even_if_the_rest_of_the_header_differs():
    later = canonical({"__metadata__": {"format": "flexrel", "version": "2"}})

    for data in (sealed(b"", version="2"), struct.pack("<Q", len(later)) + later):
        assert refusal(data) == "version 2, this reader knows 1: update flexrel-edge"


def header_changed(old, new):
    data = sealed(zlib.compress(canonical({"metadata": {}, "tensors": []})))
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size]
    assert old in header
    changed = header.replace(old, new)
    return struct.pack("<Q", len(changed)) + changed + data[8 + size :]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"}}", b"}} "),
        (b"}}", b"}}        "),
        (b'":', b'": '),
        (b'"U8"', b'"I8"'),
        (b'"sha256"', b'"sha256":"","sha256"'),
        (b'"version":"1"', b'"version":"1","x":"y"'),
        (b"[0,", b"[00,"),
        (b"[0,", b"[-0,"),
        (b"{", b"\xef\xbb\xbf{"),
    ],
)
def test_a_header_that_means_the_same_in_other_bytes_is_refused(old, new):
    refusal(header_changed(old, new))


def test_a_checksum_in_capitals_is_refused():
    index = zlib.compress(canonical({"metadata": {}, "tensors": []}))
    upper = hashlib.sha256(index).hexdigest().upper()

    assert "checksum" in refusal(sealed(index, sha256=upper))


@pytest.mark.parametrize("sha256", ["", None, 7, [], {}, "0" * 64])
def test_a_wrong_checksum_is_refused_whatever_it_is(sha256):
    assert "checksum" in refusal(sealed(zlib.compress(b"{}"), sha256=sha256))


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 60_000,
        b"null",
        b"[]",
        b'"__metadata__"',
        b"\xff\xfe",
        b"{}",
        b'{"__metadata__":[]}',
        b'{"__metadata__":{"format":"flexrel","version":"1"}}',
        b'{"__metadata__":{"format":"flexrel","version":"1","sha256":""},"index":[],"data":[]}',
    ],
)
def test_a_header_of_anything_is_refused(header):
    refusal(struct.pack("<Q", len(header)) + header)


@pytest.mark.parametrize("length", [-1, 10**6, 1.5, True, "8", None])
def test_a_declared_index_length_of_anything_is_refused(length):
    body = {"shape": [length]}
    end = {"data_offsets": [0, 0]}
    marks = {"format": "flexrel", "version": "1", "sha256": ""}
    header = canonical({"__metadata__": marks, "index": body, "data": end})

    assert "an index of" in refusal(struct.pack("<Q", len(header)) + header)


BOMB = zlib.compress(b" " * 2**28, 9)
EMPTY = canonical({"metadata": {}, "tensors": []})


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (b"", "cut short"),
        (b"not zlib", "does not decompress"),
        (zlib.compress(EMPTY)[:-1], "cut short"),
        (zlib.compress(EMPTY)[:-1] + b"x", "does not decompress"),
        (zlib.compress(EMPTY) + b"x", "1 bytes follow"),
        (BOMB, "more than 4194304 bytes"),
        (zlib.compress(b" " * 2**20, 9), "more than 66"),
        (zlib.compress(b"[" * 50_000), "not JSON"),
        (zlib.compress(b"\xff"), "not JSON"),
        (zlib.compress(b"1" * 5000), "not JSON"),
        (zlib.compress(EMPTY + b" "), "canonical"),
        (zlib.compress(b'{"tensors":[],"metadata":{}}'), "canonical"),
        (zlib.compress(b'{"metadata":{},"metadata":{},"tensors":[]}'), "canonical"),
        (zlib.compress('{"metadata":{"ä":""},"tensors":[]}'.encode()), "canonical"),
        (zlib.compress(b"[]"), "not an object"),
        (zlib.compress(b'{"metadata":{}}'), "not an object"),
        (zlib.compress(b'{"metadata":{},"more":1,"tensors":[]}'), "not an object"),
        (zlib.compress(b'{"metadata":{"a":1},"tensors":[]}'), "metadata"),
        (zlib.compress(b'{"metadata":{"a":"\\udfff"},"tensors":[]}'), "metadata"),
        (zlib.compress(b'{"metadata":[],"tensors":[]}'), "metadata"),
        (zlib.compress(b'{"metadata":{},"tensors":{}}'), "not a list"),
    ],
)
def test_an_index_that_is_no_index_is_refused(index, reason):
    assert reason in refusal(sealed(index))


@pytest.mark.parametrize(
    ("row", "parts", "reason"),
    [
        (7, b"", "an index row"),
        ([], b"", "an index row"),
        ([1] * 10_000, b"", "an index row"),
        (["w", "float32", [1], 1, "raw"], f4(1), "an index row"),
        (["w", "float32", [1], 1, "raw", 4, "raw"], f4(1), "an index row"),
        (["w", "float32", [1], 1, "raw", 4, None, 0], f4(1), "an index row"),
        (["w", "float32", [1], 1, "raw", 1, None, 0, None, 0], b"\1", "an index row"),
        (["w", "float32", [1], 1, "raw", 1, None, 4, "raw", 4], b"\1" + f4(1, 1), "in no codec"),
        (["w", "float32", [], 1, "raw", 1, None, 0, "raw", 4], b"\1" + f4(1), "that have rows"),
        (["w", "float32", [0], 0, "raw", 0, None, 0, "raw", 0], b"", "that have rows"),
        (["w", "float32", [2, 0], 0, "raw", 0, None, 0, "raw", 8], f4(1, 1), "that have rows"),
        (["w", "int64", [1], 1, "raw", 1, None, 0, "raw", 4], b"\1" + f4(1), "is int64"),
        (["w", "int8", [1], 1, "raw", 1, None, 0, "raw", 4], b"\1" + f4(1), "is int8"),
        (["w", "float32", [1], 1, "raw", 4, None, 0, "raw", 4], f4(1, 1), "takes exactly 1"),
        (["w", "float32", [2], 2, "raw", 2, None, 0, "raw", 4], b"\1\2" + f4(1), "exactly 8"),
        (["w", "float32", [1], 1, "raw", 1, None, 0, "zip", 3], b"\1\2\3\4", "codec 'zip'"),
        (["w", "float32", [1], 1, "raw", 1, None, 0, "raw", 4], b"\1" + f4(0), "a scale"),
        (["w", "float32", [1], 1, "raw", 1, None, 0, "raw", 4], b"\1" + f4(-1), "a scale"),
        (["w", "float32", [1], 1, "raw", 1, None, 0, "raw", 4], b"\1" + f4(np.nan), "a scale"),
        (["w", "float32", [1], 1, "raw", 1, None, 0, "raw", 4], b"\1" + f4(np.inf), "a scale"),
        (["w", "float32", [1], 1, "raw", 1, None, 0, "raw", 4], b"\1" + f4(3e38), "a scale"),
        (["w", "float32", [2], 2, "raw", 2, None, 0, "raw", 8], b"\1\0" + f4(1, 1), "found 1"),
        (
            ["w", "float32", [2], 1, "raw", 1, "raw", 4, "raw", 8],
            b"\0" + u4(0) + f4(1, 1),
            "kept position is zero",
        ),
        (["w", "float32", [1], True, "raw", 4], f4(1), "an index row"),
        (["w", "float32", [1], 1.0, "raw", 4], f4(1), "an index row"),
        (["w", "float32", 1, 1, "raw", 4], f4(1), "an index row"),
        ([None, "float32", [1], 1, "raw", 4], f4(1), "an index row"),
        (["", "float32", [1], 1, "raw", 4], f4(1), "non-empty"),
        (["\ud800", "float32", [1], 1, "raw", 4], f4(1), "non-empty"),
        (["w", "complex64", [1], 1, "raw", 8], bytes(8), "dtype 'complex64'"),
        (["w", "Float32", [1], 1, "raw", 4], f4(1), "dtype 'Float32'"),
        (["w", "float32", [True], 1, "raw", 4], f4(1), "not of integers"),
        (["w", "float32", [1.0], 1, "raw", 4], f4(1), "not of integers"),
        (["w", "float32", [-1], 0, "raw", 0], b"", "axes of 0 to"),
        (["w", "float32", [-1, -1], 1, "raw", 4], f4(1), "axes of 0 to"),
        (["w", "float32", [1] * 33, 1, "raw", 4], f4(1), "32 axes"),
        (["w", "float32", [10**400], 0, "raw", 0, "raw", 0], b"", "axes of 0 to"),
        (["w", "float32", [0, 2**62], 0, "raw", 0], b"", "axes of 0 to"),
        (["w", "float32", [0, 2**35], 0, "raw", 0], b"", "'w' has shape ["),
        (["w", "float32", [2**20, 2**20], 0, "raw", 0, "raw", 0], b"", "'w' has shape ["),
        (["w", "float32", [2**30] * 32, 0, "raw", 0, "raw", 0], b"", "'w' has shape ["),
        (["w", "float32", [2], 3, "raw", 12], f4(1, 2, 3), "keeps 3 of 2"),
        (["w", "float32", [2], -1, "raw", 8], f4(1, 2), "keeps -1 of 2"),
        (["w", "float32", [2], 3, "raw", 12, "raw", 12], bytes(24), "keeps 3 of 2"),
        (["w", "float32", [2], 2, "raw", 8, "raw", 8], f4(1, 2) + u4(0, 0), "has no zero"),
        (["w", "float32", [0], 0, "raw", 0, "raw", 0], b"", "has no zero"),
        (["w", "float32", [2], 2, "zip", 8], f4(1, 2), "codec 'zip'"),
        (["w", "float32", [2], 1, "raw", 4, "pcodec-2", 3], f4(1) + b"abc", "codec 'pcodec-2'"),
        (["w", "float32", [2], 2, "raw", 7], bytes(7), "raw takes exactly 8"),
        (["w", "float32", [2], 2, "raw", -8], b"", "raw takes exactly 8"),
        (["w", "float32", [2], 1, "raw", 8, "raw", 4], bytes(12), "raw takes exactly 4"),
        (["w", "float32", [2], 1, "raw", 4, "raw", 8], bytes(12), "raw takes exactly 4"),
        (["w", "float32", [2], 2, "pcodec-1", 8], bytes(8), "a codec fewer"),
        (["w", "float32", [2], 2, "pcodec-1", 0], b"", "a codec fewer"),
        (["w", "float32", [2], 0, "pcodec-1", 0, "raw", 0], b"", "a codec fewer"),
        (["w", "float32", [2], 2, "raw", 8], f4(1), "declares 8 bytes of parts, found 4"),
        (["w", "float32", [2], 2, "raw", 8], f4(1, 2, 3), "declares 8 bytes of parts, found 12"),
        (["w", "float32", [2], 2, "raw", 8], f4(1, 0), "declares 2 kept elements, found 1"),
        (["w", "float32", [2], 1, "raw", 8], f4(1, 2), "declares 1 kept elements, found 2"),
        (["w", "float32", [2], 1, "raw", 4, "raw", 4], f4(0) + u4(0), "kept position is zero"),
        (["w", "float32", [2], 1, "raw", 4, "raw", 4], f4(1) + u4(2), "beyond the 2 elements"),
        (["w", "int8", [9], 2, "raw", 2, "raw", 8], b"12" + u4(7, 1), "beyond the 9 elements"),
        (["w", "int8", [9], 2, "raw", 2, "raw", 8], b"12" + u4(1, 2**32 - 1), "beyond the 9"),
        (["w", "bool", [2], 2, "raw", 2], b"\1\2", "neither 0 nor 1"),
        (["w", "bool", [9], 1, "raw", 1, "raw", 4], b"\2" + u4(0), "neither 0 nor 1"),
    ],
)
def test_a_hostile_row_is_refused(row, parts, reason):
    assert reason in refusal(built(row, parts=parts))


@pytest.mark.parametrize(("first", "second"), [("w", "w"), ("x", "w"), ("b", "a"), ("a", "B")])
def test_names_that_repeat_or_do_not_ascend_are_refused(first, second):
    rows = [[name, "float32", [1], 1, "raw", 4] for name in (first, second)]

    assert "names must ascend" in refusal(built(*rows, parts=f4(1, 2)))


@pytest.mark.parametrize(("axis", "names"), [(2**35, "abc"), (2**28 + 2**21, "w"), (2**28, "ab")])
def test_tensors_that_together_are_far_larger_than_their_file_are_refused(axis, names):
    rows = [[name, "int8", [axis], 0, "raw", 0, "raw", 0] for name in names]

    assert re.search("version 1 allows 269[0-9]{6} in a file of 3", refusal(built(*rows)))


def test_a_larger_file_may_hold_more_up_to_a_bound():
    row = ["w", "int8", [2**28 + 2**21], 0, "raw", 0, "raw", 0]
    entry = Entry("w", "int8", (2**36,), 0, "raw", 0, "raw", 0)

    assert describe(built(row, metadata={"k": "%x" % 3**1500})).tensors[0].total == row[2][0]
    check_growth([entry], 2**26)
    with pytest.raises(PackError, match="version 1 allows 68719476736 in a file of 1099511627776"):
        check_growth([entry, entry], 2**40)


def test_a_tensor_of_zeros_that_a_reader_would_refuse_is_not_packed():
    zeros = np.broadcast_to(np.int8(0), (2**10, 2**19))

    with pytest.raises(FlexrelError, match="can't pack: the tensors have 536870912 bytes"):
        encode({"w": zeros})


def test_a_tensor_for_which_memory_is_short_is_refused(monkeypatch):
    def no_memory(*_):
        raise MemoryError

    data = encode({"w": np.zeros(100)})
    monkeypatch.setattr(np, "zeros", no_memory)

    assert "takes 800 bytes unpacked, more memory" in refusal(data)


def test_a_sparse_tensor_may_be_far_larger_than_its_file():
    data = built(["w", "int8", [2**12, 2**12], 1, "raw", 1, "raw", 4], parts=b"\7" + u4(2**24 - 1))

    tensor = decode(data).tensors["w"]

    assert len(data) < 400
    assert (tensor[-1, -1], np.count_nonzero(tensor)) == (7, 1)


# 32 float32, 1.5 and -2.0 in turn, as pcodec 1.1.0 wrote them: 21 bytes.
CODED = bytes.fromhex("0401002100f0ffffff03000000fe05000555555505")


@pytest.mark.parametrize(
    ("part", "count", "reason"),
    [
        (CODED[:-1], 32, "does not decode"),
        (b"\xff" + CODED[1:], 32, "does not decode"),
        (bytes(21), 32, "does not decode"),
        (CODED + b"\0", 32, "ends after 21 of 22 bytes"),
        (CODED, 16, "ends after"),
        (CODED, 33, "does not decode"),
        (CODED, 300, "does not decode"),
        (CODED[:3], 2**18 * 3, "too few for 3 runs"),
        (u4(17) + CODED[:10], 2**18 + 1, "a run of pcodec-1 ends at 21"),
        (u4(2**32 - 1, 2**32 - 1) + CODED, 2**18 * 3, "a run of pcodec-1 ends at"),
        (u4(0) + CODED, 2**18 + 32, "does not decode"),
    ],
)
def test_a_hostile_pcodec_part_is_refused_and_yet_described(part, count, reason):
    data = built(["w", "float32", [count], count, "pcodec-1", len(part)], parts=part)

    assert reason in refusal(data)
    assert refusal(data).startswith("tensor 'w': ")
    assert describe(data).tensors[0].bytes == len(part)


def test_the_part_from_which_those_are_made_is_accepted():
    data = built(["w", "float32", [32], 32, "pcodec-1", len(CODED)], parts=CODED)

    assert decode(data).tensors["w"].tolist() == [1.5, -2.0] * 16


def test_a_codec_that_stops_early_leaves_no_element_unset(monkeypatch):
    """pcodec 1.1 never did; if it does, memory that nobody wrote must not be handed out."""
    progress = SimpleNamespace(n_processed=31, finished=False)
    chunk = SimpleNamespace(read_page_into=lambda *_: (progress, len(CODED)))
    file = SimpleNamespace(chunk_decompressor=lambda *_: (chunk, 0))
    fake = SimpleNamespace(FileDecompressor=SimpleNamespace(new=lambda _: (file, 0)))
    monkeypatch.setattr("flexrel_edge.codec.wrapped", fake)

    data = built(["w", "float32", [32], 32, "pcodec-1", len(CODED)], parts=CODED)

    assert "holds 31 of 32 elements" in refusal(data)


class PanicException(BaseException):
    """As pcodec's Rust raises it."""


@pytest.mark.parametrize(
    ("error", "found"),
    [(PanicException("index\nout"), PackError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_codec_that_panics_is_a_refusal_and_an_interrupt_is_not(error, found, monkeypatch):
    def panicking(_):
        raise error

    fake = SimpleNamespace(FileDecompressor=SimpleNamespace(new=panicking))
    monkeypatch.setattr("flexrel_edge.codec.wrapped", fake)
    data = built(["w", "float32", [32], 32, "pcodec-1", len(CODED)], parts=CODED)

    with pytest.raises(found, match="index out" if found is PackError else None):
        decode(data)


def test_a_pcodec_part_of_another_type_is_refused():
    data = built(["w", "int64", [32], 32, "pcodec-1", len(CODED)], parts=CODED)

    assert "pcodec-1" in refusal(data)


@pytest.mark.parametrize(
    ("gaps", "total"),
    [
        (np.uint64([10]), 10),
        (np.uint64([2**63, 2**63]), 2**33),
        (np.uint64([2**64 - 1]), 2**33),
        (np.uint64([2**64 - 1, 2]), 2**33),
        (np.uint64([2**64 - 2, 1, 2]), 2**36),
        (np.uint32([2**32 - 1, 0]), 2**32),
        (np.full(1000, 2**32 - 1, np.uint32), 2**32),
    ],
)
def test_gaps_whose_sum_runs_over_are_refused(gaps, total):
    with pytest.raises(PackError, match=f"beyond the {total} elements"):
        positions_from(gaps, total)


@pytest.mark.parametrize("total", [9, 2**32, 2**32 + 1, 2**36])
def test_gaps_may_reach_the_very_last_element(total):
    dtype = gap_dtype(total)
    gaps = np.array([0, total - 2], dtype)

    assert positions_from(gaps, total).tolist() == [0, total - 1]
    assert dtype.itemsize == (4 if total <= 2**32 else 8)
    assert positions_from(gaps[:0], total).tolist() == []
