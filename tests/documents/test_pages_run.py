"""What a reader is told to type works: the code of a page, from top to bottom, as it stands there.

Python blocks of a page share one namespace, and a folder. Blocks with a title are files in it.
Lines of shell blocks that begin with `flexrel`, `flexrel-edge`, `python`, `mkdir` or `cp` are run
there too.
"""

import glob
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
import typer

import flexrel.cli
import flexrel_edge.cli
from flexrel.cli.app import app
from oracles import needs
from pages import PAGES, ROOT, blocks, name_of

CODE = ("python", "sh", "setup", "needs")
SHOWN = ("text", "json", "toml", "yaml")  # output and files of others
TOLD = [page for page in PAGES if any(b.kind in CODE for b in blocks(page.read_text("utf-8")))]
NOT_RUN = 10  # blocks


def commands(text):
    """Return the words of each line of a shell block, comments left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def expanded(words):
    """Return words as a shell gives them, with the names of files in place of patterns."""
    found = [(word, sorted(glob.glob(word))) for word in words]  # noqa: PTH207 - as typed
    return [name for word, names in found for name in names or [word]]


def parse(program, *words):
    """Find out that a program takes these words, and do nothing."""
    if program == "flexrel-edge":
        flexrel_edge.cli._parser().parse_args(words)
    elif program == "flexrel":
        group = typer.main.get_command(app)
        context = group.make_context(program, list(words), resilient_parsing=False)
        _, command, rest = group.resolve_command(context, list(words))
        command.make_context(command.name, rest, parent=context)


def run(program, *words):
    """Run a line of a shell block, of which it is known how."""
    if program == "flexrel":
        assert flexrel.cli.main(words) == 0, words
    elif program == "flexrel-edge":
        assert flexrel_edge.cli.main(words) == 0, words
    elif program == "cp":
        shutil.copy(*words)
    elif program == "mkdir":
        Path(*words).mkdir()
    elif program == "python":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", list(words))
            runpy.run_path(words[0], run_name="__main__")


def follow(page):
    """Do what a page says, from top to bottom."""
    space = {"__name__": "page"}
    for block in blocks(page.read_text("utf-8")):
        if block.kind == "needs":
            for package in block.text.split():
                needs(package)
        elif block.file:
            with open(block.file, "w", encoding="utf-8") as file:  # noqa: PTH123 - of this folder
                file.write(block.text)
        elif block.kind in ("python", "setup"):
            code = "\n" * (block.line - 1) + block.text  # so that errors name the page's lines
            code = compile(code, name_of(page), "exec")
            if not block.not_run:
                exec(code, space)  # noqa: S102 - that is what it is for
        elif block.kind == "sh":
            for words in commands(block.text):
                (parse if block.not_run else run)(*expanded(words))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, whose Python files are forgotten afterwards: pages have the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("page", TOLD, ids=name_of)
def test_a_page_does_what_it_says(page):
    with torch.random.fork_rng(devices=[]):
        follow(page)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_it_is(page):
    found = list(blocks(page.read_text("utf-8")))

    assert {block.kind for block in found} <= {*CODE, *SHOWN}
    assert all(block.text for block in found)


def test_what_is_not_run_is_known_and_says_why():
    found = [
        (name_of(page), block.not_run)
        for page in PAGES
        for block in blocks(page.read_text("utf-8"))
        if block.not_run and block.kind in CODE
    ]

    assert len(found) == NOT_RUN, found


def test_a_page_is_read_as_it_is_written():
    page = (
        "<!-- needs: timm -->\n<!-- setup\na = 1\n-->\ntext\n"
        '```python title="net.py"\nb = 2\n```\n\n'
        "<!-- not run: a download -->\n```sh\nc \\\n  d\n```\n"
    )

    found = [(b.line, b.kind, b.text, b.file, b.not_run) for b in blocks(page)]

    assert found == [
        (1, "needs", "timm", None, None),
        (3, "setup", "a = 1\n", None, None),
        (7, "python", "b = 2\n", "net.py", None),
        (12, "sh", "c \\\n  d\n", None, "a download"),
    ]
    assert commands("a 'b c' \\\n  d  # e\n# f\n\ng\n") == [["a", "b c", "d"], ["g"]]


def test_words_that_a_program_does_not_take_are_found():
    parse("flexrel", "prune", "demo:digits", "--calibration", "demo:digits", "--budget", "macs=50%")
    parse("flexrel-edge", "pull", "https://models.example/net.flexrel", "net.flexrel")

    with pytest.raises(Exception, match=re.compile("no such option", re.IGNORECASE)):
        parse("flexrel", "prune", "demo:digits", "--calibration", "demo:digits", "--quick")
    with pytest.raises(SystemExit):
        parse("flexrel-edge", "fetch", "https://models.example/net.flexrel")
