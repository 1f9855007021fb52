"""The report in a real browser: quiet, alone, chosen by mouse and keyboard, on a phone, printed."""

import os
import re
import shutil

import pytest

from report_page import compared, pictured

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium():
    api = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs a chromium on the path, or CHROMIUM=its path")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(compared().report(), encoding="utf-8")
    return path


@pytest.fixture
def opened(chromium, file):
    """Opens the report; what it asked for and said is looked at in the end."""
    said, asked, contexts = [], [], []

    def open_(width=1200, **options):
        context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {file.as_uri()}


def told(page, what):
    return page.locator(f"#told-{what}").inner_text()


def test_the_result_is_told_at_first_and_each_point_that_is_pointed_at(opened):
    page = opened()
    own = page.locator(".point[data-chosen]").get_attribute("data-told")
    other = page.locator(".point:not([data-chosen])").first

    assert told(page, "point") == own
    assert not page.locator("#told-command-box").is_visible()
    other.hover()
    assert told(page, "point") == other.get_attribute("data-told") != own
    page.mouse.move(0, 0)
    assert told(page, "point") == own


def test_a_point_that_is_clicked_stays_told_with_its_command(opened):
    page = opened()
    point = page.locator('.point[data-command*="magnitude"]').first

    point.click()
    page.mouse.move(0, 0)

    assert told(page, "point") == point.get_attribute("data-told")
    assert page.locator("#told-command").inner_text() == point.get_attribute("data-command")
    assert point.get_attribute("aria-pressed") == "true"
    assert page.locator('.point[aria-pressed="true"]').count() == 1


def test_points_and_layers_are_chosen_by_keyboard(opened):
    page = opened()
    points, bars = page.locator(".point"), page.locator(".bar")

    points.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert points.nth(1).get_attribute("aria-pressed") == "true"
    assert points.nth(1).get_attribute("role") == "button"
    bars.nth(1).focus()
    assert told(page, "layer") == bars.nth(1).get_attribute("data-told")
    page.keyboard.press("Space")
    assert "picked" in page.locator("#layer-2").get_attribute("class")


def test_points_that_lie_close_are_each_chosen_on_a_phone(opened):
    page = opened(400)
    points = page.locator(".point")
    places = [point.bounding_box() for point in points.all()]
    middles = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in places]

    for at, (x, y) in enumerate(middles):
        if middles.index((x, y)) == at:  # of those in one place the first
            points.nth(at).evaluate("one => one.scrollIntoView({block: 'center'})")
            box = points.nth(at).bounding_box()
            page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            assert points.nth(at).get_attribute("aria-pressed") == "true"


def test_a_layer_that_is_chosen_has_its_units_shown(opened):
    page = opened()

    assert page.locator(".scatter:visible").count() == 1
    page.locator('.bar[data-layer="second"]').click()
    assert page.locator(".scatter:visible").get_attribute("data-layer") == "second"
    assert page.locator("#scatter-choice").input_value() == "second"
    page.locator("#scatter-choice").select_option("first")
    assert page.locator(".scatter:visible").get_attribute("data-layer") == "first"


@pytest.mark.parametrize("width", [360, 400, 720, 810, 1200])
@pytest.mark.parametrize("scripts", [True, False])
def test_nothing_is_wider_than_the_window(opened, width, scripts):
    page = opened(width, java_script_enabled=scripts)

    right = "all => Math.max(...all.map(one => one.getBoundingClientRect().right))"
    assert page.locator("main *:visible").evaluate_all(right) <= width + 0.5
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_without_scripts_all_numbers_and_pictures_are_there(opened):
    page = opened(java_script_enabled=False)

    assert page.locator(".scatter:visible").count() == page.locator(".scatter").count() == 2
    assert not page.locator(".needs-script:visible").count()
    assert page.locator("table:visible").count() == page.locator("table").count() >= 5


def luminance(colour):
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_marks_stand_out_from_the_paper(opened, scheme):
    """WCAG 2.1: 4.5 to 1 for words, 3 to 1 for graphics."""
    page = opened(color_scheme=scheme)
    style = "(one, name) => getComputedStyle(one)[name]"

    def contrast(selector, name="color"):
        paper = luminance(page.locator("body").evaluate(style, "backgroundColor"))
        mark = luminance(page.locator(selector).first.evaluate(style, name))
        return (max(paper, mark) + 0.05) / (min(paper, mark) + 0.05)

    words = ["body", ".lead", "thead th", ".met", "dt"]
    assert min(map(contrast, words)) >= 4.5
    assert min(contrast(f".s{at}", "stroke") for at in range(3)) >= 3
    assert min(contrast(f".f{at}", "fill") for at in range(3)) >= 3
    assert contrast(".loss", "fill") >= 3
    assert contrast(".crosses", "stroke") >= 3
    assert contrast("#frontier-chart text", "fill") >= 4.5


def test_pictures_are_shown_and_nothing_is_asked_for(opened):
    result, _ = pictured()
    page = opened()
    asked = []
    page.on("request", lambda request: asked.append(request.url.partition(",")[0]))
    page.set_content(result.report())

    widths = page.locator("img.sample").evaluate_all("all => all.map(one => one.naturalWidth)")

    assert widths == [32] * len(result.evidence.changed.shown)
    assert set(asked) <= {"data:image/png;base64"}


def test_it_prints_on_white_paper_without_what_needs_a_screen(opened):
    page = opened(color_scheme="dark")

    page.emulate_media(media="print", color_scheme="dark")

    paper = page.locator("body").evaluate("one => getComputedStyle(one).backgroundColor")
    assert paper == "rgb(255, 255, 255)"
    assert not page.locator("#scatter-choice").is_visible()
    page.set_viewport_size({"width": 680, "height": 900})  # about A4, less its margins
    row = page.locator(".stack tbody tr").first
    assert row.evaluate("one => getComputedStyle(one).display") == "table-row"
    assert page.evaluate("document.documentElement.scrollWidth") <= 680
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 12
