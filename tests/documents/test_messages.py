"""The errors and warnings that docs/troubleshooting.md explains are those that are printed."""

import ast
import re

from pages import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
ANY = "…"  # stands for names and numbers


def texts_in(source):
    """Yield every text of a Python file, with `…` for what is filled in."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Constant(value=str(text)):
                yield text
            case ast.JoinedStr(values=parts):
                yield "".join(p.value if isinstance(p, ast.Constant) else ANY for p in parts)


def pattern(message):
    """Return what fits a message of the page, with anything in place of `…`."""
    return re.compile(".*".join(map(re.escape, message.split(ANY))), re.DOTALL)


def test_each_message_of_the_page_is_one_that_the_library_has():
    folders = (ROOT / "src", ROOT / "edge" / "src")
    files = [file for folder in folders for file in folder.rglob("*.py")]
    printed = [text for file in files for text in texts_in(file.read_text("utf-8"))]
    messages = re.findall(r"^\*\*`(.+)`\*\*$", PAGE, re.MULTILINE)

    unknown = [m for m in messages if not any(pattern(m).fullmatch(text) for text in printed)]

    assert len(messages) > 30
    assert not unknown


def test_texts_are_read_with_what_is_filled_in_left_open():
    source = 'raise E(f"has {n:,} " f"of {m}") from "plain"'

    assert set(texts_in(source)) >= {"has … of …", "plain"}
    assert pattern("has … of …").fullmatch("has … of … rows")
    assert not pattern("has … of").fullmatch("has … of … rows")
