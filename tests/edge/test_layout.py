"""Files frozen as bytes, taken apart by offset, as docs/format.md says."""

import hashlib
import json
import zlib

import numpy as np
import pytest

from flexrel_edge import Bfloat16, decode, encode
from flexrel_edge.codec import Part, decode_part
from flexrel_edge.format import describe

# Frozen with version 1. If this fails you changed the format: raise VERSION, keep the reader.
# Written by hand. How zlib and pcodec compress may differ between their releases, so here no
# part is coded and zlib only stored the index; and the whole is decoded, never compared.
INDEX_TEXT = (
    b'{"metadata":{"by":"hand"},"tensors":['
    b'["a","bool",[3],2,"raw",3],'
    b'["b","bfloat16",[],1,"raw",2],'
    b'["c","float32",[2,4],2,"raw",8,"raw",8],'
    b'["d","uint8",[0,2],0,"raw",0]]}'
)
PARTS = bytes.fromhex(
    "010001"  # a: true, false, true
    "c03f"  # b: 1.5
    "0000803f 000000c0"  # c, values: 1.0, -2.0
    "01000000 03000000"  # c, gaps: 1 zero before the first, 3 between it and the next
)
GOLDEN = (
    bytes.fromhex("f800000000000000")
    + b'{"__metadata__":{"format":"flexrel",'
    + b'"sha256":"8b3f8d126c19c6531f2b1f0ba68c7fdf4ae3361021e83e981783edcd3fd52d0b",'
    + b'"version":"1"},'
    + b'"data":{"data_offsets":[176,197],"dtype":"U8","shape":[21]},'
    + b'"index":{"data_offsets":[0,176],"dtype":"U8","shape":[176]}} '
    + bytes.fromhex("7801 01 a500 5aff")  # zlib: the last block is stored, 165 bytes
    + INDEX_TEXT
    + bytes.fromhex("d9d52eef")  # adler32
    + PARTS
)
SCALED = (
    bytes.fromhex("f800000000000000")
    + b'{"__metadata__":{"format":"flexrel",'
    + b'"sha256":"6f39c243337efac9e62349e43f3f6660a22429dbb754b02612cce099b36f919b",'
    + b'"version":"1"},'
    + b'"data":{"data_offsets":[133,165],"dtype":"U8","shape":[32]},'
    + b'"index":{"data_offsets":[0,133],"dtype":"U8","shape":[133]}} '
    + bytes.fromhex("7801 01 7a00 85ff")
    + b'{"metadata":{},"tensors":['
    + b'["e","float32",[2,3],4,"raw",6,null,0,"raw",8],'
    + b'["f","float32",[2,2],2,"raw",2,"raw",8,"raw",8]]}'
    + bytes.fromhex("e412235d")
    + bytes.fromhex(
        "01fe00 00817f"  # e: 1, -2, 0; 0, -127, 127
        "0000003f 00002041"  # times 0.5; times 10
        "03ff"  # f, values: 3, -1
        "01000000 01000000"  # f, gaps: 1 zero before each
        "0000803f 00004040"  # times 1; times 3
    )
)
TENSORS = {
    "a": np.array([True, False, True]),
    "b": Bfloat16(np.array(0x3FC0, np.uint16)),
    "c": np.float32([[0, 1, 0, 0], [0, -2, 0, 0]]),
    "d": np.zeros((0, 2), np.uint8),
}


def test_the_golden_file_means_what_was_written_by_hand():
    packed = decode(GOLDEN)

    assert packed.version == 1
    assert packed.metadata == {"by": "hand"}
    assert packed.tensors["a"].tolist() == [True, False, True]
    assert packed.tensors["b"].bits.tolist() == 0x3FC0
    assert packed.tensors["c"].tolist() == [[0, 1, 0, 0], [0, -2, 0, 0]]
    assert packed.tensors["d"].shape == (0, 2)
    dtypes = [packed.tensors[name].dtype for name in "acd"]
    assert dtypes == [np.bool_, np.float32, np.uint8]


def test_the_golden_file_of_whole_numbers_and_scales():
    tensors = decode(SCALED).tensors

    assert tensors["e"].tolist() == [[0.5, -1, 0], [0, -1270, 1270]]
    assert tensors["f"].tolist() == [[0, 3], [0, -3]]
    assert [tensors[name].dtype for name in "ef"] == [np.float32, np.float32]


def test_the_writer_lays_out_the_same_index_and_parts():
    data = encode(TENSORS, metadata={"by": "hand"})

    header_end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:header_end])
    index_end = header_end + header["index"]["shape"][0]
    assert header_end % 8 == 0
    assert data[8] == ord("{")
    assert zlib.decompress(data[header_end:index_end]) == INDEX_TEXT
    assert data[index_end:] == PARTS
    assert header == {
        "__metadata__": {
            "format": "flexrel",
            "version": "1",
            "sha256": hashlib.sha256(data[header_end:]).hexdigest(),
        },
        "index": {
            "dtype": "U8",
            "shape": [index_end - header_end],
            "data_offsets": [0, index_end - header_end],
        },
        "data": {
            "dtype": "U8",
            "shape": [len(PARTS)],
            "data_offsets": [index_end - header_end, index_end - header_end + len(PARTS)],
        },
    }


def test_the_description_of_the_golden_file():
    contents = describe(GOLDEN)

    assert (contents.version, contents.bytes) == (1, len(GOLDEN))
    assert contents.sha256 == hashlib.sha256(GOLDEN[256:]).hexdigest()
    assert contents.metadata == {"by": "hand"}
    told = [(e.name, e.dtype, e.shape, e.kind, e.kept, e.total, e.bytes) for e in contents.tensors]
    assert told == [
        ("a", "bool", (3,), "dense", 2, 3, 3),
        ("b", "bfloat16", (), "dense", 1, 1, 2),
        ("c", "float32", (2, 4), "sparse", 2, 8, 16),
        ("d", "uint8", (0, 2), "dense", 0, 0, 0),
    ]


# Written by pcodec 1.1.0 and frozen with the codec's name `pcodec-1`; must decode for ever.
@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("0401002100f0ffffff03000000fe05000555555505", np.tile(np.float32([1.5, -2.0]), 16)),
        ("04011002010001000040000000008001000000", np.arange(1000, dtype=np.int32) ** 2),
    ],
)
def test_parts_that_pcodec_once_wrote_still_decode(part, expected):
    values = decode_part(Part("pcodec-1", bytes.fromhex(part)), expected.dtype, len(expected))

    assert values.dtype == expected.dtype
    assert values.tolist() == expected.tolist()


def test_an_empty_file_of_tensors_is_a_file():
    packed = decode(encode({}))

    assert (packed.tensors, packed.metadata) == ({}, {})
