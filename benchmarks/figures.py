"""The figures of docs/results.md: accuracy against size."""

import itertools
import math

import numpy as np

RED = "#c0392b"
COLORS = {"others": "#888888", "FlexRel": RED}
MARKS = {"untrained": "o", "trained": "s"}
BELOW, ABOVE = 30, 8  # points of accuracy around the dense network's
PANELS = 4  # in a row
TOP = 0.3  # inches for the legend
WIDE = 6  # from the least to the most: then ticks are powers of ten, and three times those
PRODUCTS = {  # of the blend that is ours
    "flexrel:0.333333:product": {"label": "product, δ = 1/3", "color": RED, "ls": ":"},
    "flexrel:0.666667:product": {"label": "product, δ = 2/3", "color": RED, "ls": "--"},
}


def curves(blocks, path):
    """Draw what is not repaired: a panel a deployment and granularity, a line a form."""
    bare = [block for block in blocks if block["repair"] == "none"]
    bare.sort(key=lambda block: (block["network"], block["granularity"]))
    fig, axes = _panels(len(bare))
    for ax, block in zip(axes, bare, strict=True):
        title = f"{block['network']}, {block['deployment']}: {block['granularity']}s"
        for name, points in itertools.groupby(block["points"], lambda point: point["form"]):
            if name != "obs":
                xy = [(100 * point["kept"], 100 * point["test"]) for point in points]
                ax.plot(*zip(*xy, strict=True), marker=".", ms=4, lw=1.2, **_style(name))
        _frame(ax, title, 100 * block["dense"]["test"])
        ax.set_xlabel("% of the parameters stay", fontsize=7)
    drawn = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    labels = sorted(drawn)
    _save(fig, path, [drawn[label] for label in labels], labels)


def _style(form):
    """Return color and label: the paper's sum by its share of relevance, ours apart."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 - only drawing needs it

    if form in PRODUCTS:
        return PRODUCTS[form]
    delta = {"magnitude": 0.0, "relevance": 1.0}.get(form)
    delta = float(form.partition(":")[2]) if delta is None else delta
    return {"color": plt.get_cmap("viridis")(delta), "label": f"δ = {delta:g}"}


def methods(blocks, path):
    """Draw each method's accuracy against the bytes of its packed file, a panel a case."""
    fig, axes = _panels(len(blocks))
    for ax, block in zip(axes, blocks, strict=True):
        for (whose, color), when in itertools.product(COLORS.items(), MARKS):
            points = list(_points(block["rows"], whose, when))
            face = color if when == "trained" else "none"
            how = {"marker": MARKS[when], "edgecolors": color, "facecolors": face}
            ax.scatter(*np.reshape(points, (-1, 2)).T, s=14, label=f"{whose}, {when}", **how)
        _frame(ax, block["case"], 100 * block["dense"]["score"], below=100)
        ax.set_xlabel("kB, packed", fontsize=7)
    _save(fig, path, *axes[0].get_legend_handles_labels())


def _points(rows, whose, when):
    """Yield kB and accuracy of methods; those of FlexRel at an accuracy have one `score` alone."""
    for name, row in rows.items():
        if name.startswith("FlexRel") == (whose == "FlexRel"):
            first = "trained" if name.startswith("FlexRel, trained") else "untrained"
            for key, is_when in (("score", first), ("trained", "trained")):
                if key in row and is_when == when:
                    yield row["packed"] / 1e3, 100 * row[key]


def _panels(count):
    """Return a figure and so many axes, PANELS in a row."""
    import matplotlib as mpl  # noqa: PLC0415 - only drawing needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    columns = min(count, PANELS)
    rows = math.ceil(count / columns)
    fig, axes = plt.subplots(rows, columns, figsize=(3 * columns, 2.2 * rows + TOP), squeeze=False)
    for ax in axes.flat[count:]:
        ax.set_visible(False)
    return fig, axes.flat[:count]


def _frame(ax, title, dense, below=BELOW):
    """Finish a panel whose points are drawn: its axes, and the dense network's accuracy."""
    from matplotlib import ticker  # noqa: PLC0415

    ax.axhline(dense, color="#bbbbbb", lw=0.8, ls=":")
    ax.set_ylim(max(dense - below, -4), dense + ABOVE)
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ticks = ticker.LogLocator(subs=(1, 3)) if high > WIDE * low else ticker.MaxNLocator(4)
    ax.xaxis.set_major_locator(ticks)
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    ax.set_title(title, fontsize=8)
    ax.set_ylabel("accuracy, %", fontsize=7)
    ax.tick_params(labelsize=6)


def _save(fig, path, handles, labels):
    fig.legend(handles, labels, fontsize=7, ncols=6, loc="upper center")
    fig.tight_layout(rect=(0, 0, 1, 1 - TOP / fig.get_figheight()))
    fig.savefig(path, dpi=100)
