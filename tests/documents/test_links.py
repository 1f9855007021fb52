"""What the documents point at is there, and every page can be found."""

import re

import pytest

import flexrel
import flexrel_edge
from flexrel import hub, online, tracking, training
from flexrel.errors import FlexrelError
from pages import PAGES, ROOT, name_of

DOCS = ROOT / "docs"
ALSO = [*ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md"]
ALL = sorted({*PAGES, *ALSO})
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def prose(text):
    """Return a page without its blocks of code, comments and code in lines."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"<!--.*?-->|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(page):
    """Return what a link to a part of a page may name: as GitHub and MkDocs write headings."""
    lines = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", lines, re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings]
    return {re.sub(r"\s", "-", each) for each in plain} & {
        re.sub(r"[\s-]+", "-", each) for each in plain
    }


def broken(page):
    """Return the links of a page that lead nowhere."""
    for link in _LINK.findall(prose(page.read_text("utf-8"))):
        path, _, part = link.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = (page.parent / path).resolve() if path else page
        outside = page.is_relative_to(DOCS) and not target.is_relative_to(DOCS)
        if not target.exists() or outside or (part and part not in anchors(target)):
            yield link


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_every_link_leads_somewhere(page):
    assert not list(broken(page))


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "b.md").write_text("# One & two\n\n## Why, then?\n")
    page = tmp_path / "a.md"
    page.write_text(
        "# A\n[1](b.md) [2](b.md#why-then) [3](#a) [4](https://example.org/x) ![5](c.png)\n"
        "[6](b.md#what) [7](#b) `[8](d.md)`\n```python\nx[9](y)\n```\n[10](b.md#one-two)\n"
    )

    assert list(broken(page)) == ["c.png", "b.md#what", "#b", "b.md#one-two"]


def test_every_page_is_in_the_navigation_and_each_of_these_is_a_page():
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"^ +- (?:[^:\n]+: )?(\S+\.md)$", navigation, re.MULTILINE)

    assert sorted(listed) == sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))


@pytest.mark.parametrize(
    ("package", "page"),
    [
        (flexrel, "python"),
        (hub, "python"),
        (online, "python"),
        (tracking, "python"),
        (training, "python"),
        (flexrel_edge, "edge"),
    ],
)
def test_every_public_name_is_in_the_reference(package, page):
    text = (DOCS / "reference" / f"{page}.md").read_text("utf-8")

    named = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}

    assert set(package.__all__) - {"__version__", "hub", "online", "tracking", "training"} <= named


def rows(text, first):
    """Return the table that begins with a row."""
    return text[text.index(first) :].partition("\n\n")[0].strip()


def test_the_readme_and_the_page_have_the_same_exit_codes_and_all_that_errors_have():
    readme = rows((ROOT / "README.md").read_text("utf-8"), "| exit code |")
    page = rows((DOCS / "cli.md").read_text("utf-8"), "| exit code |")

    def codes(error):
        return {error.exit_code}.union(*map(codes, error.__subclasses__()))

    assert readme == page
    assert codes(FlexrelError) <= {
        int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)
    }
