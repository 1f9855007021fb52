"""A result shows itself: in some ten lines, in notebooks, as a frame, as a picture."""

import sys
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import pytest
import torch
from torch import nn

import flexrel
from flexrel import UsageError

VOID = {"br", "hr", "img", "input", "meta", "link"}


@pytest.fixture(scope="module")
def result():
    """Of a network in which one layer has a name that HTML would take for its own."""
    torch.manual_seed(0)
    network = nn.Sequential()
    network.add_module("<b>first</b>", nn.Linear(4, 16))
    network.add_module("act", nn.ReLU())
    network.add_module("last", nn.Linear(16, 3))
    data = [(torch.randn(40, 4), torch.arange(40) % 3)]
    return flexrel.prune(
        network, calibration=data, evaluate=data, budgets=["macs=50%"], criterion="magnitude"
    )


class Pages(HTMLParser):
    """Elements that are open, cells of tables, attributes."""

    def __init__(self):
        super().__init__()
        self.open, self.cells, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells[-1] += data


def test_a_result_is_some_ten_lines_with_what_was_asked_and_what_came_out(result):
    lines = repr(result).splitlines()

    assert 5 <= len(lines) <= 12
    assert max(map(len, lines)) <= 200
    told = "\n".join(lines)
    # 4 -> 16 -> 3: 16 * 4 + 3 * 16 multiply-adds, half of them 56: 8 of 16 units stay
    assert "macs at most 56" in told
    assert "112 -> 56 (50.00 % of dense)" in told
    assert f"{16 * 5 + 3 * 17} -> {8 * 5 + 3 * 9}" in told
    assert "magnitude" in told
    assert "tensor(" not in told
    assert str(result) == repr(result)


def test_notebooks_get_a_page_that_is_whole_and_needs_nothing(result):
    page = result._repr_html_()

    parser = Pages()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert {"accuracy", "parameters", "MACs", "bytes"} <= set(parser.cells)
    assert "<b>first</b>" in parser.cells  # the name, not an element
    assert "16 → 8" in parser.cells
    assert not any(name in ("src", "href", "onload") for name, _ in parser.attributes)
    assert "<script" not in page
    assert "http" not in page


def test_the_chart_has_a_bar_a_layer_as_high_as_what_is_left_of_it(result):
    page = result._repr_html_()
    chart = ET.fromstring(page[page.index("<svg") : page.index("</svg>") + len("</svg>")])  # noqa: S314 - our own

    bars = [group.findall("rect") for group in chart.iter("g")]

    shares = [float(now.get("height")) / float(dense.get("height")) for dense, now in bars]
    assert shares == pytest.approx([8 * 5 / (16 * 5), (3 * 9) / (3 * 17)], abs=0.01)
    assert chart.get("aria-label")


def test_a_frame_has_a_row_a_layer(result):
    pandas = pytest.importorskip("pandas")

    frame = result.to_pandas()

    assert isinstance(frame, pandas.DataFrame)
    assert frame["name"].tolist() == ["<b>first</b>", "last"]
    assert frame["width_dense"].tolist() == [16, 3]
    assert frame["width"].tolist() == [8, 3]
    assert frame["parameters"].sum() == result.achieved.parameters
    assert frame["macs"].sum() == result.achieved.macs
    assert frame["reason"].tolist() == ["", "it is the network's output"]


def test_a_frame_is_made_of_rows_by_name(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=lambda rows: rows))

    rows = result.to_pandas()

    assert [(row["name"], row["width"]) for row in rows] == [("<b>first</b>", 8), ("last", 3)]


def test_a_plot_has_bars_of_dense_and_now(result):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")

    axes = result.plot()

    assert isinstance(axes, matplotlib.axes.Axes)
    dense, now = axes.containers
    assert [bar.get_width() for bar in dense] == [80, 51]
    assert [bar.get_width() for bar in now] == [40, 27]
    assert result.plot(axes) is axes
    matplotlib.pyplot.close(axes.figure)


@pytest.mark.parametrize(("library", "shown"), [("pandas", "to_pandas"), ("matplotlib", "plot")])
def test_without_the_library_the_error_says_how_to_install_it(result, monkeypatch, library, shown):
    for name in [*sys.modules]:
        if name.partition(".")[0] == library:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)

    with pytest.raises(UsageError, match=r"pip install 'flexrel\[notebook\]'"):
        getattr(result, shown)()
