"""Networks for other programs: ONNX, and torch's own programs."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import nn

from flexrel.core.batches import RawBatch, first_samples, read_batches
from flexrel.core.caches import cache_note, uncached
from flexrel.core.whole import uncut
from flexrel.errors import ModelError, UsageError
from flexrel.io.encode import names_of
from flexrel.io.onnx import check_installed, onnx_graph
from flexrel.io.state import stored_as_is
from flexrel.structure import difference, outputs, quiet, torch_program
from flexrel_edge.files import replace_file
from flexrel_edge.format import describe
from flexrel_edge.graph import filled, graph_in

EXPORTS: Final = ("onnx", "pt2")
GRAPH: Final = "graph"  # of ONNX, inside of the packed file
OBSERVE: Final = "observe"  # likewise, and it can tell what layers take in
_ONNX: Final = frozenset({"onnx", GRAPH, OBSERVE})
_AGREE: Final = 1e-4  # the difference that a program may make, as a share of the largest output


def export(
    model: nn.Module, example: RawBatch, path: str | Path, *, input_names: Sequence[str] = ()
) -> int | None:
    """Write the model, in evaluation mode, for programs that do not know its class.

    Args:
        model: not changed. A cache that it returns for its next call, as Hugging Face's models do
            where `config.use_cache` is on, is left out.
        example: a batch of inputs, labels not needed.
        path: ends in `.onnx`, weights inside, or `.pt2`, for `torch.export.load`; replaced if it
            is there, whole or not at all.
        input_names: for an `.onnx`, in the order of the inputs; none: those of `forward`. Outputs
            are named by their keys, or "output", and the axis of samples "batch".

    Returns:
        How many samples a call of it takes; None: any number.

    Raises:
        UsageError: another ending, no batch, names that are not those of as many inputs, or the
            extra "export" that `.onnx` takes is missing.
        ModelError: the model can't be exported, or becomes one that computes something else.
    """
    kind = Path(path).suffix.removeprefix(".")
    check_path(path)
    check_named(input_names, [kind])
    data, samples = exported(model, example, kind, input_names)
    replace_file(Path(path), data)
    return samples


def check_path(path: str | Path) -> None:
    """Refuse a name that does not tell what to write."""
    if Path(path).suffix.removeprefix(".") not in EXPORTS:
        known = " or ".join(f".{ending}" for ending in EXPORTS)
        raise UsageError(f"{path}: the name of an exported network ends in {known}")


def check_exports(kinds: Sequence[str], input_names: Sequence[str] = ()) -> None:
    """Refuse what a result can't be exported as, before the work of it."""
    check_named(input_names, kinds)
    known = (*EXPORTS, GRAPH, OBSERVE)
    for kind in kinds:
        if kind not in known:
            raise UsageError(f"export {kind!r} is not known; there are: {', '.join(known)}")
    if _ONNX & set(kinds):
        check_installed()


def check_named(input_names: Sequence[str], kinds: Sequence[str]) -> None:
    """Refuse names of inputs where nothing is written that has them.

    Args:
        input_names: that are asked for.
        kinds: of what is written.
    """
    if isinstance(input_names, str):
        raise UsageError(f"input_names is the text {input_names!r}; pass a list, [{input_names!r}]")
    if input_names and not _ONNX & set(kinds):
        raise UsageError(
            f"inputs can be named ({', '.join(input_names)}) in ONNX alone, a model.onnx or the "
            "graph in a packed file; nothing else is exported here"
        )


def graph_notes(name: str, data: bytes) -> list[str]:
    """Return what there is to know of the ONNX graph in a packed file, a line each."""
    samples = graph_in(describe(data)).samples
    return [] if samples is None else [_fixed(f"the ONNX graph in {name}", samples)]


def export_notes(name: str, samples: int | None, model: nn.Module) -> list[str]:
    """Return what there is to know of a model's export, a line each.

    Args:
        name: of the file.
        samples: that a call takes; None: any number.
        model: that was exported.
    """
    return [*([] if samples is None else [_fixed(name, samples)]), *cache_note(name, model)]


def _fixed(name: str, samples: int) -> str:
    """Say of an exported network that it takes inputs of one size, of so many samples."""
    return f"{name} takes inputs of the example's size alone, {samples} samples a call"


def exported(
    model: nn.Module, example: RawBatch, kind: str, input_names: Sequence[str] = ()
) -> tuple[bytes, int | None]:
    """Return the content of a file that `export` writes, and how many samples a call takes.

    Args:
        model: as for `export`.
        example: likewise.
        kind: "onnx" or "pt2".
        input_names: as for `export`.

    Raises:
        UsageError: as for `export`.
        ModelError: likewise.
    """
    if kind == "onnx":
        tensors = names_of(model)[0]
        graph = onnx_graph(model, example, tensors, input_names)
        pieces = filled(graph, lambda name: stored_as_is(tensors[name]))
        return b"".join(pieces), graph.samples
    model = uncached(model)
    whole = next(read_batches(uncut(model, [example]).batches, model))
    program, used, dynamic = torch_program(model, first_samples(whole), whole)
    file = io.BytesIO()
    with quiet():
        torch.export.save(program, file)
        have = outputs(program.module(), used)
    want = outputs(model, used)
    found = difference(want, want, have)
    if isinstance(found, str) or found > _AGREE:
        raise ModelError(
            "the exported program computes something else than the model; the difference, as a "
            f"share of the largest output, is {found}"
        )
    return file.getvalue(), None if dynamic else whole.samples
