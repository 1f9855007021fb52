"""What each command of `flexrel-edge` does: one library call, and its outcome to stdout.

Each takes the parsed arguments and returns an exit code.
"""

# ruff: noqa: D103, T201  (a function a command; the one place that prints)

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np

from flexrel_edge.about import about, printable
from flexrel_edge.errors import FlexrelError
from flexrel_edge.fetch import Patience, pull, update_name
from flexrel_edge.files import diff, inspect, opened, patch, replacing, sign
from flexrel_edge.format import Contents
from flexrel_edge.graph import GRAPH_TEXTS, graph_in, write_onnx
from flexrel_edge.observe import Observer
from flexrel_edge.profile import profile
from flexrel_edge.records import Array, Entry
from flexrel_edge.session import run, session
from flexrel_edge.trust import write_keys
from flexrel_edge.unpacked import write_safetensors
from flexrel_edge.versions import rollback

_OBSERVING = ("share", "half_life", "every", "to", "key", "threads", "trust")


def do_inspect(args: argparse.Namespace) -> int:
    contents = inspect(args.file, args.trust)
    if args.json:
        print(json.dumps(_facts(contents)))
        return 0
    kept = sum(entry.kept for entry in contents.tensors)
    total = sum(entry.total for entry in contents.tensors)
    print(
        f"{len(contents.tensors)} tensors, {kept:,} of {total:,} elements kept, "
        f"{contents.bytes:,} bytes, format version {contents.version}"
    )
    print(f"sha256 {contents.sha256}")
    if contents.counter is not None:
        checked = f"by {args.trust}" if args.trust else "not checked: pass --trust KEY"
        print(f"signed, {checked}; counter {contents.counter}")
    lines = about(contents)
    wide = max(len(name) for name, _ in lines)
    for name, text in lines:
        print(f"{name:{wide}}  {text}")
    for entry in contents.tensors if args.tensors else ():
        codecs = (entry.values_codec, entry.positions_codec, entry.scales_codec)
        kind = entry.kind if entry.scales_codec is None else f"{entry.kind} {entry.values_dtype}"
        print(
            f"{printable(entry.name)}  {entry.dtype}{list(entry.shape)}  {kind} "
            f"{'+'.join(filter(None, codecs))}  "
            f"{entry.kept:,} of {entry.total:,} kept  {entry.bytes:,} bytes"
        )
    return 0


def do_verify(args: argparse.Namespace) -> int:
    with opened(args.file, args.trust) as packed:
        packed.verify()
    trusted = f", signed by {args.trust}" if args.trust else ""
    print(f"{args.file}: whole, {len(packed.contents.tensors)} tensors{trusted}")
    return 0


def do_unpack(args: argparse.Namespace) -> int:
    with opened(args.file, args.trust) as packed, replacing(args.out) as out:
        write = write_onnx if Path(args.out).suffix == ".onnx" else write_safetensors
        size = write(packed, out)
    print(f"{args.out}: {size:,} bytes")
    return 0


def do_run(args: argparse.Namespace) -> int:
    inputs = _arrays(args.input)
    ran = run(session(args.file, threads=args.threads, trust=args.trust), inputs, args.repeat)
    if args.output:
        with replacing(args.output) as out, ZipFile(out, "w") as archive:
            for name, array in ran.outputs.items():  # np.savez would take some names for options
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
    for name, array in ran.outputs.items():
        print(f"{printable(name)}: {array.dtype}{list(array.shape)}")
    if ran.milliseconds is not None:
        print(f"median of {args.repeat} runs: {ran.milliseconds:.3g} ms")
    return 0


def do_observe(args: argparse.Namespace) -> int:
    paths = [found for given in args.input for found in _requests(Path(given))]
    options = {key: getattr(args, key) for key in _OBSERVING}
    with Observer(args.file, args.out, **options) as answer:
        for path in paths:
            answer(_arrays(str(path)))
    if answer.error:
        print(f"warning: {printable(answer.error)}", file=sys.stderr)
    moments = answer.moments()
    facts = {
        "requests": len(paths),
        "samples": moments.samples,
        "device": moments.device,
        "counter": moments.counter,
        "bytes": Path(args.out).stat().st_size,
    }
    if args.json:
        print(json.dumps(facts))
        return 0
    print(
        f"{args.out}: {len(moments.layers)} layers on {moments.samples:,.0f} samples, after "
        f"{len(paths):,} more requests; {facts['bytes']:,} bytes"
    )
    return 0


def _requests(path: Path) -> list[Path]:
    """Return the file, or those of a folder that numpy writes, by name."""
    if not path.is_dir():
        return [path]
    found = sorted(one for one in path.iterdir() if one.suffix in (".npy", ".npz"))
    if not found:
        raise FlexrelError(f"{path}: no .npy or .npz in this folder of requests")
    return found


def do_profile(args: argparse.Namespace) -> int:
    def tell(done: int, of: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done:,} of {of:,} timed", end="", file=sys.stderr, flush=True)

    found = profile(args.kit, args.out, args.threads, tell)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(f"{args.out}: {len(found['layers'])} layers timed on {found['of']['machine']}")
    print(f"the network as it is takes {found['networks']['dense']:.3g} ms a call")
    return 0


def _arrays(path: str) -> Array | dict[str, Array]:
    """Read plain numpy arrays; pickled objects are refused."""
    try:
        with Path(path).open("rb") as file:
            found = np.load(file, allow_pickle=False)
            return found if isinstance(found, np.ndarray) else {k: found[k] for k in found}
    except (ValueError, EOFError, BadZipFile) as error:
        raise FlexrelError(
            f"{path}: is no file of plain numpy arrays; save inputs with numpy.save(path, array), "
            "prepared as in training"
        ) from error


def do_diff(args: argparse.Namespace) -> int:
    update = update_name(args.new, inspect(args.old).sha256) if args.beside else args.update
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        size = diff(args.old, args.new, update)
    for warning in caught:
        print(f"warning: {printable(str(warning.message))}", file=sys.stderr)
    share = size / Path(args.new).stat().st_size
    print(f"{update}: {size:,} bytes, {share:.1%} of {args.new}")
    return 0


def do_patch(args: argparse.Namespace) -> int:
    older = args.allow_older
    size = patch(args.old, args.update, args.new, trust=args.trust, allow_older=older)
    print(f"{args.new}: {size:,} bytes")
    return 0


def do_pull(args: argparse.Namespace) -> int:
    done = pull(
        args.url,
        args.file,
        trust=args.trust,
        allow_older=args.allow_older,
        patience=Patience(attempts=args.attempts),
    )
    if args.json:
        print(json.dumps(asdict(done)))
        return 0
    how = {"kept": "up to date", "update": "by an update", "whole": "as a whole"}[done.how]
    print(f"{args.file}: {how}, {done.bytes:,} bytes, {done.transferred:,} transferred")
    return 0


def do_rollback(args: argparse.Namespace) -> int:
    rollback(args.file)
    print(f"{args.file}: the previous version is back")
    return 0


def do_keygen(args: argparse.Namespace) -> int:
    private, public = f"{args.name}.key", f"{args.name}.pub"
    write_keys(private, public)
    print(f"{private}: signs; keep it secret\n{public}: for devices, as --trust {public}")
    return 0


def do_sign(args: argparse.Namespace) -> int:
    counter = sign(args.file, args.key, args.counter)
    print(f"{args.file}: signed, counter {counter}")
    return 0


def _facts(contents: Contents) -> dict[str, object]:
    texts = {key: text for key, text in contents.metadata.items() if key not in GRAPH_TEXTS}
    has_graph = texts.keys() != contents.metadata.keys()
    return {
        "version": contents.version,
        "bytes": contents.bytes,
        "sha256": contents.sha256,
        "counter": contents.counter,
        "metadata": texts,
        "graph": {"samples": graph_in(contents).samples} if has_graph else None,
        "kept": sum(entry.kept for entry in contents.tensors),
        "total": sum(entry.total for entry in contents.tensors),
        "tensors": [_entry_facts(entry) for entry in contents.tensors],
    }


def _entry_facts(entry: Entry) -> dict[str, object]:
    derived = {"kind": entry.kind, "total": entry.total, "bytes": entry.bytes}
    return asdict(entry) | derived
