"""The command `flexrel-edge`: results to stdout, errors to stderr in one line.

Exit codes: 0 done, 1 can't be written as asked, 2 wrong usage (a missing file too), 5 a file is
damaged or not trusted.
"""

# ruff: noqa: T201  (errors are printed)

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from flexrel_edge import commands
from flexrel_edge.errors import FlexrelError

Parsers = Any  # what argparse adds commands to; it has no public name
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
        prog="flexrel-edge", description="Look into, verify, unpack and update packed networks."
    )
    parsers = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_readers(parsers)
    _add_updaters(parsers)
    _add_signers(parsers)
    _add_profiler(parsers)
    _add_observer(parsers)
    return parser


def _add_readers(parsers: Parsers) -> None:
    command = parsers.add_parser(
        "inspect",
        help="say what a packed file holds",
        description="Say what a packed file holds: inputs, accuracy, what went, if that was "
        "recorded. Verifies the checksum, decodes no tensor.",
        epilog="example: flexrel-edge inspect lenet.flexrel --json | jq .kept",
    )
    command.add_argument("file")
    command.add_argument("--tensors", action="store_true", help="each tensor too, a line each")
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    _add_trust(command)
    command.set_defaults(run=commands.do_inspect)

    command = parsers.add_parser(
        "verify",
        help="check every byte of a packed file",
        description="Check every byte of a packed file by decoding all of it.",
    )
    command.add_argument("file")
    _add_trust(command)
    command.set_defaults(run=commands.do_verify)

    command = parsers.add_parser(
        "unpack",
        help="write a packed file's tensors as safetensors, or its network as .onnx",
        description="Write a packed file's tensors, dense, as a safetensors file; or, where it "
        "carries an ONNX graph, as the network that it is, if the name ends in .onnx.",
    )
    command.add_argument("file")
    command.add_argument("out", help="to write; an .onnx, or else safetensors")
    _add_trust(command)
    command.set_defaults(run=commands.do_unpack)

    command = parsers.add_parser(
        "run",
        help="run a packed file that carries its ONNX graph",
        description="Run a packed file that carries its ONNX graph, in onnxruntime.",
        epilog="example: flexrel-edge run net.flexrel --input x.npy --output y.npz --repeat 20",
    )
    command.add_argument("file")
    command.add_argument("--input", required=True, help=".npy, or .npz of arrays by input")
    command.add_argument("--output", help=".npz to write, of arrays by output")
    command.add_argument("--repeat", type=int, default=0, help="run so often more, and time it")
    command.add_argument("--threads", type=int, default=0, help="of one run; 0: one a core")
    _add_trust(command)
    command.set_defaults(run=commands.do_run)


def _add_updaters(parsers: Parsers) -> None:
    command = parsers.add_parser(
        "diff",
        help="write what makes one packed file of another",
        description="Write an update: what makes one packed file of another, byte for byte.",
        epilog="example: flexrel-edge diff monday.flexrel friday.flexrel friday.fxd",
    )
    command.add_argument("old")
    command.add_argument("new")
    where = command.add_mutually_exclusive_group(required=True)
    where.add_argument("update", nargs="?")
    where.add_argument("--beside", action="store_true", help="beside NEW, where `pull` looks")
    command.set_defaults(run=commands.do_diff)

    command = parsers.add_parser(
        "patch",
        help="make the new packed file of the old one and an update",
        description="Make the new packed file of the old one and an update; all are verified.",
        epilog="example: flexrel-edge patch net.flexrel friday.fxd net.flexrel",
    )
    command.add_argument("old")
    command.add_argument("update")
    command.add_argument("new", help="to write; it may be the old one's path")
    command.add_argument(
        "--allow-older", action="store_true", help="with --trust: a lower counter too"
    )
    _add_trust(command)
    command.set_defaults(run=commands.do_patch)

    command = parsers.add_parser(
        "pull",
        help="bring a packed file up to date with one elsewhere",
        description="Bring a packed file up to date with one elsewhere, by an update if there is "
        "one beside it; the version that was there stays as FILE.previous.",
        epilog="example: flexrel-edge pull https://models.example/net.flexrel net.flexrel",
    )
    command.add_argument("url", help="http(s), a path, or what fsspec knows")
    command.add_argument("file")
    command.add_argument("--attempts", type=int, default=8, help="that bring nothing new, in a row")
    command.add_argument(
        "--allow-older", action="store_true", help="with --trust: a lower counter too"
    )
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    _add_trust(command)
    command.set_defaults(run=commands.do_pull)

    command = parsers.add_parser(
        "rollback",
        help="put the version back that was there before the last pull",
        description="Put FILE.previous in the place of FILE, and the other way round.",
    )
    command.add_argument("file")
    command.set_defaults(run=commands.do_rollback)


def _add_signers(parsers: Parsers) -> None:
    command = parsers.add_parser(
        "keygen",
        help="make a pair of keys for signatures",
        description="Write NAME.key, which signs and stays secret, and NAME.pub, for devices.",
    )
    command.add_argument("name")
    command.set_defaults(run=commands.do_keygen)

    command = parsers.add_parser(
        "sign",
        help="sign a packed file",
        description="Sign a packed file and its counter of versions, in place; Ed25519.",
        epilog="example: flexrel-edge sign net.flexrel --key fleet.key",
    )
    command.add_argument("file")
    command.add_argument("--key", required=True, help="PEM file of a private key")
    command.add_argument("--counter", type=int, help="of versions; else the seconds since 1970")
    command.set_defaults(run=commands.do_sign)


def _add_profiler(parsers: Parsers) -> None:
    command = parsers.add_parser(
        "profile",
        help="time the layers of a network on this device",
        description="Time what is in a kit of flexrel latency-kit, in onnxruntime, and write the "
        "times, for flexrel prune --latency-profile.",
        epilog="example: flexrel-edge profile kit.zip --out device.json",
    )
    command.add_argument("kit")
    command.add_argument("--out", required=True, help="file of times to write, JSON")
    command.add_argument("--threads", type=int, default=1, help="of one call")
    command.set_defaults(run=commands.do_profile)


def _add_observer(parsers: Parsers) -> None:
    command = parsers.add_parser(
        "observe",
        help="write what the layers of a network take in",
        description="Run a network on requests in files, and write what its layers take in on "
        "average, for flexrel merge and flexrel prune --statistics. What OUT has already is added "
        "to. The network was packed with --graph DATA --observe.",
        epilog="example: flexrel-edge observe net.flexrel --input spool/ --out device.moments",
    )
    command.add_argument("file")
    command.add_argument(
        "--input", required=True, nargs="+", help=".npy or .npz, a request each; or folders of them"
    )
    command.add_argument("--out", required=True, help="file of moments, a few kilobytes")
    command.add_argument("--share", type=float, default=1.0, help="of requests; by default all")
    command.add_argument(
        "--half-life", type=float, default=10_000.0, help="observed samples until one counts half"
    )
    command.add_argument("--every", type=float, default=60.0, help="seconds between two writes")
    command.add_argument("--to", metavar="URL", help="send it too: http(s) by PUT, a path, fsspec")
    command.add_argument("--key", help="PEM file of the private key that signs it")
    command.add_argument("--threads", type=int, default=0, help="of one run; 0: one a core")
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    _add_trust(command)
    command.set_defaults(run=commands.do_observe)


def _add_trust(command: argparse.ArgumentParser) -> None:
    command.add_argument("--trust", metavar="KEY", help="public key that must have signed it")
