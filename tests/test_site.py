"""The documentation as a site: it builds strictly, holds every setting and verb, and reads well in a real browser without a network."""

import functools
import http.server
import os
import re
import threading

import pytest
from test_documentation import ROOT

from recbole_llm4sbr.base.schema import model_schema, models_with_settings, schema
from recbole_llm4sbr.cli.main import VERBS

pytest.importorskip("mkdocstrings_handlers.python")
pytest.importorskip("material")
build = pytest.importorskip("mkdocs.commands.build")
configuration = pytest.importorskip("mkdocs.config")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `mkdocs build` does; a warning, as of a link that leads nowhere, ends it."""
    folder = tmp_path_factory.mktemp("site")
    config = configuration.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
    assert config.strict
    config.plugins.on_startup(command="build", dirty=False)
    build.build(config)
    config.plugins.on_shutdown()
    return folder


def test_every_setting_and_every_option_of_every_verb_has_an_entry(site):
    settings, verbs = ((site / page).read_text() for page in ("configuration.html", "cli.html"))
    own = [f"{model}-{key}" for model in models_with_settings() for key in model_schema(model)]
    assert {*schema(), *own} <= set(re.findall(r'<dt id="([\w-]+)"', settings))
    options = [f"{verb.name}-{option.name}" for verb in VERBS.values() for option in verb.options]
    assert set(options) <= set(re.findall(r'<dt id="([\w-]+)"', verbs))
    assert {verb for verb in VERBS if verb} <= set(re.findall(r'<h2 id="(\w+)"', verbs))


def test_what_a_user_imports_is_described(site):
    import recbole_llm4sbr

    page = (site / "api.html").read_text()
    for name in recbole_llm4sbr.__all__:
        assert name.startswith("__") or re.search(rf'id="recbole_llm4sbr\.[\w.]+\.{name}"', page), name


def test_no_page_asks_for_anything_from_elsewhere(site):
    for page in site.rglob("*.html"):
        if page.name != "report.html":
            asked = re.findall(r"<(?:script|img|iframe|source)[^>]+src(?:set)?=\"?(https?:[^\"\s>]+)", page.read_text())
            asked += re.findall(
                r"<link[^>]+rel=\"?(?:stylesheet|preconnect|icon)\"?[^>]+href=\"?(https?:[^\"\s>]+)", page.read_text()
            )
            assert asked == [], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?https?:|@import", sheet.read_text()), sheet.name


@pytest.fixture(scope="module")
def address(site):
    """The site over HTTP, as it would be published."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    """Chromium: Playwright's own, or the one that the variable CHROMIUM names; tests are left out where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        try:
            chromium = started.chromium.launch(
                executable_path=os.environ.get("CHROMIUM"), args=["--no-sandbox", "--disable-gpu"]
            )
        except playwright.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()


# What is cut: what is wider than it shows without a bar to scroll by and a shadow that says so, and a command that does not wrap.
TYPED = ".md-content .language-bash pre > code"
CUT = """(TYPED) => {
  const found = (selector) => [...document.querySelectorAll(selector)];
  const wide = (each) => each.scrollWidth > each.clientWidth + 1;
  const hinted = (each) => {
    const style = getComputedStyle(each);
    return ["auto", "scroll"].includes(style.overflowX) && style.backgroundImage !== "none";
  };
  return [
    ...found(".md-content pre > code, .md-content .md-typeset__scrollwrap").filter((each) => wide(each) && !hinted(each)),
    ...found(TYPED).filter(wide),
    ...found(".md-content table").filter((each) => !each.closest(".md-typeset__scrollwrap, .highlighttable")),
  ].map((each) => each.tagName + " " + each.textContent.slice(0, 60));
}"""


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_reader_without_a_network_sees_every_page_whole(site, address, browser, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    # The next page ends what the one before still loads; that is no failure.
    page.on("requestfailed", lambda request: said.append(request.url) if request.failure != "net::ERR_ABORTED" else None)
    page.on(
        "request", lambda request: None if request.url.startswith((address, "data:", "blob:")) else said.append(request.url)
    )
    page.route(lambda url: not url.startswith(address), lambda route: route.abort())
    seen = 0
    for name in sorted(each.name for each in site.glob("*.html") if each.name != "404.html"):
        page.goto(address + name)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), name
        assert page.evaluate(CUT, TYPED) == [], name
        dark = page.evaluate("document.body.dataset.mdColorScheme") == "slate"
        assert dark == (scheme == "dark")
        assert page.evaluate("[...document.images].every((each) => each.complete && each.naturalWidth > 0)"), name
        seen += page.locator(TYPED).count()
    assert seen > 40
    assert said == []
    page.close()


@pytest.mark.parametrize("over", ["http", "file"])
def test_the_search_finds_a_setting_over_http_and_from_a_folder(site, address, browser, over):
    page = browser.new_page(viewport={"width": 1280, "height": 844})
    failed = []
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.route(lambda url: url.startswith("http") and not url.startswith(address), lambda route: route.abort())
    page.goto((address if over == "http" else site.as_uri() + "/") + "index.html")
    page.click(".md-search__input")
    page.keyboard.type("intent_lambda")
    page.wait_for_selector(".md-search-result__item a[href*='configuration']", timeout=10_000)
    assert failed == []
    page.close()
