"""The command `flexrel-edge`: results to stdout, errors to stderr in one line.

Exit codes: 0 done, 1 can't be written as asked, 2 wrong usage (a missing file too), 5 a file is
damaged or not trusted.
"""

# ruff: noqa: T201  (the one place that prints)

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from flexrel_edge.errors import FlexrelError
from flexrel_edge.files import inspect, read_packed, replace_file
from flexrel_edge.records import Contents, Entry
from flexrel_edge.unpacked import to_safetensors

_WRONG_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = _parser().parse_args(argv)
    try:
        code = int(args.run(args))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except FlexrelError as error:
        print(f"flexrel-edge: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"flexrel-edge: {where}{error.strerror or error}", file=sys.stderr)
        return _WRONG_USAGE
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flexrel-edge", description="Look into, verify and unpack packed networks."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "inspect",
        help="say what a packed file holds",
        description="Say what a packed file holds. Verifies the checksum, decodes no tensor.",
        epilog="example: flexrel-edge inspect lenet.flexrel --json | jq .kept",
    )
    command.add_argument("file")
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    command.set_defaults(run=_inspect)

    command = commands.add_parser(
        "verify",
        help="check every byte of a packed file",
        description="Check every byte of a packed file by decoding all of it.",
    )
    command.add_argument("file")
    command.set_defaults(run=_verify)

    command = commands.add_parser(
        "unpack",
        help="write a packed file's tensors as safetensors",
        description="Write a packed file's tensors, dense, as a safetensors file.",
    )
    command.add_argument("file")
    command.add_argument("out")
    command.set_defaults(run=_unpack)
    return parser


def _inspect(args: argparse.Namespace) -> int:
    contents = inspect(args.file)
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
    for key, text in contents.metadata.items():
        print(f"{_line(key)}: {_line(text)}")
    for entry in contents.tensors:
        codecs = "+".join(filter(None, (entry.values_codec, entry.positions_codec)))
        print(
            f"{_line(entry.name)}  {entry.dtype}{list(entry.shape)}  {entry.kind} {codecs}  "
            f"{entry.kept:,} of {entry.total:,} kept  {entry.bytes:,} bytes"
        )
    return 0


def _verify(args: argparse.Namespace) -> int:
    packed = read_packed(args.file)
    print(f"{args.file}: whole, {len(packed.tensors)} tensors")
    return 0


def _unpack(args: argparse.Namespace) -> int:
    data = to_safetensors(read_packed(args.file))
    replace_file(args.out, data)
    print(f"{args.out}: {len(data):,} bytes")
    return 0


def _facts(contents: Contents) -> dict[str, object]:
    return {
        "version": contents.version,
        "bytes": contents.bytes,
        "sha256": contents.sha256,
        "metadata": contents.metadata,
        "kept": sum(entry.kept for entry in contents.tensors),
        "total": sum(entry.total for entry in contents.tensors),
        "tensors": [_entry_facts(entry) for entry in contents.tensors],
    }


def _entry_facts(entry: Entry) -> dict[str, object]:
    derived = {"kind": entry.kind, "total": entry.total, "bytes": entry.bytes}
    return asdict(entry) | derived


def _line(text: str) -> str:
    """Keep what a file says from moving the cursor or breaking the line."""
    return text if text.isprintable() else ascii(text)
