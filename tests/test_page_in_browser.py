"""The report's page in a real browser: alone, without errors, and its interactive parts answer."""

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.core.workspace import Workspace
from tasks.params import parse_params
from tasks.report import report
from tasks.reporting import figures
from tasks.tracking import Tracker
from tests.conftest import with_overrides
from tests.report_workspace import BENCHMARK, EPS, SIDE, write_workspace

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a page on a workspace whose classes have hostile names."""
    workspace = tmp_path_factory.mktemp("page")
    params = parse_params(with_overrides({"attack.eps": list(EPS), "prepare.image_size": SIDE, "benchmark": BENCHMARK}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        # how the drawings look is not looked at here, and drawing them well takes long
        patch.setattr(figures, "png", lambda figure: PIXEL)
        patch.setattr(figures.ConstrainedLayoutEngine, "execute", lambda engine, figure: None)
        write_workspace(params, is_phantom=True)
        Workspace().report.mkdir()
        report(Workspace(), params, Tracker())
        return Path(Workspace().report_html).resolve().as_uri()


class Visit:
    """A page opened without a network, and all that it asked for or complained of."""

    def __init__(self, browser: "playwright.Browser", address: str, **options: bool) -> None:
        context = browser.new_context(viewport={"width": 1400, "height": 900}, **options)
        context.set_offline(True)
        self.page = context.new_page()
        self.page.set_default_timeout(60_000)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.goto(address)

    def point_at(self, plot: str, number: int) -> None:
        """Move the mouse to a mark of a plot."""
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
def no_complaints(visit: Visit) -> Iterator[None]:
    """Whatever a test does with the page, it stays silent and asks for nothing that is not in it."""
    yield
    assert visit.complaints == []
    assert [url for url in visit.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_an_accuracy_curve_tells_its_values_under_the_mouse(visit: Visit) -> None:
    figure = visit.page.locator("#figure-robustness-pgd")
    assert figure.locator(".plot.js-plotly-plot").count() == 1
    assert not figure.locator("> svg").is_visible()
    visit.point_at("#figure-robustness-pgd .plot", 2)
    told = figure.locator(".hoverlayer")
    playwright.expect(told).to_contain_text("10.0% [4.7%, 20.1%]")
    playwright.expect(told).to_contain_text("autoencoder, adaptive")
    # ε itself heads the values, not its place on the axis
    playwright.expect(told.locator("text").first).to_have_text("1")


def test_arrow_keys_tell_values_too(visit: Visit) -> None:
    plot = visit.page.locator("#figure-robustness-fgsm .plot")
    plot.focus()
    visit.page.keyboard.press("ArrowRight")
    visit.page.keyboard.press("ArrowRight")
    playwright.expect(plot.locator(".hoverlayer")).to_contain_text("80.0% [68.2%, 88.2%]")
    visit.page.keyboard.press("Escape")
    playwright.expect(plot.locator(".hoverlayer")).to_be_empty()


def test_another_eps_draws_another_embedding(visit: Visit) -> None:
    marks = visit.page.locator("#explorer-plot .scatterlayer .point")
    assert marks.count() == 120
    before = marks.nth(0).get_attribute("transform")
    visit.page.select_option("#explorer-eps", "4")
    playwright.expect(marks.nth(0)).not_to_have_attribute("transform", str(before))
    assert marks.count() == 120
    visit.page.select_option("#explorer-eps", "1")
    playwright.expect(marks.nth(0)).to_have_attribute("transform", str(before))


def test_pointing_at_an_embedded_image_shows_it_with_its_class_and_prediction(visit: Visit) -> None:
    thumbnail = visit.page.locator("#explorer-thumbnail")
    words = visit.page.locator("#explorer-words")
    shown = set()
    for number in (0, 70):
        visit.point_at("#explorer-plot", number)
        playwright.expect(thumbnail).to_be_visible()
        playwright.expect(words).to_contain_text(".png")
        playwright.expect(words).to_contain_text("predicted: ")
        shown.add(thumbnail.evaluate("each => getComputedStyle(each).backgroundPosition"))
        assert thumbnail.evaluate("each => getComputedStyle(each).backgroundImage").startswith('url("data:image/jpeg')
    assert len(shown) == 2
    # the third class of three is drawn last
    visit.point_at("#explorer-plot", 119)
    playwright.expect(words).to_contain_text("class: a|b $\\frac")


def test_names_of_classes_are_shown_as_they_are(visit: Visit) -> None:
    playwright.expect(visit.page.locator("#explorer-plot .legend")).to_contain_text("<script>alert(1)</script>, clean")


def test_the_roc_curve_answers(visit: Visit) -> None:
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
    visit.page.select_option("#explorer-features", "purifier's bottleneck: retrained autoencoder, transfer")
    playwright.expect(marks.nth(0)).not_to_have_attribute("transform", str(before))
    visit.page.select_option("#explorer-features", "classifier's last layer but one: undefended")
    playwright.expect(marks.nth(0)).to_have_attribute("transform", str(before))


def test_what_was_crafted_on_defences_is_folded_until_asked_for(visit: Visit) -> None:
    figure = visit.page.locator("#figure-roc-retrained_autoencoder-pgd")
    assert not figure.is_visible()
    visit.page.get_by_text("Crafted on the defended classifier").click()
    playwright.expect(figure.locator("svg")).to_be_visible()
    visit.page.get_by_text("Crafted on the defended classifier").click()


def test_defences_are_sorted_by_the_head_that_is_clicked(visit: Visit) -> None:
    table = visit.page.locator("#defences table").first

    def names() -> list[str]:
        return [cell.split(". ")[1] for cell in table.locator("tbody th").all_inner_texts()]

    by_rank = ["retrained autoencoder", "autoencoder", "undefended"]
    assert names() == by_rank
    clean = table.locator("th", has_text="clean images")
    clean.get_by_role("button").click()
    assert names() == ["autoencoder", "retrained autoencoder", "undefended"]
    assert clean.get_attribute("aria-sort") == "ascending"
    clean.get_by_role("button").click()
    assert names() == ["undefended", "retrained autoencoder", "autoencoder"]
    assert clean.get_attribute("aria-sort") == "descending"
    table.locator("th", has_text="target").get_by_role("button").click()
    assert names() == by_rank
    assert clean.get_attribute("aria-sort") is None


def test_paper_gets_the_drawings(visit: Visit) -> None:
    visit.page.emulate_media(media="print")
    try:
        playwright.expect(visit.page.locator("#figure-robustness-pgd > svg")).to_be_visible()
        playwright.expect(visit.page.locator("#figure-embeddings-classifier-undefended-adaptive > svg")).to_be_visible()
        assert not visit.page.locator("#figure-robustness-pgd .plot").is_visible()
        assert not visit.page.locator("#explorer").is_visible()
    finally:
        visit.page.emulate_media(media="screen")


def test_without_scripts_the_drawings_stand(browser: "playwright.Browser", address: str) -> None:
    plain = Visit(browser, address, java_script_enabled=False)
    assert plain.page.locator("#figure-robustness-pgd > svg").is_visible()
    assert plain.page.locator("#figure-embeddings-classifier-undefended-adaptive > svg").is_visible()
    assert not plain.page.locator("#explorer").is_visible()
    plain.page.context.close()


def test_a_narrow_screen_scrolls_down_only(visit: Visit) -> None:
    visit.page.set_viewport_size({"width": 420, "height": 900})
    try:
        visit.page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")
    finally:
        visit.page.set_viewport_size({"width": 1400, "height": 900})
