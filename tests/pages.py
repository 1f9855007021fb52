"""The documents as a reader meets them: blocks of code in their order, headings, links."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "edge" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
_FENCE = re.compile(r"```(\w*)(?: title=\"([^\"]+)\")?$")
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->$")
_NEEDS = re.compile(r"<!-- needs: (.+) -->$")


@dataclass(frozen=True)
class Block:
    """A block of a page.

    Attributes:
        line: of the page at which its code begins.
        kind: the language of its fence; "setup" of what the page hides in a comment, as
            `<!-- setup`, code, `-->`; "needs" of packages, `<!-- needs: a b -->`.
        text: of it.
        file: that it is the content of, as its title says.
        not_run: why it can't be run here, as `<!-- not run: why -->` above it says.
    """

    line: int
    kind: str
    text: str
    file: str | None = None
    not_run: str | None = None


def blocks(text: str) -> Iterator[Block]:
    """Yield a page's blocks from top to bottom."""
    lines = text.splitlines()
    at, why = 0, None
    while at < len(lines):
        line = lines[at]
        at += 1
        if told := _NOT_RUN.match(line):
            why = told[1]
            continue
        if needs := _NEEDS.match(line):
            yield Block(at, "needs", needs[1])
        elif (fence := _FENCE.match(line)) or line == "<!-- setup":
            kind, file = fence.groups() if fence else ("setup", None)
            end = lines.index("```" if fence else "-->", at)
            yield Block(at + 1, kind, "\n".join(lines[at:end]) + "\n", file, why)
            at = end + 1
        elif why:
            raise ValueError(f"line {at}: 'not run' stands above no block")
        why = None


def name_of(page: Path) -> str:
    """Return a page's path from the root of the repository."""
    return page.relative_to(ROOT).as_posix()
