"""Updates: the new file comes out byte for byte, or nothing does; and little has to be sent."""

import hashlib
import json
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import flexrel_edge
from flexrel_edge import Bfloat16, PackError, encode
from flexrel_edge.axes import moved
from flexrel_edge.cli import main
from flexrel_edge.container import UPDATE, header_of
from flexrel_edge.delta import changed_by, delta_of
from flexrel_edge.difference import difference
from flexrel_edge.format import Reader
from flexrel_edge.index import canonical
from flexrel_edge.source import InMemory
from flexrel_edge.update import Update

DTYPES = ["float16", "float32", "float64", "bool", "int8", "int64", "uint16"]


@st.composite
def arrays(draw, dtype=None, shape=None):
    dtype = np.dtype(dtype or draw(st.sampled_from(DTYPES)))
    bits = np.dtype(f"u{dtype.itemsize}")
    top = 1 if dtype == np.bool_ else np.iinfo(bits).max
    shape = shape or draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    some = st.one_of(st.just(0), st.integers(0, top))
    return draw(hnp.arrays(bits, shape, elements=some, fill=st.just(0))).view(dtype)


@st.composite
def networks(draw):
    """Two networks that share some names; tensors of a name may differ in anything."""
    old, new = {}, {}
    for name in draw(st.sets(st.sampled_from("abcde"))):
        first = draw(arrays())
        same = st.one_of(st.just(first), arrays(first.dtype, first.shape), arrays())
        where = draw(st.sampled_from(["both", "both", "old", "new"]))
        if where != "new":
            old[name] = first
        if where != "old":
            new[name] = draw(same)
    return old, new


def rng(seed=0):
    return np.random.default_rng(seed)


def weights(layers=6, rows=64, columns=48, kernel=(3, 3), seed=0):
    draw = rng(seed)
    found = {}
    for layer in range(layers):
        shape = (rows, columns, *kernel)
        found[f"{layer}.weight"] = (draw.standard_normal(shape) * 0.05).astype(np.float32)
        found[f"{layer}.bias"] = draw.standard_normal(rows).astype(np.float32)
    return found


def masked(tensors, keep, noise=0.0, seed=0):
    """Keep the largest; noise on their size changes which."""
    draw, found = rng(seed), {}
    for name, tensor in tensors.items():
        score = np.abs(tensor) * np.exp(noise * draw.standard_normal(tensor.shape))
        least = np.quantile(score, 1 - keep)
        found[name] = np.where((score > least) | (tensor.ndim == 1), tensor, np.float32(0))
    return found


def on_grid(tensors):
    """Whole numbers times a step of each row's own."""
    found = {}
    for name, tensor in tensors.items():
        found[name] = tensor
        if tensor.ndim > 1:
            step = np.float32(2**-11) * (1 + np.arange(len(tensor)) % 64 / np.float32(64))
            step = step.reshape(-1, *[1] * (tensor.ndim - 1)).astype(np.float32)
            found[name] = np.rint(tensor / step).clip(-127, 127) * step + np.float32(0)
    return found


def half(tensors):
    return {name: tensor.astype(np.float16) for name, tensor in tensors.items()}


def readers(old, new):
    return Reader(InMemory(encode(old))), Reader(InMemory(encode(new)))


def sent(old, new):
    """The update's bytes; that it makes the new file is checked on the way."""
    before, after = readers(old, new)
    data = difference(before, after)
    made = b"".join(Update(InMemory(data)).pieces(before))
    assert made == encode(new)
    return len(data)


@given(pair=networks())
@settings(max_examples=300)
def test_whatever_changed_the_new_file_comes_out_byte_for_byte(pair):
    assert sent(*pair) > 0


@given(
    data=st.data(), dtype=st.sampled_from(sorted({*DTYPES} - {"bool"})), length=st.integers(0, 30)
)
@settings(max_examples=300)
def test_a_delta_makes_one_array_of_the_other(data, dtype, length):
    old, new = (data.draw(arrays(dtype, (length,))) for _ in range(2))

    found = changed_by(old, delta_of(old, new))

    assert found.tobytes() == new.tobytes()


@pytest.mark.parametrize("share", [0.001, 0.5, 1.0])
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_a_delta_of_several_runs_makes_one_array_of_the_other(dtype, share):
    draw = rng()
    old = draw.integers(-2, 3, 2**19 + 5).astype(dtype)
    new = np.where(draw.random(len(old)) < share, draw.integers(-2, 3, len(old)), old).astype(dtype)

    assert np.array_equal(changed_by(old, delta_of(old, new)), new)


def test_nothing_changed_is_next_to_nothing():
    assert sent(weights(), weights()) < 2000
    assert sent({}, {}) < 700


@pytest.mark.parametrize("precision", [dict, half, on_grid])
def test_a_plan_that_moves_two_percent_of_the_mask_is_a_quarter_of_the_file_at_most(precision):
    old = masked(weights(), 0.2)
    new = masked(weights(), 0.2, noise=0.035)
    moved = np.mean([((old[n] != 0) != (new[n] != 0)).mean() for n in old if old[n].ndim > 1])
    assert 0.015 < moved < 0.025
    old, new = precision(old), precision(new)

    assert sent(old, new) < 0.25 * len(encode(new))


@pytest.mark.parametrize(("precision", "share"), [(dict, 0.7), (half, 0.35), (on_grid, 0.25)])
def test_values_that_moved_a_little_take_what_they_moved(precision, share):
    old = masked(weights(), 0.2)
    new = {
        n: (t * (1 + 1e-3 * rng(1).standard_normal(t.shape))).astype("f4") for n, t in old.items()
    }
    old, new = precision(old), precision(new)

    assert sent(old, new) < share * len(encode(new))


@pytest.mark.parametrize("precision", [dict, half, on_grid])
def test_channels_that_go_take_no_values(precision):
    old = precision(weights())
    rows = np.sort(rng(2).permutation(64)[:50])
    columns = np.sort(rng(3).permutation(48)[:30])
    new = {n: t[rows][:, columns] if t.ndim > 1 else t[rows] for n, t in old.items()}

    assert sent(old, new) < 0.02 * len(encode(new))


@pytest.mark.parametrize("precision", [dict, half])
def test_channels_that_take_the_place_of_others_are_sent_alone(precision):
    whole = precision(weights())
    first, second = np.arange(60), np.r_[0:20, 24:60, 60:64]
    old, new = ({n: t[rows] for n, t in whole.items()} for rows in (first, second))

    assert sent(old, new) < 1.5 * 4 / 60 * len(encode(new))


def test_matrices_and_what_was_not_there_before():
    old = {"a": rng().standard_normal((80, 90)).astype("f4"), "b": np.arange(5)}
    new = {
        "a": old["a"][5:, ::2].copy(),
        "c": Bfloat16(np.arange(9, dtype=np.uint16)),
        "b": old["b"],
    }

    assert sent(old, new) < 0.1 * len(encode(new))


def test_files_that_have_nothing_in_common_are_sent_whole(tmp_path):
    old, new, update = (tmp_path / name for name in ("old", "new", "update"))
    flexrel_edge.write(old, weights(1, seed=1))
    flexrel_edge.write(new, weights(1, seed=2))

    size = flexrel_edge.diff(old, new, update)

    assert size == len(update.read_bytes()) <= len(new.read_bytes())
    flexrel_edge.patch(old, update, tmp_path / "made")
    assert (tmp_path / "made").read_bytes() == new.read_bytes()


@pytest.fixture
def three(tmp_path):
    old, new, update = (tmp_path / name for name in ("old", "new", "update"))
    flexrel_edge.write(old, masked(weights(), 0.2))
    flexrel_edge.write(new, masked(weights(), 0.2, 0.1))
    flexrel_edge.diff(old, new, update)
    return old, new, update


def test_patch_may_replace_the_very_file_it_starts_from(three, capsys):
    old, new, update = three
    expected = new.read_bytes()

    assert main(["patch", str(old), str(update), str(old)]) == 0

    assert old.read_bytes() == expected
    assert f"{len(expected):,} bytes" in capsys.readouterr().out
    assert {path.name for path in old.parent.iterdir()} == {"old", "new", "update"}


def test_diff_says_what_it_takes(three, capsys):
    old, new, update = three

    assert main(["diff", str(old), str(new), str(update)]) == 0

    share = len(update.read_bytes()) / len(new.read_bytes())
    assert f"{share:.1%} of" in capsys.readouterr().out


WITH = {"onnx": "x", "onnx_weights": "1", "labels": "cat, dog", "tied": "{}", "fingerprint": "f"}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (WITH, WITH, []),
        ({}, WITH, []),
        ({"tied": "{}", "attributes": "{}"}, {}, []),
        (WITH, {"labels": "other"}, ["lacks the ONNX graph"]),
        (WITH, {"onnx": "y", "onnx_weights": "1"}, ["lacks the metadata 'labels'"]),
        (WITH, {}, ["lacks the ONNX graph", "lacks the metadata 'labels'"]),
        (WITH, {**WITH, "onnx_samples": "8"}, ["takes 8 samples a call, the old one's any number"]),
        ({**WITH, "onnx_samples": "8"}, {**WITH, "onnx_samples": "8"}, []),
        ({**WITH, "onnx_samples": "8"}, WITH, []),
        (
            {**WITH, "onnx_samples": "8"},
            {**WITH, "onnx_samples": "9"},
            ["takes 9 samples a call, the old one's 8"],
        ),
    ],
)
def test_diff_says_what_devices_lose(tmp_path, capsys, before, after, said):
    old, new, update = (str(tmp_path / name) for name in ("old", "new", "update"))
    flexrel_edge.write(old, {"w": np.float32([1])}, metadata=before)
    flexrel_edge.write(new, {"w": np.float32([2])}, metadata=after)

    assert main(["diff", old, new, update]) == 0
    lines = capsys.readouterr().err.splitlines()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        flexrel_edge.diff(old, new, update)

    assert len(lines) == len(caught) == len(said)
    for line, warning, text in zip(lines, caught, said, strict=True):
        assert line == f"warning: {warning.message}"
        assert line.startswith(f"warning: {new}: ")
        assert text in line


def test_an_update_for_another_file_is_refused_and_nothing_is_written(three, tmp_path, capsys):
    _, new, update = three

    assert main(["patch", str(new), str(update), str(tmp_path / "made")]) == 5

    said = capsys.readouterr().err
    assert "the update is for the file with checksum" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "made").exists()


def test_every_kind_of_file_is_named_where_another_is_asked_for(three, tmp_path):
    old, _, update = three

    with pytest.raises(PackError, match="update: not a FlexRel file: the header names format 'fle"):
        flexrel_edge.read(update)
    with pytest.raises(PackError, match="update: not a FlexRel file"):
        flexrel_edge.patch(update, update, tmp_path / "made")
    update.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(PackError, match="update: looks like a pickle"):
        flexrel_edge.patch(old, update, tmp_path / "made")


def test_every_byte_of_an_update_counts():
    old, new = (
        {"w": np.arange(9, dtype="f4"), "b": np.arange(3)},
        {"w": np.arange(1, 10, dtype="f4")},
    )
    before, after = readers(old, new)
    data = difference(before, after)

    for at in range(len(data)):
        for wrong in (data[:at], data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]):
            with pytest.raises(PackError):
                b"".join(Update(InMemory(wrong)).pieces(before))


def sealed(content, parts=b""):
    index = zlib.compress(canonical(content), 9)
    sha256 = hashlib.sha256(index + parts).hexdigest()
    return header_of(sha256, len(index), len(parts), UPDATE) + index + parts


OLD = {"w": np.float32([0, 1, 0, 2]), "x": np.int8([[1, 2], [3, 4]])}
NEW_INDEX = zlib.compress(
    canonical(
        {"metadata": {}, "tensors": [["w", "float32", [4], 3, "raw", 12, "raw", 12]]},
    ),
    9,
)
NO = [0, "raw", 0]


def update_with(row, parts=b"", *, maps=(), **changes):
    before = Reader(InMemory(encode(OLD)))
    content = {
        "base": before.contents.sha256,
        "result": "0" * 64,
        "index": len(NEW_INDEX),
        "maps": list(maps),
        "shared": [],
        "tensors": [row],
    }
    return before, sealed(content | changes, NEW_INDEX + parts)


ADD = np.uint32([0]).tobytes() + np.float32([7]).tobytes()
ADDED = [[], [NO, [1, "raw", 4], [1, "raw", 4], NO, NO], 0]


ADD_SHARED = [[], [0, 1, 1, 0, 0], 0]
ADD_STREAMS = [[1, "raw", 4], [1, "raw", 4]]


@pytest.mark.parametrize(
    ("row", "parts", "changes", "reason"),
    [
        (ADDED, ADD, {}, "another checksum"),  # and so all but the checksum is as it should be
        (0, b"", {}, "was stored otherwise"),
        (2, b"", {}, "a row is neither"),
        (True, b"", {}, "a row is neither"),
        ([[], [NO] * 4, 0], b"", {}, "a row is neither"),
        ([[], [NO] * 5, 2], b"", {}, "a row is neither"),
        ([[0], [NO] * 5, 0], b"", {}, "a row is neither"),
        ([[-1], [NO] * 5, 0], b"", {}, "a row is neither"),
        ([[], [[0, "raw"]] * 5, 0], b"", {}, "is not a count, a codec and a length"),
        ([[], [[-1, "raw", 0]] * 5, 0], b"", {}, "is not a count, a codec and a length"),
        ([[], [NO, NO, NO, NO, [1, "raw", 0]], 0], b"", {}, "raw takes exactly 4"),
        ([[], [NO, NO, NO, NO, [1, "zip", 4]], 0], bytes(4), {}, "codec 'zip'"),
        ([[], [NO, NO, NO, NO, [1, "raw", 4]], 0], bytes(4), {}, "1 steps for 0 elements"),
        ([[], [[3, "raw", 12], NO, NO, NO, NO], 0], bytes(12), {}, "3 elements of 2 are said"),
        ([[], [[1, "raw", 4], NO, NO, NO, NO], 0], b"\xff" * 4, {}, "beyond the 2 elements"),
        ([[], [NO, [1, "raw", 4], NO, NO, NO], 0], bytes(4), {}, "0 values for 1 that came"),
        ([[], [NO] * 5, 0], b"", {}, "in parts of other lengths"),
        ([[], [NO] * 5, 0], b"1", {}, "declares 0 bytes of parts, found 1"),
        (1, bytes(9), {}, "declares 24 bytes of parts, found 9"),
        (1, bytes(24), {}, "another checksum"),
        (ADDED, ADD, {"base": "1" * 64}, "is for the file with checksum 111"),
        (ADDED, ADD, {"base": "A" * 64}, "is no SHA-256"),
        (ADDED, ADD, {"result": "0" * 63}, "is no SHA-256"),
        (ADDED, ADD, {"result": 5}, "is no SHA-256"),
        (ADDED, ADD, {"index": 10**9}, "the new index is said to have"),
        (ADDED, ADD, {"index": -1}, "the new index is said to have"),
        (ADDED, ADD, {"index": 1.0}, "of another type"),
        (ADDED, ADD, {"tensors": {}}, "of another type"),
        (ADDED, ADD, {"maps": [[1, "raw", 3]]}, "raw takes exactly 4"),
        (ADD_SHARED, ADD, {"shared": ADD_STREAMS}, "another checksum"),
        (ADD_SHARED, ADD, {"shared": []}, "shared streams have [] elements, tensors have [1, 1]"),
        (ADD_SHARED, ADD, {"shared": [[1, "raw", 4], [2, "raw", 8]]}, "have [1, 2] elements"),
        (ADD_SHARED, ADD, {"shared": [[1, "raw", 4], [1, "raw", 3]]}, "raw takes exactly 4"),
        (ADD_SHARED, ADD, {"shared": [[1, "raw", 4], 1]}, "is not a count, a codec and a length"),
        (ADD_SHARED, ADD, {"shared": 0}, "of another type"),
        (ADDED, ADD, {"shared": [[1, "raw", 4]]}, "have [1] elements, tensors have []"),
        ([[], [0, 5, 5, 0, 0], 0], b"", {}, "of 4 elements has 5 in a shared stream"),
        ([[], [0, -1, 0, 0, 0], 0], b"", {}, "is not a count, a codec and a length"),
        ([[], [0, True, 0, 0, 0], 0], b"", {}, "is not a count, a codec and a length"),
        ([[], [0, 0, 1, 0, 0], 0], b"1234", {"shared": [[1, "raw", 4]]}, "1 values for 0 that"),
        (ADDED, ADD, {"tensors": [ADDED, ADDED]}, "2 rows for 1 tensors"),
        (ADDED, ADD, {"more": 1}, "is not an object of base, index"),
    ],
)
def test_a_hostile_update_is_refused(row, parts, changes, reason):
    before, data = update_with(row, parts, **changes)

    with pytest.raises(PackError) as caught:
        b"".join(Update(InMemory(data)).pieces(before))

    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([1, 2, 3], "has shape [4], the maps of its axes have [3] entries"),
        ([1, 2, 3, 5], "a map names entry 5 of an axis of 4"),
        ([0, 0, 0, 0], "in parts of other lengths"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(entries, reason):
    part = np.uint32(entries).tobytes()
    before, data = update_with([[0], [NO] * 5, 0], part, maps=[[len(entries), "raw", len(part)]])

    with pytest.raises(PackError, match="w") as caught:
        b"".join(Update(InMemory(data)).pieces(before))

    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("numbers", "lengths", "reason"),
    [
        ([0, 0], [4], "the maps of its axes have [4, 4] entries"),
        ([0], [2**40], "the maps of its axes have [1099511627776] entries"),
        ([0], [4, 2**40], "map 1 is of no tensor"),
        ([], [2**40], "map 0 is of no tensor"),
    ],
)
def test_maps_that_no_axis_takes_are_refused_before_one_is_decoded(numbers, lengths, reason):
    maps = [[length, "pcodec-1", 1] for length in lengths]
    _, data = update_with([numbers, [NO] * 5, 0], bytes(len(maps)), maps=maps)

    with pytest.raises(PackError) as caught:
        Update(InMemory(data))

    assert reason in str(caught.value)


def test_what_is_moved_takes_no_more_on_the_way_than_at_both_ends():
    wide, tall = np.ones((1, 5000), np.int8), np.full(5000, 0)

    for old, maps in ((wide, [tall, tall[:1]]), (wide.T, [tall[:1], tall])):
        tracemalloc.start()
        new = moved(old, maps)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (new == 1).all()
        assert peak < 10 * (old.nbytes + new.nbytes + 2 * tall.nbytes)


def test_an_update_for_which_memory_is_short_is_refused(monkeypatch):
    def no_memory(*_):
        raise MemoryError

    before, data = update_with(ADDED, ADD)
    monkeypatch.setattr(flexrel_edge.update, "changed_by", no_memory)

    with pytest.raises(PackError, match="'w' takes more memory to update than there is"):
        b"".join(Update(InMemory(data)).pieces(before))


def test_a_tensor_has_no_more_than_some_elements_in_a_shared_stream():
    rows = [["w", "int8", [5000], 5000, "raw", 5000]]
    index = zlib.compress(canonical({"metadata": {}, "tensors": rows}), 9)
    content = {
        "base": "0" * 64,
        "result": "0" * 64,
        "index": len(index),
        "maps": [],
        "shared": [[4097, "raw", 4097]],
        "tensors": [[[], [0, 0, 0, 0, 4097], 0]],
    }

    with pytest.raises(PackError, match="has 4097 in a shared stream, 4096 may be"):
        Update(InMemory(sealed(content, index + bytes(4097))))


def test_an_update_may_not_ask_for_far_more_memory_than_there_are_bytes():
    rows = [["w", "int8", [2**30], 0, "raw", 0, "raw", 0]]
    index = zlib.compress(canonical({"metadata": {}, "tensors": rows}), 9)
    before = Reader(InMemory(encode(OLD)))
    content = {
        "base": before.contents.sha256,
        "result": "0" * 64,
        "index": len(index),
        "maps": [],
        "shared": [],
        "tensors": [1],
    }

    with pytest.raises(PackError, match="have 1073741824 bytes unpacked; version 1 allows"):
        b"".join(Update(InMemory(sealed(content, index))).pieces(before))


def test_the_layout_is_as_documented():
    _, data = update_with(ADDED, ADD)
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])

    assert header["__metadata__"]["format"] == "flexrel-update"
    assert data[start + header["index"]["shape"][0] :] == NEW_INDEX + ADD
    assert (
        changed_by(np.float32([0, 1, 0, 2]), delta_of(*np.float32([[0, 1, 0, 2], [7, 1, 0, 2]])))[0]
        == 7
    )
