"""One word for one thing: no public name is defined in two files, and no file is over 300 lines."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "src" / "flexrel"
MOST_LINES = 300


def defined_in(text):
    """Return the public names that a module defines at its top level, and on which line."""
    found = {}
    for node in ast.parse(text).body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                names = [name]
            case ast.Assign(targets=targets):
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names = [name]
            case _:
                names = []
        found |= {name: node.lineno for name in names if not name.startswith("_")}
    return found


def defined_twice(folder):
    """Return the names that more than one file of a folder defines: name -> the places."""
    places = defaultdict(list)
    for file in sorted(folder.rglob("*.py")):
        for name, line in defined_in(file.read_text(encoding="utf-8")).items():
            places[name].append(f"{file.relative_to(folder)}:{line}")
    return {name: found for name, found in places.items() if len(found) > 1}


def test_no_public_name_has_two_meanings():
    twice = defined_twice(LIBRARY)

    assert not twice, "\n".join(f"{name}: {' and '.join(at)}" for name, at in twice.items())


def test_definitions_are_found_and_imports_are_none(tmp_path):
    (tmp_path / "room").mkdir()
    (tmp_path / "one.py").write_text(
        "from room import Alias, used\nLIMIT: int = 1\n_OWN = 2\n\n\nclass Thing:\n    LIMIT = 3\n"
    )
    (tmp_path / "room" / "two.py").write_text(
        "Alias = int\nLIMIT = 2\n_OWN = 3\n\n\ndef Thing():\n    used = 1\n\n\ndef used(): ...\n"
    )

    assert defined_twice(tmp_path) == {
        "LIMIT": ["one.py:2", "room/two.py:2"],
        "Thing": ["one.py:6", "room/two.py:6"],
    }


def lengths():
    """Return how many lines each file of both distributions has."""
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "edge" / "src").rglob("*.py")]
    return {
        file.relative_to(ROOT).as_posix(): len(file.read_text(encoding="utf-8").splitlines())
        for file in files
    }


def test_no_file_is_too_long_to_be_read_at_once():
    longer = {name: n for name, n in lengths().items() if n > MOST_LINES}

    assert not longer
