"""The ONNX graph in a packed file: what the network computes, without its weights.

An ONNX file is one protocol buffers message. Such messages that follow one another are one, in
which lists are joined; so the graph, then the weights one by one, is the whole network.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BufferedIOBase
from typing import Final

import numpy as np

from flexrel_edge.errors import FlexrelError, PackError
from flexrel_edge.format import Contents, Reader, Tensor
from flexrel_edge.records import STORAGE, Array, Bfloat16, show
from flexrel_edge.source import Piece

MAX_GRAPH: Final = 2**24  # bytes, without weights
_MAX_MESSAGE: Final = 2**31 - 1  # bytes; a longer message is no protocol buffers
_GRAPH: Final = "onnx"  # keys of the metadata
_WEIGHTS: Final = "onnx_weights"
_SAMPLES: Final = "onnx_samples"
_TAPS: Final = "onnx_taps"
_HOW: Final = "flexrel pack --graph DATA, or flexrel.pack(..., graph=batch)"

INPUTS: Final = "inputs"  # what the network takes, for people
LABELS: Final = "labels"  # what its classes are called, by FlexRel or the caller
EVIDENCE: Final = "pruned"  # what it does, and what went, likewise
GRAPH_TEXTS: Final = frozenset({_GRAPH, _WEIGHTS, _SAMPLES, _TAPS})
LOADED: Final = frozenset({"attributes", "fingerprint", "form", "passed_over", "tied"})
# keys of the metadata that `flexrel` writes; all others are its users' own
OURS: Final = GRAPH_TEXTS | LOADED | {INPUTS, EVIDENCE}

# dtype as the index names it -> TensorProto.DataType
DATA_TYPES: Final[Mapping[str, int]] = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "uint16": 4,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
    "uint32": 12,
    "uint64": 13,
    "bfloat16": 16,
}
# and it as one digit of base 36; that of UNDEFINED is for a tensor that the graph does not want
_DIGITS: Final = {dtype: "0123456789abcdefg"[number] for dtype, number in DATA_TYPES.items()}
_NONE: Final = "0"
_MORE: Final = 0x80  # the bit of a byte that says that another one follows
_LENGTH: Final = 9  # digits that a number of samples may have
# numbers of the fields in onnx.proto
_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9


@dataclass(frozen=True)
class Graph:
    """What a network computes.

    Attributes:
        model: a serialized ONNX ModelProto in which the weights are not.
        weights: names of the tensors that are its initializers -> the dtype it wants of each.
        samples: how many it takes in one call; None: any number.
        taps: what follows the model in a network that also tells what its layers take in: a
            ModelProto of nodes and outputs; empty: it can't.
    """

    model: bytes
    weights: Mapping[str, str]
    samples: int | None = None
    taps: bytes = b""

    def metadata(self, names: Iterable[str]) -> dict[str, str]:
        """Return what tells of it in a packed file; FlexrelError if that can't hold so much.

        Args:
            names: of all tensors in the file.
        """
        if len(self.model) > MAX_GRAPH:
            raise FlexrelError(
                f"the ONNX graph has {len(self.model)} bytes without the weights; a packed file "
                f"takes {MAX_GRAPH}: write an .onnx file instead"
            )
        wanted = (_DIGITS[self.weights[n]] if n in self.weights else _NONE for n in sorted(names))
        texts = {_GRAPH: _deflated(self.model), _WEIGHTS: "".join(wanted)}
        if self.samples is not None:
            texts[_SAMPLES] = str(self.samples)
        if self.taps:
            texts[_TAPS] = _deflated(self.taps)
        return texts

    def tapped(self) -> Graph:
        """Return the graph with the outputs that tell what its layers take in.

        Raises:
            FlexrelError: it has none.
        """
        if not self.taps:
            raise FlexrelError(
                "its ONNX graph does not tell what its layers take in; pack it so: "
                "flexrel pack --graph DATA --observe, or flexrel prune --export observe"
            )
        return replace(self, model=self.model + self.taps, taps=b"")


def graph_in(contents: Contents) -> Graph:
    """Return the graph in a packed file.

    Raises:
        FlexrelError: there is none.
        PackError: it is damaged, or wants other tensors than there are.
    """
    metadata = contents.metadata
    if _GRAPH not in metadata:
        raise FlexrelError(f"there is no ONNX graph in this packed file; pack it with one: {_HOW}")
    weights = _wanted(metadata.get(_WEIGHTS, ""), [entry.name for entry in contents.tensors])
    taps = _inflated(metadata[_TAPS]) if _TAPS in metadata else b""
    return Graph(_inflated(metadata[_GRAPH]), weights, _samples(metadata.get(_SAMPLES)), taps)


def lost(old: Contents, new: Contents) -> tuple[str, ...]:
    """Say what devices that have the old file could do, and with the new one can't, a line each."""
    notes = []
    if _GRAPH in old.metadata and _GRAPH not in new.metadata:
        notes.append(
            "lacks the ONNX graph that the old file has: devices that run it no longer can; "
            f"pack it with one: {_HOW}"
        )
    if _TAPS in old.metadata and _TAPS not in new.metadata:
        notes.append("does not tell what its layers take in, as the old file does: see --observe")
    before, after = old.metadata.get(_SAMPLES), new.metadata.get(_SAMPLES)
    if _GRAPH in old.metadata and after not in (None, before):
        was = "any number" if before is None else show(before).strip("'")
        now = show(after).strip("'")
        notes.append(f"its ONNX graph takes {now} samples a call, the old one's {was}")
    notes += (
        f"lacks the metadata {show(key)} that the old file has; pack it with --metadata"
        for key in sorted(old.metadata.keys() - new.metadata.keys() - OURS)
    )
    return tuple(notes)


def write_onnx(packed: Reader, out: BufferedIOBase, *, observing: bool = False) -> int:
    """Write the network as an ONNX file, weights inside, tensor by tensor.

    Args:
        packed: that is read.
        out: written to, from where it stands.
        observing: whether it has outputs too that tell what its layers take in.

    Returns:
        How many bytes were written.

    Raises:
        FlexrelError: it has no graph, or is longer than an ONNX file can be.
        PackError: the graph or a tensor is damaged, or they do not fit each other.
    """
    graph = graph_in(packed.contents)
    graph = graph.tapped() if observing else graph
    entries = {entry.name: entry for entry in packed.contents.tensors}
    pieces = filled(graph, lambda name: packed.tensor(entries[name]))
    return sum(out.write(piece) for piece in pieces)


def filled(graph: Graph, tensor_of: Callable[[str], Tensor]) -> Iterator[Piece]:
    """Yield the bytes of an ONNX file, piece by piece: the graph, then one weight at a time.

    Args:
        graph: without weights.
        tensor_of: gives the tensor of each name.

    Raises:
        FlexrelError: it is longer than an ONNX file can be.
        PackError: a tensor has a dtype that can't become what the graph wants.
    """
    size = len(graph.model)
    yield graph.model
    for name, dtype in graph.weights.items():
        array = _as(dtype, name, tensor_of(name))
        head = _initializer(name, dtype, array)
        size += len(head) + array.nbytes
        if size > _MAX_MESSAGE:
            raise FlexrelError(
                f"the network takes more than {_MAX_MESSAGE:,} bytes, which no ONNX file holds; "
                "use safetensors"
            )
        yield head
        yield np.ascontiguousarray(array).data


def _deflated(model: bytes) -> str:
    return base64.b64encode(zlib.compress(model, 9)).decode("ascii")


def _inflated(text: str) -> bytes:
    try:
        inflater = zlib.decompressobj()
        model = inflater.decompress(base64.b64decode(text, validate=True), MAX_GRAPH + 1)
    except (ValueError, binascii.Error, zlib.error) as error:
        raise PackError(f"the ONNX graph is damaged: {error}") from error
    if len(model) > MAX_GRAPH:
        raise PackError(f"the ONNX graph has more than {MAX_GRAPH} bytes")
    if not inflater.eof or inflater.unused_data:
        raise PackError("the ONNX graph is damaged: it is not one whole zlib stream")
    return model


def _wanted(text: str, names: Sequence[str]) -> dict[str, str]:
    known = {digit: dtype for dtype, digit in _DIGITS.items()}
    if len(text) != len(names) or not set(text) <= {_NONE, *known}:
        raise PackError(f"the ONNX graph's weights are {show(text)}, of {len(names)} tensors")
    return {name: known[digit] for name, digit in zip(names, text) if digit != _NONE}


def _samples(text: str | None) -> int | None:
    if text is not None and not (text.isascii() and text.isdigit() and len(text) <= _LENGTH):
        raise PackError(f"the ONNX graph takes {show(text)} samples, which is no number")
    return None if text is None else int(text)


def _as(dtype: str, name: str, tensor: Tensor) -> Array:
    """Return the tensor as the graph wants it: as it is, or of a wider floating dtype."""
    found = "bfloat16" if isinstance(tensor, Bfloat16) else tensor.dtype.name
    array = tensor.bits if isinstance(tensor, Bfloat16) else tensor
    if found == dtype:
        return array
    wide = STORAGE[dtype]
    if found == "bfloat16" and dtype in ("float32", "float64"):
        return (array.astype(np.uint32) << 16).view(np.float32).astype(wide, copy=False)
    floating = found.startswith("float") and dtype.startswith("float")
    if not floating or wide.itemsize < array.dtype.itemsize:
        raise PackError(f"tensor {show(name)} is {found}, but the ONNX graph wants {dtype}")
    return array.astype(wide)


def _initializer(name: str, dtype: str, array: Array) -> bytes:
    """Return a ModelProto with one initializer, up to its values."""
    axes = b"".join(_number(_DIMS, axis) for axis in array.shape)
    text = name.encode()
    fields = axes + _number(_DATA_TYPE, DATA_TYPES[dtype]) + _length(_NAME, len(text)) + text
    fields += _length(_RAW_DATA, array.nbytes)
    tensor = _length(_GRAPH_INITIALIZER, len(fields) + array.nbytes) + fields
    return _length(_MODEL_GRAPH, len(tensor) + array.nbytes) + tensor


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _length(field: int, length: int) -> bytes:
    """Return the start of a field that has so many bytes."""
    return _varint(field << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    """Return the number seven bits a byte, the lowest first."""
    digits = bytearray()
    while value >= _MORE:
        digits.append(value % _MORE | _MORE)
        value //= _MORE
    digits.append(value)
    return bytes(digits)
