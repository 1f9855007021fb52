"""Records in, one HTML page out."""

from collections.abc import Mapping
from typing import Any

from flexrel.io.page import page_of
from flexrel.io.pages import filled


def render(result: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """Return the report of a result as a self-contained page.

    Args:
        result: content of `result.json`.
        plan: content of `plan.json`.
    """
    return filled("report.html.j2", page=page_of(result, plan))
