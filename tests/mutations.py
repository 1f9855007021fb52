"""Files made wrong, and what has to hold of any file at all: for the tests and for the fuzzer.

A mutation that leaves the checksum wrong is refused there and reaches nothing else. So most change
what is inside, the rows of the index or the bytes of a part, and seal it again.
"""

import hashlib
import json
import random
import tracemalloc
import zlib

import numpy as np

from flexrel_edge import Bfloat16, PackError, decode, encode
from flexrel_edge.container import FILE, UPDATE, Signed, header_of
from flexrel_edge.difference import difference
from flexrel_edge.format import Reader, describe
from flexrel_edge.index import canonical
from flexrel_edge.source import InMemory
from flexrel_edge.update import Update

SLACK = 2**23  # bytes; what reading takes whatever a file declares: the buffers of a run, the index
UPDATED = 8  # times that an update takes what reading does: old and new, where they differ, gaps
SMALL = 2**16  # elements; so many at most are packed again
INTEGERS = (0, 1, -1, 2, 7, 8, 127, 255, 2**16, 2**18, 2**20, 2**26, 2**31, 2**32, 2**63, 10**30)
TEXTS = (
    "",
    "raw",
    "pcodec-1",
    "zstd-1",
    "float32",
    "int8",
    "bool",
    "bfloat16",
    "w",
    "../w",
    "\ud800",
)
OTHERS = (None, True, 1.5, [], {}, [[]], "x" * 300)


def _tensors(seed):
    draw = np.random.default_rng(seed)
    weight = draw.standard_normal((12, 9)).astype(np.float32)
    four = np.tile(np.arange(4), (512, 1))
    whole = draw.integers(-7, 8, (6, 40)).astype(np.float32)
    return {
        "bias": weight[0],
        "dense": weight,
        "empty": np.zeros((3, 0), np.float16),
        "flags": draw.random(70) < 0.3,
        "half": Bfloat16(draw.integers(0, 3, 50).astype(np.uint16)),
        "long": np.repeat(draw.integers(0, 3, 40), 20),
        "scaled": whole * np.float32(0.25),
        "sparse": np.where(draw.random((8, 5, 3, 3)) < 0.2, 1.5, 0).astype(np.float32),
        "2 of 4": np.where(draw.permuted(four, axis=1) < 2, 2.5, 0).reshape(16, 128),
        "blocks": np.where(draw.random((16, 16)) < 0.3, 7, 0)
        .astype(np.int8)
        .repeat(8, 0)
        .repeat(8, 1),
    }


def _cut(tensors):
    """The same without some channels, and with other values."""
    found = dict(tensors)
    found["dense"] = found["dense"][[0, 1, 2, 5, 7, 8]]
    found["scaled"] = found["scaled"][1:] * np.float32(2)
    found["sparse"] = np.where(np.arange(360).reshape(8, 5, 3, 3) % 50, found["sparse"], 3)
    return {name: value for name, value in found.items() if name != "flags"}


def _signed(data):
    reader = Reader(InMemory(data))
    return b"".join(reader.resealed(Signed(7, "ab" * 64)))


BASE = encode(_tensors(0), metadata={"by": "us"})


def seeds():
    """Return files of every kind, each as small as may be."""
    one = {"w": np.float32([0, 0, 3, 0])}
    news = [encode(_cut(_tensors(0))), encode(_tensors(0) | one), encode(_tensors(1))]
    reader = Reader(InMemory(BASE))
    return [
        BASE,
        *news,
        encode({}),
        encode(one),
        encode(_tensors(2), codec="zstd-1"),
        _signed(BASE),
        *(difference(reader, Reader(InMemory(new))) for new in news),
    ]


def mutated(data, draw):
    """Return the file with something else in it, sealed again more often than not.

    Args:
        data: any bytes.
        draw: a `random.Random`.
    """
    opened = _opened(data)
    if opened is None or draw.random() < 0.05:
        return _bytes(data, draw)
    name, content, parts, signed = opened
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        kind = draw.random()
        if kind < 0.6:
            content = _value(content, draw)
        elif kind < 0.9:
            parts = _bytes(parts, draw)
        elif isinstance(content, dict) and content.get("tensors"):
            content["tensors"] = _list(content["tensors"], draw)
    if draw.random() < 0.5:
        _fit(content, len(parts), draw)
    index = zlib.compress(_text(content, draw), draw.choice((0, 9)))
    if draw.random() < 0.05:
        index = _bytes(index, draw)
    sha256 = hashlib.sha256(index + parts).hexdigest()
    return header_of(sha256, len(index), len(parts), name, signed) + index + parts


def check(data):
    """Fail unless the bytes are refused in one line or hold what they say; return which.

    Neither takes more memory than twice what the index declares and the reader has checked; with
    an update, `UPDATED` times that.
    """
    tracemalloc.start()
    try:
        declared, accepted = _checked(data)
        peak = tracemalloc.get_traced_memory()[1]
    except PackError as error:
        declared, accepted = _declared(data), False
        peak = tracemalloc.get_traced_memory()[1]
        message = str(error)
        assert "\n" not in message, message
        assert len(message) < 1000, message
    finally:
        tracemalloc.stop()
    assert peak < SLACK + 4 * len(data) + 2 * declared, (peak, declared)
    if accepted and declared < SMALL:
        _check_again(data)
    return accepted


def _checked(data):
    if b'"format":"flexrel-update"' in data[:400]:
        base = Reader(InMemory(BASE))
        update = Update(InMemory(data))
        made = b"".join(update.pieces(base))
        return UPDATED * sum(entry.dense_bytes for entry in update.tensors), bool(describe(made))
    contents = describe(data)
    tensors = decode(data).tensors
    assert [entry.name for entry in contents.tensors] == list(tensors)
    for entry in contents.tensors:
        tensor = tensors[entry.name]
        bits = tensor.bits if isinstance(tensor, Bfloat16) else tensor
        assert bits.shape == entry.shape
        assert bits.dtype == (np.bool_ if entry.dtype == "bool" else entry.storage)
        assert bits.nbytes <= entry.dense_bytes
    return sum(entry.dense_bytes for entry in contents.tensors), True


def _declared(data):
    """What the reader let the file ask for, in bytes; 0 if it did not get as far."""
    try:
        if b'"format":"flexrel-update"' in data[:400]:
            return UPDATED * sum(entry.dense_bytes for entry in Update(InMemory(data)).tensors)
        return sum(entry.dense_bytes for entry in describe(data).tensors)
    except PackError:
        return 0


def _check_again(data):
    """What was read and is packed once more is read as the same bits."""
    if b'"format":"flexrel-update"' in data[:400]:
        return
    first = decode(data)
    second = decode(encode(first.tensors, metadata=first.metadata))
    assert second.metadata == first.metadata
    for name, tensor in first.tensors.items():
        bits, again = (
            value.bits if isinstance(value, Bfloat16) else value
            for value in (tensor, second.tensors[name])
        )
        assert bits.tobytes() == again.tobytes()


def _opened(data):
    """Return name, content, parts and signature of a file that has them, else None."""
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        index = header["index"]["shape"][0]
        marks = header["__metadata__"]
        rest = data[8 + size :]
        content = json.loads(zlib.decompress(rest[:index]))
        signed = Signed(int(marks["counter"]), marks["signature"]) if "counter" in marks else None
        name = UPDATE if marks["format"] == UPDATE else FILE
        return name, content, rest[index:], signed
    except (ValueError, LookupError, TypeError, RecursionError, zlib.error):
        return None


def _bytes(data, draw):
    if not data:
        return bytes(draw.choices(range(256), k=draw.randint(1, 8)))
    at, end = sorted(draw.choices(range(len(data) + 1), k=2))
    end = min(end, at + 16)
    some = bytes(draw.choices(range(256), k=draw.randint(1, 8)))
    one = min(at, len(data) - 1)
    fill = draw.choice((b"\0", b"\xff"))
    return draw.choice(
        (
            data[:one] + bytes([data[one] ^ 1 << draw.randrange(8)]) + data[one + 1 :],  # a bit
            data[:at] + some + data[at + len(some) :],  # overwritten
            data[:at] + some + data[at:],  # inserted
            data[:at] + data[end:],  # gone
            data[:end] + data[at:],  # twice
            data[:at] + fill * (end - at) + data[end:],
        )
    )


def _value(value, draw):
    """Return JSON with another value in one place of it."""
    if isinstance(value, dict) and value and draw.random() < 0.97:
        rows = "tensors" in value and draw.random() < 0.8  # there is most to get wrong
        key = "tensors" if rows else draw.choice(sorted(value))
        more = {draw.choice(("codec", "signed", "x")): value[key]} if draw.random() < 0.05 else {}
        return {**more, **value, key: _value(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.9:
        at = draw.randrange(len(value))
        return [*value[:at], _value(value[at], draw), *value[at + 1 :]]
    near = (*OTHERS, *TEXTS, *INTEGERS)
    if isinstance(value, list):
        near = (_list(value, draw),)
    elif type(value) is int:
        around = (value + 1, value - 1, value * 2, value // 2, -value, value + 4, value - 4)
        near = (*around, *INTEGERS, None)
    elif isinstance(value, str):
        near = (*TEXTS, value[:-1], value + "a", value[::-1], 7)
    return draw.choice(near)


def _list(values, draw):
    if not values:
        return [draw.choice((*OTHERS, *TEXTS, *INTEGERS))]
    at = draw.randrange(len(values))
    return draw.choice(
        (
            values[:at] + values[at + 1 :],
            values[: at + 1] + values[at:],
            values[::-1],
            values[:at],
            [*values, draw.choice(INTEGERS)],
        )
    )


def _fit(content, held, draw):
    """Make the lengths in the index add up again, so that what lies behind them is reached."""
    try:
        rows = [row for row in content["tensors"] if isinstance(row, list) and len(row) > 5]
        row = draw.choice(rows)
        row[5] += held - sum(sum(row[at] for at in (5, 7, 9) if at < len(row)) for row in rows)
    except (LookupError, TypeError):
        return


def _text(content, draw):
    if draw.random() < 0.02:
        return json.dumps(content).encode()
    return canonical(content)


def some(count, seed):
    """Yield so many mutated files: of seeds, and of what was made of them."""
    draw = random.Random(seed)  # noqa: S311
    first = seeds()
    made = list(first)
    for _ in range(count):
        data = mutated(draw.choice(draw.choice((first, made))), draw)
        if len(data) < 5000:
            made[draw.randrange(len(made))] = data
        yield data
