"""The built book in a real browser: what readers see, hear, type and download.

`make pages` builds the book first. Without a browser these tests are skipped; with
BROWSER_REQUIRED=1 in the environment, as CI has it, they fail.
"""

import contextlib
import functools
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from playwright.sync_api import TimeoutError as GaveUp

from shared import pages as book_pages
from tests.hygiene import listed_pages

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "_build" / "html"
PAGES = listed_pages(ROOT)
CHAPTERS = [page for page in PAGES if (ROOT / f"{page}.ipynb").exists()]
GROUPS = book_pages.read_symptoms(
    ROOT / book_pages.TABLE, [page.removeprefix("chapters/") for page in CHAPTERS]
)
SYMPTOMS = [symptom for group in GROUPS for symptom in group.symptoms]
WIDTHS = (1300, 390)
HEIGHT = 900

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "microsoft-edge",
)
NO_BROWSER = (
    "no browser: install Chromium (on Debian and Ubuntu: apt-get install chromium), or "
    "set BROWSER_PATH to one"
)
BROWSER_OPTIONS = (
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
)


# --------------------------------------------------------------------------------------
# A browser, a server, a page
# --------------------------------------------------------------------------------------


def find_browser(
    environment: Mapping[str, str], which: Callable[[str], str | None] = shutil.which
) -> str | None:
    """Return the path of a browser that speaks Chromium's protocol, if there is one."""
    for name in (environment.get("BROWSER_PATH", ""), *BROWSERS):
        path = which(name) if name else None
        if path:
            return path
    return None


def skip_or_fail(environment: Mapping[str, str]) -> None:
    """Say that there is no browser, as loudly as the environment asks for."""
    if environment.get("BROWSER_REQUIRED") == "1":
        pytest.fail(NO_BROWSER, pytrace=False)
    pytest.skip(NO_BROWSER)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = find_browser(os.environ)
    if path is None:
        skip_or_fail(os.environ)
    # Chromium's sandbox refuses to run as root, which is what containers run as.
    as_root = ("--no-sandbox",) if os.geteuid() == 0 else ()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=[*BROWSER_OPTIONS, *as_root]
        )
        yield browser
        browser.close()


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    if not (BUILT / "index.html").is_file():
        pytest.fail("There is no built book: run make book", pytrace=False)
    handler = functools.partial(Quiet, directory=str(BUILT))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


Contexts = dict[int, BrowserContext]


@pytest.fixture(scope="session")
def contexts() -> Contexts:
    """Return the browser contexts by width: each keeps its cache for all pages."""
    return {}


@dataclass
class View:
    """A page at one width, and what it complained about."""

    page: Page
    address: str
    problems: list[str] = field(default_factory=list)

    def read(self, path: str) -> Page:
        """Go to a page of the book for what it says: its mathematics may come later."""
        self.page.goto(f"{self.address}/{path}", wait_until="domcontentloaded")
        return self.page

    def open(self, path: str) -> Page:
        """Go to a page of the book and wait until its mathematics is drawn."""
        self.page.goto(f"{self.address}/{path}", wait_until="load")
        self.page.evaluate("() => window.MathJax?.startup?.promise")
        self.page.evaluate("() => document.fonts.ready.then(() => true)")
        return self.page


Opener = Callable[..., View]


@pytest.fixture
def view(browser: Browser, address: str, contexts: Contexts) -> Iterator[Opener]:
    opened = []

    def new_view(width: int = 1300) -> View:
        if width not in contexts:
            size = {"width": width, "height": HEIGHT}
            contexts[width] = browser.new_context(viewport=size)
        view = View(contexts[width].new_page(), address)
        listen(view)
        opened.append(view)
        return view

    yield new_view
    for view in opened:
        view.page.close()


def listen(view: View) -> None:
    """Note everything that the browser complains about or that leaves the book."""
    note, page = view.problems.append, view.page

    def request(url: str) -> None:
        if not url.startswith((view.address, "data:", "blob:")):
            note(f"asks a server outside: {url}")

    page.on("request", lambda asked: request(asked.url))
    page.on("requestfailed", lambda asked: note(f"request failed: {asked.url}"))
    page.on("pageerror", lambda error: note(f"script error: {error}"))
    page.on(
        "response",
        lambda answer: (
            note(f"HTTP {answer.status}: {answer.url}") if answer.status >= 400 else 0
        ),
    )
    page.on(
        "console",
        lambda said: (
            note(f"console {said.type}: {said.text}")
            if said.type in ("error", "warning")
            else 0
        ),
    )


# --------------------------------------------------------------------------------------
# Every page, light and dark, wide and narrow
# --------------------------------------------------------------------------------------

UNFOLD = """() => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
  for (const button of document.querySelectorAll("button.toggle-button-hidden")) {
    button.click();
  }
}"""

IMAGES = """() => [...document.querySelectorAll("article img")]
  .filter((image) => !image.naturalWidth || !image.getBoundingClientRect().width
    || getComputedStyle(image).visibility !== "visible")
  .map((image) => image.src)"""

# Formulas as Sphinx writes them, and how many of them MathJax drew.
MATH = """() => [
  document.querySelectorAll("article .math").length,
  document.querySelectorAll("article .math mjx-container mjx-assistive-mml").length,
  document.querySelectorAll("mjx-merror, [data-mjx-error]").length]"""

# What the theme makes reachable is right once its last measurement is.
REACHABLE = """() => [...document.querySelectorAll(
    "pre, .cell_output > .output, .pst-scrollable-table-container")].every(
  (box) => box.scrollWidth <= box.clientWidth || box.tabIndex >= 0)"""

OVERFLOW = "() => document.documentElement.scrollWidth - window.innerWidth"

# Code is thousands of colored words in a handful of styles, and axe looks at each one.
# One word of each style is left, the others become plain text; so do formulas in a line
# after the first one. And colors change at once, not in the course of a second.
THIN_OUT = """() => {
  const words = [...document.querySelectorAll("pre span")];
  const styles = words.map((word) => {
    const own = getComputedStyle(word);
    const block = word.closest("div.highlight");
    return [own.color, own.backgroundColor, own.fontSize, own.fontWeight,
      getComputedStyle(block).backgroundColor, block.parentElement.className].join();
  });
  const again = words.filter((_, place) => styles.indexOf(styles[place]) < place);
  for (const word of again) word.replaceWith(...word.childNodes);
  const formulas = document.querySelectorAll("mjx-container:not([display])");
  for (const formula of [...formulas].slice(1)) formula.replaceWith("x");
  document.head.append(document.createElement("style"));
  document.head.lastChild.textContent = "* { transition: none !important }";
}"""

# Whether a text or a link stands out depends on what is compared here, and on nothing
# else: one of each kind tells for all, and axe takes most of its time for these rules.
ONE_OF_EACH_LOOK = """() => {
  const looks = new Map([[null, ""]]);
  const behind = (element) => {
    if (!looks.has(element)) {
      const own = getComputedStyle(element);
      const look = [own.backgroundColor, own.backgroundImage, own.opacity, own.filter];
      const plain = look.join() === "rgba(0, 0, 0, 0),none,1,none";
      const above = behind(element.parentElement);
      looks.set(element, plain ? above : above + look.join());
    }
    return looks.get(element);
  };
  const says = (element) => [...element.childNodes].some(
    (node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  const seen = new Set();
  return [...document.body.querySelectorAll("*")].filter((element) => {
    const shows = says(element) || element.matches("a, input, select, textarea");
    if (!shows || !element.checkVisibility({visibilityProperty: true})) return false;
    const own = getComputedStyle(element);
    const around = element.parentElement;
    const look = [element.tagName, own.color, own.fontSize, own.fontWeight,
      own.textShadow, own.textDecorationLine, behind(element), says(around),
      getComputedStyle(around).color].join("; ");
    return !seen.has(look) && seen.add(look);
  });
}"""

COLOR_RULES = ["color-contrast", "link-in-text-block"]

# No rule is left out but those that the options name. Without preloading: axe would
# fetch the theme's imported style sheets again, from addresses that it gets wrong.
AXE = """async ({context = document, options = {}}) => {
  options = {preload: false, resultTypes: ["violations"], ...options};
  const {violations} = await axe.run(context, options);
  return violations.flatMap(({id, help, nodes}) =>
    nodes.map(({html}) => `axe ${id} (${help}): ${html.slice(0, 160)}`));
}"""


def drawing_problems(page: Page) -> list[str]:
    """Return what is not drawn as it should be on an unfolded page."""
    problems = [f"image not shown: {source}" for source in page.evaluate(IMAGES)]
    formulas, drawn, errors = page.evaluate(MATH)
    if drawn != formulas or errors:
        problems.append(f"{drawn} of {formulas} formulas drawn, {errors} with errors")
    wider = page.evaluate(OVERFLOW)
    if wider > 0:
        problems.append(f"the page is {wider} pixels wider than the screen")
    return problems


def wait_for_the_keyboard(page: Page) -> None:
    """Wait until the keyboard can reach what scrolls; axe says so if it never can.

    The theme measures that a third of a second after a change, on a busy machine later.
    """
    with contextlib.suppress(GaveUp):
        page.wait_for_function(REACHABLE, timeout=5000)


def choose_colors(page: Page, scheme: str) -> None:
    """Show a page as a reader sees it whose system is light or dark."""
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function(
        "scheme => document.documentElement.dataset.theme === scheme", arg=scheme
    )


def accessibility_problems(page: Page) -> list[str]:
    """Return what axe says about a page, and about its colors in light and in dark."""
    others = {rule: {"enabled": False} for rule in COLOR_RULES}
    problems = page.evaluate(AXE, {"options": {"rules": others}})
    for scheme in ("light", "dark"):
        choose_colors(page, scheme)
        context = {"include": page.evaluate_handle(ONE_OF_EACH_LOOK)}
        colors = {"context": context, "options": {"runOnly": COLOR_RULES}}
        problems += [f"{scheme}: {found}" for found in page.evaluate(AXE, colors)]
    return problems


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", [*PAGES, "search"])
def test_a_page_is_whole_in_light_and_in_dark(
    view: Opener, name: str, width: int
) -> None:
    seen = view(width)
    page = seen.open(f"{name}.html")
    page.evaluate(UNFOLD)
    page.evaluate(AXE_SCRIPT)
    wait_for_the_keyboard(page)
    problems = drawing_problems(page)
    page.evaluate(THIN_OUT)
    problems += accessibility_problems(page)
    problems += seen.problems
    assert not problems, "\n".join([f"{name}, {width} px wide:", *problems])


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_figures_in_the_dark_stand_on_white(view: Opener, chapter: str) -> None:
    page = view().read(f"{chapter}.html")
    choose_colors(page, "dark")
    images = page.locator("article .cell_output img")
    styles = images.evaluate_all(
        "x => x.map(getComputedStyle).map(s => s.backgroundColor + s.filter)"
    )
    assert set(styles) == {"rgb(255, 255, 255)none"}, "no figure, or not on white"


# --------------------------------------------------------------------------------------
# What a reader does
# --------------------------------------------------------------------------------------


def press_tab_until(page: Page, selector: str) -> None:
    """Move the focus with the Tab key until it is on what the selector names."""
    for _ in range(100):
        page.keyboard.press("Tab")
        if page.evaluate("s => document.activeElement.matches(s)", selector):
            return
    pytest.fail(f"100 presses of Tab do not reach {selector}")


def test_the_address_of_the_book_leads_to_the_landing_page(view: Opener) -> None:
    seen = view()
    seen.page.goto(f"{seen.address}/index.html")
    seen.page.wait_for_url("**/intro.html")
    assert seen.page.locator("article h1").is_visible()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_symptom_finder_works_by_keyboard(view: Opener, width: int) -> None:
    symptom = SYMPTOMS[0]
    page = view(width).open("intro.html")
    entry = page.locator("details.symptom").first
    press_tab_until(page, "details.symptom summary")
    assert symptom.see in page.evaluate("document.activeElement.textContent")
    assert not entry.locator("pre").is_visible()
    page.keyboard.press("Enter")
    assert entry.locator("pre").is_visible()
    # As text: quotation marks in prose are typeset, code is not.
    assert entry.locator("pre").inner_text().strip() == symptom.test
    press_tab_until(page, f"a[href^='chapters/{symptom.chapter}.html']")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/chapters/{symptom.chapter}.html")


# The places of the symptoms that are left, and what is said about them.
FILTERED = """() => [
  [...document.querySelectorAll("details.symptom")].flatMap(
    (entry, place) => entry.checkVisibility({visibilityProperty: true}) ? place : []),
  document.querySelector("[role=status]").innerText]"""


def test_phrases_typed_into_the_filter_leave_their_symptoms(view: Opener) -> None:
    page = view().open("intro.html")
    box = page.get_by_label("Filter by your words")
    for place, symptom in enumerate(SYMPTOMS):
        for phrase in symptom.also:
            box.fill(phrase)
            shown, said = page.evaluate(FILTERED)
            assert place in shown, phrase
            assert said == f"{len(shown)} of {len(SYMPTOMS)} symptoms"
    box.fill("no such words anywhere")
    assert page.locator("details.symptom:visible").count() == 0
    box.fill("")
    assert page.locator("details.symptom:visible").count() == len(SYMPTOMS)


def test_links_to_symptoms_and_chapters_open_their_entries(view: Opener) -> None:
    anchors = [f"symptom-{symptom.name}" for symptom in SYMPTOMS]
    anchors += [f"find-{page[9:].replace('_', '-')}" for page in CHAPTERS]
    seen = view(390)
    for anchor in anchors:
        page = seen.open(f"intro.html#{anchor}")
        entry = page.locator(f"details.symptom:has(#{anchor})")
        entry.locator("pre").wait_for(state="visible")
        assert page.locator("details.symptom[open]").count() == 1
        top = entry.bounding_box()["y"]
        assert -100 < top < HEIGHT / 2, f"{anchor} is not scrolled to"
        # The next address differs in its fragment only: the page is not loaded again.
        entry.evaluate("folded => folded.open = false")


def test_the_switch_of_colors_is_remembered(view: Opener) -> None:
    seen = view()
    page = seen.open("intro.html")
    theme = "document.documentElement.dataset.theme"
    button = page.locator("button.theme-switch-button:visible").first
    for _ in range(3):
        button.click()
        if page.evaluate(theme) == "dark":
            break
    assert page.evaluate(theme) == "dark"
    seen.open("references.html")
    assert page.evaluate(theme) == "dark"
    page.evaluate("localStorage.clear()")


def test_the_search_finds_a_symptom_without_a_server(view: Opener) -> None:
    seen = view()
    page = seen.open("search.html?q=vanishing+gradient")
    page.locator("#search-results li a").first.wait_for()
    links = page.locator("#search-results li a").evaluate_all("x => x.map(a => a.href)")
    assert any("intro.html" in link for link in links), links
    assert not seen.problems


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_download_is_the_executed_notebook(view: Opener, chapter: str) -> None:
    page = view().read(f"{chapter}.html")
    link = page.locator("a.btn-download-source-button").first
    url = link.evaluate("a => a.href")
    assert url.endswith(f"{chapter.removeprefix('chapters/')}.ipynb")
    downloaded = nbformat.reads(page.request.get(url).text(), as_version=4)
    assert downloaded == nbformat.read(ROOT / f"{chapter}.ipynb", as_version=4)


@pytest.mark.parametrize("name", PAGES)
def test_every_link_into_the_book_leads_somewhere(view: Opener, name: str) -> None:
    seen = view()
    page = seen.read(f"{name}.html")
    links = page.locator("a[href]").evaluate_all("x => x.map(a => a.href)")
    own = [link for link in links if link.startswith(seen.address)]
    paths = {link.removeprefix(seen.address).split("#")[0].strip("/") for link in own}
    assert f"{CHAPTERS[0]}.html" in paths, "the menu is missing"
    assert not [path for path in sorted(paths) if not (BUILT / path).is_file()]


# --------------------------------------------------------------------------------------
# Finding the browser
# --------------------------------------------------------------------------------------


def test_the_named_browser_comes_first() -> None:
    installed = {"chromium": "/bin/chromium", "mine": "/opt/mine"}
    assert find_browser({"BROWSER_PATH": "mine"}, installed.get) == "/opt/mine"
    assert find_browser({}, installed.get) == "/bin/chromium"
    assert find_browser({}, {}.get) is None


def test_a_missing_browser_skips_in_one_line_or_fails() -> None:
    assert "\n" not in NO_BROWSER
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        skip_or_fail({})
    with pytest.raises(pytest.fail.Exception, match="BROWSER_PATH"):
        skip_or_fail({"BROWSER_REQUIRED": "1"})
