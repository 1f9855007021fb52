"""A million files made wrong: each is refused, or holds what it says, in time and little memory.

    python benchmarks/fuzz.py          measure (half an hour on two cores), then write the table
    python benchmarks/fuzz.py --show   the table from the JSON alone

atheris, which sees what of the reader each input reaches and goes on from those that reach more,
chooses what to change; `tests/mutations.py` changes it, inside of packed files and of updates, and
says what has to hold. Two processes, each with a seed of its own; an input that fails is written
beside the results.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

INPUTS = 1_000_000
WORKERS = 2
SECONDS = 1.0  # an input that takes longer hangs
MEMORY = 2048  # MiB of one process, pcodec's own included
LONGEST = 20_000  # bytes of an input
TESTS = common.HERE.parent / "tests"


def work(count, seed, corpus, stats):
    """Try so many inputs in this process; it ends when they are through or one has failed."""
    import atheris  # noqa: PLC0415 - of an extra

    sys.path.insert(0, str(TESTS))
    with atheris.instrument_imports(include=["flexrel_edge"]):
        import mutations  # noqa: PLC0415 - so that what it imports is watched

    found = {"inputs": 0, "accepted": 0, "slowest": 0.0}

    def try_one(data):
        began = time.process_time()
        accepted = mutations.check(data)
        seconds = time.process_time() - began
        if seconds > SECONDS:
            raise TimeoutError(f"{seconds:.1f} s for {len(data)} bytes")
        found["inputs"] += 1
        found["accepted"] += accepted
        found["slowest"] = max(found["slowest"], seconds)
        if found["inputs"] % 1000 == 0 or found["inputs"] >= count:
            stats.write_text(json.dumps(found))

    def change(data, most, seed):
        draw = random.Random(seed)  # noqa: S311
        if draw.random() < 0.1:
            return atheris.Mutate(data, most)
        return mutations.mutated(data, draw)[:most]

    for number, data in enumerate(mutations.seeds()):
        (corpus / f"seed{number}").write_bytes(data)
    options = [f"-runs={count}", f"-seed={seed}", f"-max_len={LONGEST}", "-print_final_stats=1"]
    options += [f"-rss_limit_mb={MEMORY}", f"-artifact_prefix={common.RESULTS}/fuzz-", str(corpus)]
    atheris.Setup([sys.argv[0], *options], try_one, custom_mutator=change)
    atheris.Fuzz()


def measure(inputs):
    with tempfile.TemporaryDirectory() as name:
        folder, began, running = Path(name), time.perf_counter(), []
        for seed in range(1, WORKERS + 1):
            corpus = folder / f"corpus{seed}"
            corpus.mkdir()
            share = ("--count", str(inputs // WORKERS), "--seed", str(seed))
            command = (sys.executable, __file__, *share, "--corpus", str(corpus))
            stats = folder / f"stats{seed}"
            log = (folder / f"log{seed}").open("w")
            running.append((subprocess.Popen((*command, "--stats", str(stats)), stderr=log), stats))
        failed = sum(process.wait() != 0 for process, _ in running)
        found = [json.loads(stats.read_text()) for _, stats in running if stats.is_file()]
        if failed:
            for log in folder.glob("log*"):
                print(log.read_text()[-4000:])
        kept = sum(1 for _ in folder.glob("corpus*/*"))
    return {
        "inputs": sum(one["inputs"] for one in found),
        "accepted": sum(one["accepted"] for one in found),
        "failed": failed,
        "slowest": max((one["slowest"] for one in found), default=0.0),
        "corpus": kept,
        "seconds": round(time.perf_counter() - began),
    }


def table(found):
    header = ["inputs", "refused", "held what they say", "failed", "kept for what they reach"]
    refused = found["inputs"] - found["accepted"]
    row = [found["inputs"], refused, found["accepted"], found["failed"], found["corpus"]]
    return common.table(
        [*header, "slowest", "in all"],
        [
            [
                *(f"{value:,}" for value in row),
                f"{1000 * found['slowest']:.0f} ms",
                f"{found['seconds'] / 60:.0f} min",
            ]
        ],
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--inputs", type=int, default=INPUTS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--stats", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.count:
        work(args.count, args.seed, args.corpus, args.stats)
    if not args.show:
        common.save("fuzz", measure(args.inputs))
    found = common.load("fuzz")
    common.replace_section("fuzz", table(found))
    if found["failed"]:
        sys.exit(f"{found['failed']} inputs failed: {common.RESULTS}/fuzz-*")


if __name__ == "__main__":
    main()
