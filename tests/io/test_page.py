"""The report: one page that needs nothing else, and says of a result what its record says."""

import io
import json
import math
import re
from base64 import b64decode
from dataclasses import replace
from importlib.resources import files
from itertools import combinations, pairwise

import pytest
import torch
from torch import nn

import flexrel
from flexrel import Magnitude, Sparsity
from flexrel.core.graph import Protected
from flexrel.core.measurement import Measurement
from flexrel.io import png_of, render
from flexrel.io.asked import asked_rows
from flexrel.io.figures import change, count, percent, points, size
from flexrel.io.frontier import Measured, frontier
from flexrel.io.layer_lines import layer_bars, layer_lines
from flexrel.io.scatter import scatter
from flexrel.pruning import Origin
from flexrel.pruning.changed import ChangedAnswer, ChangedAnswers, LabelAnswers
from flexrel_edge.about import about
from flexrel_edge.format import describe
from networks import random_
from report_page import INPUTS, Page, compared, network, pictured

MOST_BYTES = 1_500_000


def prune(model=None, **options):
    request = {"budgets": [Sparsity(0.4)], "criterion": Magnitude(), **options}
    return flexrel.prune(model or network(), calibration=[INPUTS], **request)


@pytest.fixture(scope="module")
def page():
    return Page(compared().report())


# --- it needs nothing else, and is sound -------------------------------------------------------


def test_the_report_is_one_page_that_needs_nothing_else(page):
    text = compared().report()

    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    assert page.links == []
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch|import\(|XMLHttp", text)
    assert text.startswith("<!doctype html>")
    assert len(text.encode()) < MOST_BYTES / 10


def lab_of(colour):
    """Return a colour of linear light as CIE L*a*b* has it, for white of 6,500 K."""
    to_xyz = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [sum(c * p for c, p in zip(row, colour, strict=True)) / sum(row) for row in to_xyz]
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def seen(colour, sight):
    """Return how a colour looks to those who lack a kind of cone, for all to see.

    The matrices, on linear light, are those of Machado, Oliveira and Fernandes, "A Physiologically-
    based Model for Simulation of Color Vision Deficiency" (2009), of severity 1.
    """
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    light = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    mixed = [sum(m * p for m, p in zip(row, light, strict=True)) for row in sight]
    return lab_of([min(max(p, 0.0), 1.0) for p in mixed])


@pytest.mark.parametrize(
    "sight",
    [
        ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
        ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
        ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
        ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
    ],
    ids=["all cones", "no red", "no green", "no blue"],
)
def test_the_colours_of_curves_are_told_apart_by_the_colour_blind(sight):
    style = (files("flexrel.io") / "report.css").read_text("utf-8")
    themes = re.findall(r"--c0: (#\w{6}); --c1: (#\w{6}); --c2: (#\w{6}); --lost: (#\w{6})", style)

    assert len(themes) == 3  # light, dark, paper
    for *curves, lost in themes:
        looks = [seen(colour, sight) for colour in curves]
        apart = [math.dist(a, b) for a, b in combinations(looks, 2)]
        assert min(apart) > 10  # 1 is just seen; shapes and dashes differ too
        assert math.dist(seen(lost, sight), seen(curves[2], sight)) > 10  # what kept is drawn in


def test_ids_are_unique_and_what_points_at_them_is_there(page):
    assert len(page.ids) == len(set(page.ids))
    wanted = [found["data-row"] for found in page.having(class_="bar")]
    wanted += [found["for"] for tag, found in page.attributes if tag == "label"]
    wanted += re.findall(r'one\("([a-z-]+)"\)', page.sources[-1])  # of the script
    assert len(wanted) >= 8
    assert {*wanted} <= {*page.ids}


def test_every_picture_has_a_text_and_every_mark_can_be_reached(page):
    outer = [found for tag, found in page.attributes if tag == "svg" and "x" not in found]
    assert all(found.get("aria-label") or found.get("aria-hidden") for found in outer)
    marks = page.having(class_="point") + page.having(class_="bar")
    assert all(found["tabindex"] == "0" and found["aria-label"] for found in marks)


def test_a_network_of_many_layers_and_units_keeps_the_page_small():
    torch.manual_seed(0)
    layers = [layer for _ in range(20) for layer in (nn.Linear(500, 500), nn.ReLU())]
    model = nn.Sequential(nn.Linear(4, 500), *layers, nn.Linear(500, 3))

    result = prune(model, criterion="relevance", recover="none")

    assert len(result.evidence.scores) == 12
    assert all(len(one.kept) == 400 for one in result.evidence.scores)
    text = result.report()
    assert len(text.encode()) < MOST_BYTES / 4
    assert "400 of 500 are drawn" in text


# --- what was asked -----------------------------------------------------------------------------


def test_the_report_says_what_was_asked_and_achieved_and_what_is_to_spare(page):
    result = compared()
    done, asked = result.achieved, result.requested

    accuracy = page.row("accuracy")
    assert accuracy[1:3] == [
        percent(result.dense.accuracy),
        f"at least {percent(asked['accuracy'])}",
    ]
    assert f"{100 * (done.accuracy - asked['accuracy']):.2f} points to spare" in accuracy[5]
    parameters = page.row("parameters")
    left = asked["parameters"] - done.parameters
    assert parameters[1:4] == [
        f"{result.dense.parameters:,}",
        f"at most {asked['parameters']:,}",
        f"{done.parameters:,}",
    ]
    assert f"{left:,} to spare" in parameters[5]
    assert page.row("latency")[3] == "not measured"
    assert str(result.promise) in page.text


def record(**achieved):
    """The record of a result that was asked for a drop of at most two points."""
    told = compared().as_json()
    told["requested"] = dict.fromkeys(told["requested"]) | {"accuracy": 0.88}
    told["achieved"] |= {"accuracy": 0.89, "accuracy_dense": 0.90, **achieved}
    told["promise"] = None
    return told


@pytest.mark.parametrize(
    ("accuracy", "error", "verdict"),
    [
        (0.88, 0.0199, "met"),
        (0.90, 0.0201, "unsure"),  # more than the drop of 0.02: however well it does
        (0.88, None, "met"),
        (0.8799, 0.001, "missed"),
        (0.8799, 0.03, "missed"),
    ],
)
def test_an_accuracy_whose_error_is_more_than_the_drop_is_never_green(accuracy, error, verdict):
    told = record(accuracy=accuracy, accuracy_standard_error=error)

    row = asked_rows(told)[0]

    assert row.verdict == verdict
    page = Page(
        render(told | {"model": "", "exports": [], "pictures": {}}, compared().plan.as_json())
    )
    assert bool(page.having(class_="met")) == (verdict == "met")
    words = {"met": "✓ met", "missed": "✗ missed", "unsure": "? can't be told"}
    assert words[verdict] in page.row("accuracy")[5]  # no colour alone


@pytest.mark.parametrize(
    ("drop", "kept", "verdict"), [(0.015, True, "met"), (0.025, False, "unsure")]
)
def test_samples_set_aside_have_a_row_of_their_own(drop, kept, verdict):
    told = record(accuracy_standard_error=0.001)
    told["promise"] = {"drop": drop, "kept": kept, "asked": 0.02, "aside": True}
    told["promise"] |= {"accuracy_dense": 0.91, "accuracy": 0.9, "confidence": 0.95}

    row = asked_rows(told)[1]

    assert (row.dense, row.achieved) == ("91.00 %", "90.00 %")
    assert row.slack == f"at most {100 * drop:.2f} points less with 95% confidence"
    assert row.verdict == verdict


def test_limits_that_are_missed_and_floors_are_told_as_such():
    told = record()
    told["requested"] |= {"bytes": 1000, "speed_x": 2.0, "sparsity": 0.5}
    told["achieved"] |= {"bytes": 1100, "bytes_dense": 2000, "speed_x": 3.0, "speed_x_dense": 1.0}
    told["achieved"]["sparsity"] = 0.6
    told["floors"] = ["speed_x", "sparsity"]

    rows = {row.name: row for row in asked_rows(told)}

    assert rows["bytes of the file"].verdict == "missed"
    assert rows["bytes of the file"].slack == "100 too many, 10.00 % of it"
    assert (rows["speed_x"].asked, rows["speed_x"].verdict) == ("at least 2", "met")
    assert rows["channels removed"].asked == "at least 50.00 %"
    assert rows["channels removed"].slack == "10.00 points to spare"


def test_a_measured_latency_stands_beside_its_limit():
    told = record(latency_ms=2.0, latency_dense_ms=4.0)
    told["requested"]["latency_ms"] = 2.5
    told["timing"] = {"runtime": "torch", "version": "2.9", "batch": 1, "threads": 1}

    row = asked_rows(told)[-1]

    assert row.name == "latency, ms (torch 2.9, batch 1, 1 thread)"
    assert (row.dense, row.asked, row.achieved, row.share) == ("4", "at most 2.5", "2", "50.00 %")
    assert row.verdict == "met"


@pytest.mark.parametrize(
    ("lower", "limit", "value", "verdict"),
    [(True, 0.5, 0.4, "met"), (True, 0.5, 0.6, "missed"), (False, 0.5, 0.4, "missed")],
)
def test_metrics_have_their_direction(lower, limit, value, verdict):
    told = record()
    told["achieved"]["metrics"] = {"loss": value}
    told["achieved"]["metrics_dense"] = {"loss": 0.3}
    told["targets"] = [{"metric": "loss", "lower_is_better": lower, "limit": limit}]

    row = asked_rows(told)[1]

    assert (row.name, row.verdict) == ("loss", verdict)
    assert row.slack == f"0.1 {'to spare' if verdict == 'met' else 'off'}"


# --- accuracy against bytes ---------------------------------------------------------------------


def test_the_report_draws_a_curve_for_each_criterion_and_marks_the_result(page):
    result = compared()

    assert page.tags.count("polyline") == 3
    own = page.having(class_="point", data_chosen="yes")
    assert len(own) == 1
    assert own[0]["aria-label"].startswith(f"this result, {result.criterion.name}: accuracy")
    assert {rival.criterion for rival in result.rivals} == {"magnitude", "relevance"}
    chosen = [row for row in page.rows if row[0] == f"→ {result.criterion.name} (this result)"]
    assert len(chosen) == 2  # said in words, in both tables
    assert chosen[0][1] == percent(result.achieved.accuracy)


def test_a_criterion_of_its_own_has_its_curve():
    result = prune(criterion="obs", evaluate=lambda _: 0.5)

    told = flexrel.compare(result, network(), calibration=[INPUTS], evaluate=lambda _: 0.5)

    assert {point.criterion for point in told.curves} == {"magnitude", "relevance", "obs"}
    assert {point.criterion for point in told.rivals} == {"magnitude", "relevance"}


def test_without_a_comparison_the_dense_network_and_the_result_are_drawn():
    page = Page(prune(evaluate=lambda _: 0.5).report())

    assert len(page.having(class_="point")) == 2
    assert page.tags.count("polyline") == 1
    assert "--compare" in page.text


@pytest.mark.parametrize("granularity", ["element", "channel"])
def test_a_result_without_evaluation_has_a_report_too(granularity):
    page = Page(prune(granularity=granularity).report())

    assert "polyline" not in page.tags
    assert "Not drawn" in page.text
    assert page.row("accuracy")[3] == "not measured"


ASKED = {"accuracy": None, "bytes": None}


def at(accuracy, size, criterion="obs", *, chosen=False, error=None):
    return Measured(criterion, size, accuracy, error, 0.5, chosen=chosen)


def drawn(*networks, dense=0.9, **asked):
    return frontier(networks, dense, ASKED | asked, "channels")


def test_more_bytes_are_to_the_right_and_more_accuracy_is_up():
    found = drawn(at(0.88, 100), at(0.89, 150, chosen=True), at(0.9, 200))

    small, own, large = found.curves[0].dots
    assert own.x == pytest.approx((small.x + large.x) / 2, abs=0.2)
    assert own.y == pytest.approx((small.y + large.y) / 2, abs=0.2)
    assert small.x < large.x
    assert small.y > large.y  # y grows downwards
    assert [dot.chosen for dot in found.curves[0].dots] == [False, True, False]


def test_the_axis_spans_what_was_asked_and_what_is_far_below_is_counted():
    networks = [at(0.1, 10), at(0.3, 20), at(0.985, 50, chosen=True), at(0.99, 100)]

    found = drawn(*networks, dense=0.99, accuracy=0.98)

    assert found.hidden == 2
    assert len(found.curves[0].dots) == 2
    assert len(found.curves[0].line.split()) == 4  # the line goes on out of sight
    target = found.bottom - found.target.at
    assert target > 0.2 * (found.bottom - found.top)  # ten points of accuracy are not in the way
    assert found.curves[0].dots[0].y < found.target.at


def test_bytes_asked_for_and_errors_are_drawn():
    found = drawn(at(0.88, 100, error=0.01, chosen=True), at(0.9, 200, error=0.02), bytes=150)

    own, dense = found.curves[0].dots
    assert own.x < found.budget.at < dense.x
    assert own.low - own.high == pytest.approx((dense.low - dense.high) / 2, abs=0.3)
    assert own.high < own.y < own.low


@pytest.mark.parametrize(
    "networks",
    [
        [(0.0, 100)],
        [(1.0, 100), (1.0, 50)],
        [(0.5, 10**9), (0.5001, 3)],
        [(0.3, 1)],
    ],
)
def test_the_chart_stays_inside_its_frame(networks):
    first, *rest = networks

    found = drawn(at(*first, chosen=True), *(at(*one) for one in rest), dense=first[0])

    for dot in found.curves[0].dots:
        assert found.left <= dot.x <= found.right
        assert 0 <= dot.y <= found.bottom
    assert all(found.left <= tick.at <= found.right for tick in found.x_ticks)
    assert all(0 <= tick.at <= found.bottom for tick in found.y_ticks)
    assert 2 <= len(found.x_ticks) <= 8
    assert 2 <= len(found.y_ticks) <= 8


def test_a_point_has_the_command_that_makes_such_a_network():
    again = ("flexrel", "prune", "my net.py:make", "--seed", "3")
    origin = Origin(("flexrel", "prune", "x"), again, "my net.py:make", "a.npz", None)
    result = replace(compared(), origin=origin)

    page = Page(result.report())

    commands = {found["data-command"] for found in page.having(class_="point")} - {""}
    rival = result.rivals[0]
    expected = (
        f"flexrel prune 'my net.py:make' --seed 3 --criterion {rival.criterion} "
        f"--budget bytes={rival.bytes} --out pruned-{rival.bytes}"
    )
    assert expected in commands
    assert "flexrel prune x" in page.text
    assert page.having(class_="point", data_chosen="yes")[0]["data-command"] == ""


def test_the_networks_of_points_are_made_by_their_python_line():
    result = compared()
    point = next(one for one in result.curves if one.criterion == "magnitude" and one.removed > 0.4)
    (line,) = {
        found["data-command"]
        for found in Page(result.report()).having(class_="point")
        if f"budgets=['bytes={point.bytes}']" in found["data-command"]
        and "magnitude" in found["data-command"]
    }

    made = eval(line, {"flexrel": flexrel, "model": network(), "data": [INPUTS]})  # noqa: S307

    assert isinstance(made.achieved, Measurement)
    assert made.achieved.bytes <= point.bytes
    assert made.achieved.removed <= point.removed


# --- layers -------------------------------------------------------------------------------------


def test_every_layer_is_named_with_what_it_lost_and_why_it_stays(page):
    result = compared()

    for number, layer in enumerate(result.evidence.layers[:-1], 1):
        row = page.row(f"{number}. {layer.name}")
        assert row[2] == percent(1 - layer.weights / layer.weights_dense)
        assert row[3] == change(layer.weights_dense, layer.weights)
        assert row[5] == change(layer.bytes_dense, layer.bytes)
    assert "outputs stay: it is the network's output" in page.row("3. last")[0]
    for left in result.plan.graph.protected:
        assert left.reason in page.text


def test_bars_show_what_was_lost():
    layers = [
        {
            "name": "a",
            "width_dense": 9,
            "width": 9,
            "weights_dense": 100,
            "weights": 75,
            "reason": "",
        },
        {
            "name": "b",
            "width_dense": 9,
            "width": 9,
            "weights_dense": 100,
            "weights": 0,
            "reason": "kept",
        },
        {"name": "", "width_dense": 9, "width": 9, "weights_dense": 0, "weights": 0, "reason": ""},
    ]
    counts = dict.fromkeys(("macs_dense", "macs", "bytes_dense", "bytes"), 1)
    layers = [one | counts for one in layers]

    drawn = layer_bars(layers, layer_lines(layers))

    tall = drawn.bottom - drawn.top
    assert [bar.lost / tall for bar in drawn.bars] == pytest.approx([0.25, 1.0], abs=0.01)
    assert [bar.stays for bar in drawn.bars] == [False, True]


def test_what_is_left_alone_and_no_layer_is_named_too():
    result = prune()
    object.__setattr__(result.plan.graph, "protected", (Protected("blocks.1", "it is held"),))

    assert Page(result.report()).row("blocks.1") == ["blocks.1", "it is held"]


# --- relevance against magnitude ----------------------------------------------------------------


def test_each_unit_is_drawn_once_dots_stay_and_crosses_go():
    scores = {"name": "a", "unit": "channels", "units": 4, "kept": "1010"}
    scores |= {"magnitude": [1.0, 10.0, 100.0, 1000.0], "relevance": [0.0, 0.1, 1.0, 10.0]}

    found = scatter(scores)

    assert (found.kept.count("M"), found.gone.count("M")) == (2, 2)
    x = [float(place) for place in re.findall(r"M([\d.]+) ", found.kept)]
    assert found.left < x[0] < x[1] < found.right
    gaps = [second.at - first.at for first, second in pairwise(found.x_ticks)]
    assert gaps == pytest.approx([gaps[0]] * len(gaps), abs=0.2)  # each tenfold alike
    assert found.told == "2 channels stay, 2 go"


@pytest.mark.parametrize("values", [[0.0, 0.0], [3.0, 3.0], [1.0, 1.01], [1e-30, 1e30], [5.0]])
def test_scores_of_any_spread_stay_inside_their_frame(values):
    scores = {"name": "a", "unit": "heads", "units": len(values), "kept": "1" * len(values)}

    found = scatter(scores | {"magnitude": values, "relevance": values})

    places = re.findall(r"M([\d.]+) ([\d.]+)h0", found.kept)
    assert len(places) == len(values)
    for x, y in places:
        assert found.left <= float(x) <= found.right
        assert found.top <= float(y) <= found.bottom
    assert all(found.left <= tick.at <= found.right for tick in found.x_ticks)
    assert len(found.x_ticks) <= 8


def test_without_relevance_there_is_no_such_picture(page):
    assert page.having(class_="scatter")
    assert not Page(prune().report()).having(class_="scatter")


# --- answers, repair, how to run it, where it came from -----------------------------------------


def test_answers_that_changed_are_told(page):
    changed = compared().evidence.changed

    assert f"Of {changed.samples} samples {changed.lost} were right and are wrong now" in page.text
    for one in changed.classes:
        row = next(row for row in page.rows if row[0] == str(one.label))
        assert row[1] == str(one.samples)
    assert "Answers that changed" not in Page(prune().report()).text


def named(**asked):
    """A result on data that know what their classes are called."""
    result = compared()
    return replace(result, class_names=("cat", "dog", "<bird>"), **asked)


def test_classes_are_called_by_their_names_in_report_record_and_file(tmp_path):
    result, changed = named(), compared().evidence.changed

    page = Page(result.report())

    names = result.class_names
    for one in changed.classes:
        assert page.row(names[one.label])[1] == str(one.samples)
    row = page.row(f"{changed.shown[0].place:,}")
    first = changed.shown[0]
    assert row[1:] == [names[one] for one in (first.label, first.dense, first.pruned)]
    assert result.as_json()["class_names"] == [*names]
    result.save(tmp_path)
    assert ("labels", "3: cat, dog, <bird>") in about(
        describe((tmp_path / "model.flexrel").read_bytes())
    )


def test_labels_that_lost_most_are_told_where_a_sample_has_several():
    shown = ChangedAnswer(7, (0, 2), (0, 2), ())
    lost = LabelAnswers(2, samples=50, having=5, right_dense=50, right=48, f1_dense=1.0, f1=0.75)
    changed = ChangedAnswers(50, 2, 0, (), (lost,), (0.9, 0.8), (shown,))
    evidence = replace(compared().evidence, changed=changed)

    page = Page(named(evidence=evidence).report())

    assert "F1 of all labels together (micro) was 90.00 %, and is 80.00 %" in page.text
    row = page.row("<bird>")
    assert row[1:] == ["5 of 50", "100.00 %", "96.00 %", "100.00 %", "75.00 %"]
    assert page.row("7")[1:] == ["cat, <bird>", "cat, <bird>", "none"]


def test_where_data_are_images_those_that_changed_are_shown():
    image = pytest.importorskip("PIL.Image")
    result, x = pictured()

    shown = Page(result.report()).having(class_="sample")

    changed = result.evidence.changed
    assert len(shown) == len(changed.shown) > 1
    for one, found in zip(changed.shown, shown, strict=True):
        assert found["alt"] == f"sample {one.place}, labelled {one.label}"
        start, content = found["src"].split(",")
        assert start == "data:image/png;base64"
        with image.open(io.BytesIO(b64decode(content))) as picture:
            assert (picture.mode, picture.size) == ("RGB", (32, 48))  # half of 64 x 96
            pixels = (
                torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
                .view(48, 32, 3)
                .movedim(-1, 0)
            )
        halved = nn.functional.avg_pool2d(x[one.place], 2)
        halved = (halved - halved.min()) / (halved.max() - halved.min())
        assert torch.allclose(pixels / 255, halved, atol=0.003)


def test_pictures_stay_beside_the_report(tmp_path):
    """What is printed, and what goes to a hub, has none: data may be private."""
    result, _ = pictured()
    result.save(tmp_path)

    assert json.loads((tmp_path / "result.json").read_text())["pictures"]
    assert "pictures" not in json.dumps(result.as_json())
    assert not Page(compared().report()).having(class_="sample")  # no images


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 200), (1, 48, 48)])
def test_a_picture_of_any_shape_can_be_read(shape):
    image = pytest.importorskip("PIL.Image")

    with image.open(io.BytesIO(png_of(torch.full(shape, 2.5)))) as picture:
        picture.load()
        assert picture.mode == {1: "L", 3: "RGB"}[shape[0]]
        assert max(picture.size) == min(48, max(shape))


def test_accuracy_before_the_repair_is_told_where_it_is_known(page):
    before = percent(compared().evidence.unrepaired)

    assert f"Accuracy was {before} when the network was cut" in page.text
    assert "when the network was cut" not in Page(prune().report()).text


@pytest.mark.parametrize(
    ("exports", "says"),
    [
        ([], "--export graph"),
        (["onnx"], 'InferenceSession("model.onnx")'),
        (["graph"], "flexrel-edge run model.flexrel"),
    ],
)
def test_how_to_run_the_file_is_said(exports, says):
    told = compared().as_json() | {"model": "ab" * 32, "exports": exports, "pictures": {}}

    page = Page(render(told, compared().plan.as_json()))

    assert says in page.text
    assert "flexrel.load(" in page.text
    assert "ab" * 32 in page.text


def test_where_it_came_from_has_no_python_in_it(page):
    start = page.text.index("Where it came from")
    said = page.text[start:]

    for wanted in ("calibration data 64 samples", "seed 0", "torch ", "python ", "Linux"):
        assert wanted in said
    assert not re.search(r"[\[\]{}]|None|True|False|\w\(", said)


def test_the_saved_page_has_the_checksum_of_the_file_beside_it(tmp_path):
    result = prune()
    result.save(tmp_path)

    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    assert describe((tmp_path / "model.flexrel").read_bytes()).sha256 in page.text


# --- names are shown, not obeyed ----------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='x'>",
    "{{ 7 * 7 }}",
    "a&lt;b",
    "Größe",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_shown_and_not_obeyed(name):
    model = nn.Sequential()
    model.add_module(name, nn.Linear(4, 6))
    model.add_module("last " + name, nn.Linear(6, 3))

    page = Page(prune(random_(model), criterion="relevance").report())

    assert " ".join(name.split()) in page.text  # as it is, unescaped by the parser
    assert page.tags.count("script") == 1
    assert "img" not in page.tags


def test_a_hostile_criterion_and_reason_are_shown_and_not_obeyed():
    class Odd:
        name = "<b onclick=x>mine</b>"
        needs = frozenset()

        def scores(self, evidence):
            return (known.magnitude() for known in evidence)

    result = prune(criterion=Odd(), evaluate=lambda _: 0.5)
    object.__setattr__(result.plan.graph, "protected", (Protected("other", "<i>a</i> & 'b'"),))

    page = Page(result.report())

    assert Odd.name in page.text
    assert "<i>a</i> & 'b'" in page.text
    assert not {"b", "i"} & set(page.tags)


# --- numbers as a person reads them -------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (percent(0.12345), "12.35 %"),  # 12.345 in binary is a little more
        (percent(None), "not measured"),
        (percent(0), "0.00 %"),
        (points(-0.0123), "1.23 points"),
        (size(999), "999 B"),
        (size(1000), "1.00 kB"),
        (size(1_234_567), "1.23 MB"),
        (size(None), ""),
        (count(1234567), "1,234,567"),
        (count(None), ""),
        (change(24, 14), "24 → 14"),
        (change(2400, 2400), "2,400"),
        (change(9999, 14), "9,999 → 14"),
        (change(147_456, 68_076), "147 → 68.1 k"),
        (change(37_748_736, 9_000), "37.7 → 0.009 M"),
        (change(1_159_402, 999_600), "1.16 → 1 M"),
        (change(12_000_000_000, 12_000_000_000), "12 G"),
    ],
)
def test_numbers_are_shown_for_people(shown, expected):
    assert shown == expected
