"""Records in, one HTML page out: no font, no picture, no script from elsewhere."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from flexrel.io.figures import count, percent
from flexrel.io.page import page_of


def render(result: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """Return the report of a result as a self-contained page.

    Args:
        result: content of `result.json`.
        plan: content of `plan.json`.
    """
    pages = Environment(
        loader=PackageLoader("flexrel.io", "."),
        autoescape=select_autoescape(["html", "j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {"count": count, "percent": percent}
    return pages.get_template("report.html.j2").render(page=page_of(result, plan))
