"""The figures of docs/results.md: accuracy against size."""

import itertools
import math

GRAY, RED = "#888888", "#c0392b"
BELOW, ABOVE = 30, 8  # points of accuracy around the dense network's
PANELS = 4  # in a row
LEFT_OUT = ("obs", "flexrel:0.333333:product")  # of the curves


def curves(blocks, path):
    """Draw what is not repaired: a panel a deployment and granularity, a line a form."""
    bare = [block for block in blocks if block["repair"] == "none"]
    places = list(dict.fromkeys((b["network"], b["deployment"]) for b in bare))
    columns = [g for g in ("channel", "element") if any(b["granularity"] == g for b in bare)]
    fig, axes = _panels(len(places), len(columns))
    for ax in axes.flat:
        ax.set_visible(False)
    for block in bare:
        row = places.index((block["network"], block["deployment"]))
        ax = axes[row][columns.index(block["granularity"])]
        title = f"{block['network']}, {block['deployment']}: {block['granularity']}s"
        _frame(ax, title, 100 * block["dense"]["test"])
        for name, points in itertools.groupby(block["points"], lambda point: point["form"]):
            if name not in LEFT_OUT:
                xy = [(100 * point["kept"], 100 * point["test"]) for point in points]
                ax.plot(*zip(*xy, strict=True), marker=".", ms=4, lw=1.2, **_style(name))
        ax.set_xlabel("% of the parameters stay", fontsize=7)
    drawn = dict(zip(*reversed(axes[0][0].get_legend_handles_labels()), strict=True))
    fig.legend(
        [drawn[label] for label in sorted(drawn)],
        sorted(drawn),
        fontsize=7,
        ncols=6,
        loc="upper center",
    )
    _save(fig, path, top=0.25)


def _style(form):
    """Return color and label: the paper's sum by its share of relevance, ours apart."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 - only drawing needs it

    if form.endswith(":product"):
        return {"color": RED, "ls": "--", "label": "product, δ = 2/3"}
    delta = {"magnitude": 0.0, "relevance": 1.0}.get(form)
    delta = float(form.partition(":")[2]) if delta is None else delta
    return {"color": plt.get_cmap("viridis")(delta), "label": f"δ = {delta:g}"}


def methods(blocks, path):
    """Draw each method's accuracy against the bytes of its packed file, a panel a case."""
    fig, axes = _panels(math.ceil(len(blocks) / PANELS), min(len(blocks), PANELS))
    for ax in axes.flat[len(blocks) :]:
        ax.set_visible(False)
    for ax, block in zip(axes.flat, blocks, strict=False):
        _frame(ax, block["case"], 100 * block["dense"]["score"], below=100)
        for key, mark, fill in (("score", "o", False), ("trained", "s", True)):
            for ours, color in ((False, GRAY), (True, RED)):
                rows = [
                    row
                    for name, row in block["rows"].items()
                    if key in row and name.startswith("FlexRel") == ours
                ]
                face = color if fill else "none"
                when = "trained" if fill else "untrained"
                ax.scatter(
                    [row["packed"] / 1e3 for row in rows],
                    [100 * row[key] for row in rows],
                    s=14,
                    marker=mark,
                    edgecolors=color,
                    facecolors=face,
                    label=f"{'FlexRel' if ours else 'others'}, {when}",
                )
        ax.set_xlabel("kB, packed", fontsize=7)
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, fontsize=7, ncols=4, loc="upper center")
    _save(fig, path, top=0.25)


def _panels(rows, columns):
    import matplotlib as mpl  # noqa: PLC0415 - only drawing needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    return plt.subplots(rows, columns, figsize=(3.6 * columns, 2.3 * rows + 0.3), squeeze=False)


def _frame(ax, title, dense, below=BELOW):
    ax.set_visible(True)
    ax.axhline(dense, color="#bbbbbb", lw=0.8, ls=":")
    ax.set_ylim(max(dense - below, -4), dense + ABOVE)
    ax.set_xscale("log")
    ax.set_title(title, fontsize=8)
    ax.set_ylabel("%, right", fontsize=7)
    ax.tick_params(labelsize=6, which="both")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "2357" else "")


def _save(fig, path, top):
    height = fig.get_figheight()
    fig.tight_layout(rect=(0, 0, 1, 1 - top / height))
    fig.savefig(path, dpi=100)
