"""The loop of a fleet, with processes of its own for server and devices."""

import importlib.util
from pathlib import Path

import pytest

import flexrel_edge
from oracles import needs

LOOP = Path(__file__).parents[1] / "examples" / "edge_loop" / "loop.py"


@pytest.mark.slow
def test_what_devices_see_brings_a_better_plan_in_a_small_update(tmp_path):
    for library in ("sklearn", "onnxscript", "onnxruntime", "cryptography"):
        needs(library)
    spec = importlib.util.spec_from_file_location("loop", LOOP)
    loop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loop)

    came = loop.main(tmp_path / "loop")

    assert came["after"] > came["before"] + 0.1
    assert {one["how"] for one in came["updates"]} == {"update"}
    assert all(one["transferred"] < 0.4 * came["bytes"] for one in came["updates"])
    files = [tmp_path / "loop" / name / "model.flexrel" for name in ("left", "right", "offered")]
    assert len({flexrel_edge.inspect(file).sha256 for file in files}) == 1
    assert all(size < 4000 for size in came["moments"])
