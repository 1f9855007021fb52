"""Without torch: in a process that blocks it, and in an environment that never had it."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pcodec
import pytest

import flexrel_edge

# Leave the parent's settings behind: its PYTHONPATH could lead to torch.
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def run(python, code, *args):
    done = subprocess.run(
        [python, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        env=CLEAN,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_loads_numpy_and_pcodec_and_no_other_library():
    code = """
import sys
before = set(sys.modules)
import flexrel_edge, flexrel_edge.cli
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - set(sys.stdlib_module_names)))
"""
    found = {name for name in run(sys.executable, code).split() if not name.startswith("_")}

    assert found == {"flexrel_edge", "numpy", "pcodec"}


def test_reads_and_writes_where_torch_is_blocked(tmp_path):
    code = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "flexrel"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
import numpy
import flexrel_edge
flexrel_edge.write(sys.argv[1], {"w": numpy.float32([0, 1, 0, 2])})
print(flexrel_edge.read(sys.argv[1])["w"].tolist(), "torch" in sys.modules)
"""
    assert run(sys.executable, code, tmp_path / "w.flexrel") == "[0.0, 1.0, 0.0, 2.0] False\n"


@pytest.mark.skipif(os.name != "posix", reason="builds the environment from links")
def test_reads_in_an_environment_that_has_only_numpy_and_the_codec(tmp_path):
    packed = tmp_path / "w.flexrel"
    weights = np.where(np.arange(5000) % 10, 0, np.arange(5000)).astype(np.float32)
    flexrel_edge.write(packed, {"w": weights})
    library = tmp_path / "library"
    library.mkdir()
    for module in (np, pcodec, flexrel_edge):
        folder = Path(module.__file__).parent
        for part in (folder, folder.with_name(f"{folder.name}.libs")):
            if part.exists():
                (library / part.name).symlink_to(part)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "library.pth").write_text(f"{library}\n")
    code = """
import importlib.util, sys
import flexrel_edge, flexrel_edge.cli
assert flexrel_edge.cli.main(["verify", sys.argv[1]]) == 0
weights = flexrel_edge.read(sys.argv[1])["w"]
print(weights.dtype, weights.shape, float(weights.sum()))
print(importlib.util.find_spec("torch"), importlib.util.find_spec("safetensors"))
"""

    out = run(tmp_path / "env" / "bin" / "python", code, packed)

    # 0 + 10 + ... + 4990 = 10 * 499 * 500 / 2
    assert out.splitlines()[1:] == ["float32 (5000,) 1247500.0", "None None"]


def test_the_version_is_that_of_the_distribution():
    project = Path(__file__).parents[2] / "edge" / "pyproject.toml"

    assert flexrel_edge.__version__ == tomllib.loads(project.read_text())["project"]["version"]


def test_all_that_is_promised_is_there():
    promised = {"FlexrelError", "PackError", "read", "write", "encode", "decode", "inspect"}

    assert promised | {"__version__"} <= set(flexrel_edge.__all__)
    assert all(hasattr(flexrel_edge, name) for name in flexrel_edge.__all__)
