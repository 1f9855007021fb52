"""Templates in, pages out: no font, no picture, no script from elsewhere."""

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from flexrel.io.figures import count, percent


def filled(template: str, **shown: object) -> str:
    """Return a page.

    Args:
        template: name of the file beside this one.
        **shown: what it lays out.
    """
    pages = Environment(
        loader=PackageLoader("flexrel.io", "."),
        autoescape=select_autoescape(["html", "j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {"count": count, "percent": percent}
    return pages.get_template(template).render(**shown)
