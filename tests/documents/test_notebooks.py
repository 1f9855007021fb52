"""The notebooks of examples/ are small, were run as they stand, and tell nothing of where."""

import ast
import json
import re

import pytest

from pages import ROOT, name_of

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
MOST_BYTES = 100_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_was_run_from_top_to_bottom_without_an_error(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]

    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    assert "error" not in {output["output_type"] for cell in code for output in cell["outputs"]}
    assert sum(bool(cell["outputs"]) for cell in code) > len(code) / 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_is_small_and_names_no_place_on_a_machine(path):
    text = path.read_text("utf-8")

    assert len(text) < MOST_BYTES
    assert not re.findall(r"""["'( ](?:/\w+/\w|[A-Z]:\\)""", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_uses_names_that_the_library_has(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    space = {}
    exec("import flexrel, flexrel_edge", space)  # noqa: S102 - modules by name

    used = [
        (node.value.id, node.attr)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    ]

    ours = [(name, part) for name, part in used if name in ("flexrel", "flexrel_edge")]
    assert ours
    assert not [part for name, part in ours if not hasattr(space[name], part)]
