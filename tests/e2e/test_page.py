"""The page in a real browser, opened from disk: nothing leaves it, nothing is logged, tables and figures answer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlaprof import store
from mlaprof.report.folder import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page_file(checkout: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "a report"
    write_report(store.load(checkout / "results/reference/layer-h100/v3.2-tp8-prefill.mlaprof"), folder)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'mlaprof[e2e]'")
    if CHROMIUM is None:
        pytest.skip("needs a Chromium: apt install chromium")
    with playwright.sync_playwright() as started:
        # Root in a container has no sandbox; and Chromium itself asks its makers for things in the background.
        arguments = ["--no-sandbox", "--disable-background-networking"]
        found = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield found
        found.close()


@pytest.fixture(params=[360, 1400])
def opened(request, browser, page_file):
    context = browser.new_context(viewport={"width": request.param, "height": 900})
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asking: asked.append(asking.url))
    page.goto(page_file.as_uri())
    yield page
    assert said == []
    assert asked == [page_file.as_uri()]
    context.close()


def column(page, sheet: int, number: int) -> list[str]:
    return page.evaluate(
        "([sheet, number]) => [...document.querySelectorAll('.sheet')[sheet].querySelectorAll('tbody tr')]"
        ".filter((row) => !row.hidden).map((row) => row.cells[number].textContent)",
        [sheet, number],
    )


def test_the_page_fits_its_window(opened):
    wide, window = opened.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= window
    assert opened.locator("h1").is_visible() and "1.81x faster" in opened.locator("h1").inner_text()


def test_a_column_sorts_by_its_numbers_up_and_down(opened):
    sheet = opened.locator(".sheet").filter(has=opened.locator("caption", has_text="Four clocks"))
    place = opened.evaluate("(each) => [...document.querySelectorAll('.sheet')].indexOf(each)", sheet.element_handle())
    button = sheet.locator("th button", has_text="sustained")
    number = button.evaluate("(each) => each.closest('th').cellIndex")
    button.click()
    values = [float(each) for each in column(opened, place, number)]
    assert values == sorted(values) and len(values) == 30
    assert sheet.locator("th").nth(number).get_attribute("aria-sort") == "ascending"
    button.press("Enter")  # by keyboard, too
    assert [float(each) for each in column(opened, place, number)] == values[::-1]
    assert sheet.locator("th").nth(number).get_attribute("aria-sort") == "descending"


def test_ratios_sort_by_what_they_say(opened):
    opened.locator(".sheet").first.locator("th button", has_text="in service").click()
    assert column(opened, 0, 0) == ["monolithic_piecewise", "split_eager", "breakable", "split_piecewise", "full"]


def test_rows_are_filtered_by_every_word(opened):
    sheet = opened.locator(".sheet").filter(has=opened.locator("caption", has_text="cold L2"))
    place = opened.evaluate("(each) => [...document.querySelectorAll('.sheet')].indexOf(each)", sheet.element_handle())
    sheet.locator("input").fill("8192 split")
    assert column(opened, place, 1) == ["split_eager", "split_piecewise"]
    assert sheet.locator("output").inner_text() == "2 of 30 rows"
    sheet.locator("input").fill("")
    assert len(column(opened, place, 1)) == 30


def test_a_figure_tells_the_value_under_the_pointer(opened):
    figure = opened.locator("figure").first
    figure.scroll_into_view_if_needed()
    box = figure.locator(".drawing").bounding_box()
    x, y, text = opened.evaluate("JSON.parse(document.querySelector('figure').dataset.marks)[0]")
    assert figure.locator(".tip").is_hidden()
    opened.mouse.move(box["x"] + x * box["width"] + 1, box["y"] + y * box["height"] + 1)
    assert figure.locator(".tip").inner_text() == text and figure.locator(".dot").is_visible()


def test_a_figure_tells_its_values_by_keyboard(opened):
    figure = opened.locator("figure").first
    texts = [each[2] for each in opened.evaluate("JSON.parse(document.querySelector('figure').dataset.marks)")]
    figure.focus()
    for expected in texts[:3]:
        opened.keyboard.press("ArrowRight")
        assert figure.locator(".tip").inner_text() == expected
    opened.keyboard.press("ArrowLeft")
    assert figure.locator(".tip").inner_text() == texts[1]
    opened.keyboard.press("Escape")
    assert figure.locator(".tip").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_their_ground(browser, page_file, scheme):
    """WCAG's contrast of 4.5 for every colour of text, in both schemes."""
    page = browser.new_page(color_scheme=scheme)
    page.goto(page_file.as_uri())
    names = ("ink", "dim", "link", "good", "bad", "doubt", "paper", "ground")
    found = page.evaluate(
        "(names) => Object.fromEntries(names.map((name) => "
        "[name, getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()]))",
        names,
    )
    for name in names[:-2]:
        for ground in ("paper", "ground"):
            assert contrast(found[name], found[ground]) >= 4.5, (name, ground)
    page.close()


def contrast(one: str, other: str) -> float:
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_a_print_shows_whole_tables_and_no_tools(browser, page_file):
    page = browser.new_page()
    page.goto(page_file.as_uri())
    page.emulate_media(media="print")
    assert page.locator(".tools").first.is_hidden()
    cut = page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter((e) => e.scrollHeight > e.clientHeight + 2).length"
    )
    assert cut == 0
    page.close()
