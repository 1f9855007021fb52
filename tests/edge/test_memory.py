"""A file is read tensor by tensor: what that takes beside the result is one tensor, no more."""

import io
import tracemalloc

import numpy as np
import pytest

import flexrel_edge
from flexrel_edge import PackError, encode
from flexrel_edge.files import opened
from flexrel_edge.source import OnDisk
from flexrel_edge.unpacked import write_safetensors

ROWS, COLUMNS, TENSORS = 1024, 2048, 3
ONE = ROWS * COLUMNS * 4  # bytes of one tensor, unpacked
SLACK = 2.5 * 2**20  # two runs of a codec, or a piece of the checksum


def masks(rng):
    score = rng.random((ROWS, COLUMNS // 4, 4))
    return {
        "sparse": rng.random((ROWS, COLUMNS)) < 0.5,
        "sparse groups of 4": (score.argsort(-1).argsort(-1) < 2).reshape(ROWS, COLUMNS),
        "sparse block:4x4": (rng.random((ROWS // 4, COLUMNS // 4)) < 0.5).repeat(4, 0).repeat(4, 1),
    }


def weights(kind, number):
    rng = np.random.default_rng(number)
    values = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    if kind.startswith("sparse"):
        values[~masks(rng)[kind.removesuffix(" scaled")]] = 0
    if "scaled" in kind:
        values = np.rint(values * 30).clip(-127, 127) * np.float32(2**-9) + np.float32(0)
    return values


@pytest.fixture(
    params=[
        "dense",
        "sparse",
        "dense scaled",
        "sparse scaled",
        "sparse groups of 4",
        "sparse block:4x4",
        "sparse block:4x4 scaled",
    ]
)
def packed(request, tmp_path):
    path = tmp_path / "net.flexrel"
    flexrel_edge.write(path, {f"w{n}": weights(request.param, n) for n in range(TENSORS)})
    (entry, *_) = flexrel_edge.inspect(path).tensors
    found = f"{entry.kind}{' scaled' if entry.scales_codec else ''}"
    assert found == request.param
    return path


def peak_of(work):
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_reading_takes_the_result_and_at_most_one_tensor_more(packed):
    assert peak_of(lambda: flexrel_edge.read(packed)) < (TENSORS + 1) * ONE + SLACK


def test_verifying_and_unpacking_take_two_tensors_at_most(packed, tmp_path):
    def unpack():
        with opened(packed) as file, (tmp_path / "w.safetensors").open("wb") as out:
            write_safetensors(file, out)

    def verify():
        with opened(packed) as file:
            file.verify()

    assert peak_of(unpack) < 2 * ONE + SLACK
    assert peak_of(verify) < 2 * ONE + SLACK


def test_inspecting_takes_no_tensor_at_all(packed):
    assert peak_of(lambda: flexrel_edge.inspect(packed)) < SLACK


@pytest.mark.parametrize("longer", [b"", b"more"])
def test_a_file_that_changes_under_the_reader_is_refused(tmp_path, longer):
    path = tmp_path / "net.flexrel"
    flexrel_edge.write(path, {"w": np.arange(2000)})

    def read():
        with opened(path) as file:
            path.write_bytes(encode({"w": np.arange(2000) * 3}) + longer)
            file.packed()

    with pytest.raises(PackError, match=f"{path}: .*changed while it was read"):
        read()


def test_a_file_may_be_replaced_while_it_is_read(tmp_path):
    path = tmp_path / "net.flexrel"
    flexrel_edge.write(path, {"w": np.arange(5)})

    with opened(path) as file:
        flexrel_edge.write(path, {"w": np.arange(6)})
        assert dict(file.tensors())["w"].tolist() == [0, 1, 2, 3, 4]
    assert flexrel_edge.read(path)["w"].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_source_gives_what_lies_at_a_place(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(9)))

    with path.open("rb") as file:
        assert (OnDisk(file).size, OnDisk(file).read(2, 3)) == (9, b"\2\3\4")


def test_safetensors_come_one_after_the_other(tmp_path):
    path = tmp_path / "net.flexrel"
    flexrel_edge.write(path, {"b": np.int8([1]), "a": np.int64([2])})
    out = io.BytesIO()

    with opened(path) as file:
        size = write_safetensors(file, out)

    assert size == len(out.getvalue())
    assert out.getvalue()[-9:] == np.int64([2]).tobytes() + b"\1"
