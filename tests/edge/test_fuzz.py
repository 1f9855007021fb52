"""Files made wrong in great number: each is refused, or holds what it says, in time and memory.

With atheris (of the extra "bench") installed, what of the reader an input reaches guides what is
changed next. Without it the same mutations are drawn blindly, from inputs that were made before:
the test's name says which of the two ran, and neither is skipped in silence.
"""

import importlib
import importlib.util
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mutations

GUIDED_INPUTS, BLIND_INPUTS = 100_000, 5_000
SECONDS = 1.0  # an input that takes longer hangs
MEMORY = 2048  # MiB of the process, pcodec's own included
LONGEST = 20_000  # bytes of an input
GUIDED = importlib.util.find_spec("atheris") is not None
pytestmark = pytest.mark.slow


def tried(data):
    """Fail unless the input is handled as `mutations.check` says, in time."""
    began = time.process_time()
    mutations.check(data)
    seconds = time.process_time() - began
    assert seconds <= SECONDS, f"{seconds:.1f} s for {len(data)} bytes"


@pytest.mark.skipif(GUIDED, reason="atheris is installed: the guided test runs instead")
def test_no_file_made_wrong_blindly_does_harm():
    for data in mutations.some(BLIND_INPUTS, seed=1):
        tried(data[:LONGEST])


@pytest.mark.skipif(
    not GUIDED, reason="atheris is not installed (extra 'bench'): the blind test runs instead"
)
def test_no_file_made_wrong_by_a_fuzzer_does_harm(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, data in enumerate(mutations.seeds()):
        (corpus / f"seed{number}").write_bytes(data)
    tests = str(Path(mutations.__file__).parent)
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([tests, *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "DONE" in done.stderr, done.stderr[-4000:]  # all inputs were tried
    assert not list(tmp_path.glob("failed-*"))


def fuzz(folder):
    """Let atheris try INPUTS inputs in this process, which ends with them or with a failure."""
    import atheris  # noqa: PLC0415 - where it is installed

    for name in [name for name in sys.modules if name.startswith(("flexrel_edge", "mutations"))]:
        del sys.modules[name]
    with atheris.instrument_imports(include=["flexrel_edge"]):
        globals()["mutations"] = importlib.import_module("mutations")

    def change(data, most, seed):
        draw = random.Random(seed)  # noqa: S311
        if draw.random() < 0.1:
            return atheris.Mutate(data, most)
        return mutations.mutated(data, draw)[:most]

    options = [
        f"-runs={GUIDED_INPUTS}",
        "-seed=1",
        f"-max_len={LONGEST}",
        f"-rss_limit_mb={MEMORY}",
    ]
    options += [f"-artifact_prefix={folder}/failed-", f"{folder}/corpus"]
    atheris.Setup([sys.argv[0], *options], tried, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    fuzz(sys.argv[1])
