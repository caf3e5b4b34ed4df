"""The page of the report in a browser: no requests, no errors, and the interactive parts work."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.core.workspace import Workspace
from tasks.params import parse_params
from tasks.report import report
from tasks.tracking import Tracker
from tests.conftest import with_overrides
from tests.report_workspace import DEFENCES, EPS, SIDE, leave_out_static_figures, write_workspace

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a report on a workspace with hostile class names."""
    workspace = tmp_path_factory.mktemp("page")
    params = parse_params(
        with_overrides({"attack.eps": list(EPS), "prepare.image_size": SIDE, "selected_defences": DEFENCES})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        leave_out_static_figures(patch)
        write_workspace(params, is_phantom=True)
        Workspace().report.mkdir()
        report(Workspace(), params, Tracker())
        return Path(Workspace().report_html).resolve().as_uri()


class Visit:
    """A page opened without a network, with its requests and its messages."""

    def __init__(self, browser: "playwright.Browser", address: str, **options: bool) -> None:
        context = browser.new_context(viewport={"width": 1400, "height": 900}, **options)
        context.set_offline(True)
        self.page = context.new_page()
        self.page.set_default_timeout(60_000)
        self.requests: list[str] = []
        self.messages: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.messages.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.messages.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.goto(address)

    def point_at(self, plot: str, number: int) -> None:
        """Move the mouse to a point of a plot."""
        self.page.locator(plot).scroll_into_view_if_needed()
        box = self.page.locator(f"{plot} .scatterlayer .point").nth(number).bounding_box()
        assert box
        self.page.mouse.move(box["x"] + box["width"] / 2 + 1, box["y"] + box["height"] / 2 + 1)
        self.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def visit(browser: "playwright.Browser", address: str) -> Visit:
    return Visit(browser, address)


@pytest.fixture(autouse=True)
def no_messages_and_no_requests(visit: Visit) -> Iterator[None]:
    """Check after each test that the page logged no message and requested nothing."""
    yield
    assert visit.messages == []
    assert [url for url in visit.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_an_accuracy_curve_shows_its_values_under_the_mouse(visit: Visit) -> None:
    figure = visit.page.locator("#figure-robustness-pgd")
    assert figure.locator(".plot.js-plotly-plot").count() == 1
    assert not figure.locator("> svg").is_visible()
    visit.point_at("#figure-robustness-pgd .plot", 2)
    hover = figure.locator(".hoverlayer")
    playwright.expect(hover).to_contain_text(re.compile(r"10\.0% \[\d+\.\d%, \d+\.\d%\]"))
    playwright.expect(hover).to_contain_text("autoencoder, adaptive")
    # the title is the value of ε, not its position on the axis
    playwright.expect(hover.locator("text").first).to_have_text("1")


def test_arrow_keys_show_the_values(visit: Visit) -> None:
    plot = visit.page.locator("#figure-robustness-fgsm .plot")
    plot.focus()
    visit.page.keyboard.press("ArrowRight")
    visit.page.keyboard.press("ArrowRight")
    playwright.expect(plot.locator(".hoverlayer")).to_contain_text(re.compile(r"80\.0% \[\d+\.\d%, \d+\.\d%\]"))
    visit.page.keyboard.press("Escape")
    playwright.expect(plot.locator(".hoverlayer")).to_be_empty()


def test_selecting_another_eps_shows_another_embedding(visit: Visit) -> None:
    marks = visit.page.locator("#explorer-plot .scatterlayer .point")
    assert marks.count() == 120
    before = marks.nth(0).get_attribute("transform")
    visit.page.select_option("#explorer-eps", "4")
    playwright.expect(marks.nth(0)).not_to_have_attribute("transform", str(before))
    assert marks.count() == 120
    visit.page.select_option("#explorer-eps", "1")
    playwright.expect(marks.nth(0)).to_have_attribute("transform", str(before))


def test_pointing_at_a_point_of_an_embedding_shows_the_image_its_class_and_its_prediction(visit: Visit) -> None:
    thumbnail = visit.page.locator("#explorer-thumbnail")
    details = visit.page.locator("#explorer-details")
    shown = set()
    for number in (0, 70):
        visit.point_at("#explorer-plot", number)
        playwright.expect(thumbnail).to_be_visible()
        playwright.expect(details).to_contain_text(".png")
        playwright.expect(details).to_contain_text("predicted: ")
        shown.add(thumbnail.evaluate("each => getComputedStyle(each).backgroundPosition"))
        assert thumbnail.evaluate("each => getComputedStyle(each).backgroundImage").startswith('url("data:image/jpeg')
    assert len(shown) == 2
    # the third class of three is drawn last
    visit.point_at("#explorer-plot", 119)
    playwright.expect(details).to_contain_text("class: a|b $\\frac")


def test_class_names_are_shown_unchanged(visit: Visit) -> None:
    playwright.expect(visit.page.locator("#explorer-plot .legend")).to_contain_text("<script>alert(1)</script>, clean")


def test_the_roc_curve_shows_its_values_under_the_mouse(visit: Visit) -> None:
    figure = visit.page.locator("#figure-roc-undefended-pgd")
    area = figure.locator(".nsewdrag")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box
    visit.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 3)
    visit.page.mouse.move(box["x"] + box["width"] / 2 + 2, box["y"] + box["height"] / 3)
    playwright.expect(figure.locator(".hoverlayer")).to_contain_text("%")


def test_each_purifier_has_its_embedding(visit: Visit) -> None:
    marks = visit.page.locator("#explorer-plot .scatterlayer .point")
    before = marks.nth(0).get_attribute("transform")
    visit.page.select_option(
        "#explorer-features", "bottleneck of the purifier: retrained autoencoder, transfer from undefended"
    )
    playwright.expect(marks.nth(0)).not_to_have_attribute("transform", str(before))
    visit.page.select_option("#explorer-features", "penultimate layer of the classifier: undefended")
    playwright.expect(marks.nth(0)).to_have_attribute("transform", str(before))


def test_curves_with_defended_surrogates_are_folded(visit: Visit) -> None:
    figure = visit.page.locator("#figure-roc-retrained_autoencoder-pgd")
    assert not figure.is_visible()
    visit.page.get_by_text("Curves with defended surrogates").click()
    playwright.expect(figure.locator("svg")).to_be_visible()
    visit.page.get_by_text("Curves with defended surrogates").click()


def test_a_click_on_a_head_sorts_the_table_of_targets(visit: Visit) -> None:
    table = visit.page.locator("#comparison table").first

    def texts(column: int) -> list[str]:
        return table.locator(f"tbody tr > :nth-child({column})").all_inner_texts()

    def numbers(column: int) -> list[float]:
        return [float(text.split()[0]) for text in texts(column)]

    heads = [head.split("\n")[0] for head in table.locator("thead th").all_inner_texts()]
    by_rank, column = texts(1), 1 + next(i for i, head in enumerate(heads) if head.startswith("clean"))
    assert [text.split(".")[0] for text in by_rank] == ["1", "2", "3"]
    assert len(set(numbers(column))) == 3
    clean = table.locator("thead th", has_text="clean")
    clean.get_by_role("button").click()
    assert numbers(column) == sorted(numbers(column))
    assert clean.get_attribute("aria-sort") == "ascending"
    clean.get_by_role("button").click()
    assert numbers(column) == sorted(numbers(column), reverse=True)
    assert clean.get_attribute("aria-sort") == "descending"
    table.locator("thead th", has_text="target").first.get_by_role("button").click()
    assert texts(1) == by_rank
    assert clean.get_attribute("aria-sort") is None


def test_print_shows_the_static_figures(visit: Visit) -> None:
    visit.page.emulate_media(media="print")
    try:
        playwright.expect(visit.page.locator("#figure-robustness-pgd > svg")).to_be_visible()
        playwright.expect(visit.page.locator("#figure-embeddings-classifier-undefended-adaptive > svg")).to_be_visible()
        assert not visit.page.locator("#figure-robustness-pgd .plot").is_visible()
        assert not visit.page.locator("#explorer").is_visible()
    finally:
        visit.page.emulate_media(media="screen")


def test_page_without_scripts_shows_the_static_figures(browser: "playwright.Browser", address: str) -> None:
    plain = Visit(browser, address, java_script_enabled=False)
    assert plain.page.locator("#figure-robustness-pgd > svg").is_visible()
    assert plain.page.locator("#figure-embeddings-classifier-undefended-adaptive > svg").is_visible()
    assert not plain.page.locator("#explorer").is_visible()
    plain.page.context.close()


def test_page_does_not_scroll_sideways_on_a_narrow_screen(visit: Visit) -> None:
    visit.page.set_viewport_size({"width": 420, "height": 900})
    try:
        visit.page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")
    finally:
        visit.page.set_viewport_size({"width": 1400, "height": 900})
