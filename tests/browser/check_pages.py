"""Open every page of the built book in headless Chromium and say what is wrong: `make check-book`.

    python tests/browser/check_pages.py [_build/html]

Exits 1 with one line for each fault: a console error, a request that fails or leaves the site, a formula
left as LaTeX, a link or an anchor that leads nowhere, a fold that a link does not open, a page that is too
long or too heavy, something wider than the page, an interactive figure that does not answer a key or a click
or too few of them, a serious finding of axe in light or in dark with all folds open, a search that misses.
Exits 2 without a Chromium.
"""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

sys.path.append(str(Path(__file__).parents[2] / "book"))
from interactive import faults_of_figures

from browser import Browser, Missing, chromium

AXE = Path(__file__).with_name("axe.min.js")
TALLEST, HEAVIEST = 15_000, 1_500_000  # pixels at 1440; bytes of a page and its own pictures
FIGURES = 10  # that answer the reader, in the whole book

# Pages in which one looks things up; one that is neither too tall nor too heavy must leave this list.
LONG = {"book/reference.html"}

# What a page says about itself once its mathematics is set.
PROBE = r"""(async () => {
  await window.MathJax?.startup?.promise;
  await document.fonts.ready;
  const number = (e) => e.querySelector("[id^='mjx-eqn'], .eqno")?.innerText.replace(/[^().\d]/g, "") ?? "";
  const over = (e) => e.scrollWidth - e.clientWidth;
  const name = (e) => (e.closest("[id]")?.id ?? "") + ": " + e.textContent.trim().slice(0, 50);
  const article = document.querySelector(".bd-article") ?? document.body;
  const texts = document.createTreeWalker(article, NodeFilter.SHOW_TEXT, (n) =>
    n.parentElement.closest("pre, code, script, style, mjx-container") || !/\\[([]|\$\$/.test(n.data)
      ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT);
  const raw = []; while (texts.nextNode()) raw.push(texts.currentNode.data.trim().slice(0, 60));
  const seen = (e) => e.checkVisibility();
  return JSON.stringify({
    title: document.title, height: document.documentElement.scrollHeight,
    width: document.documentElement.scrollWidth - window.innerWidth,
    math: article.querySelectorAll("mjx-container").length, marked: article.querySelectorAll(".math").length,
    raw, mathErrors: [...article.querySelectorAll("mjx-merror, [data-mjx-error]")].map(name),
    formulas: [...article.querySelectorAll("div.math, div.math mjx-container")]
      .filter((e) => seen(e) && over(e) > 1).map((e) => [number(e), over(e), e.closest("section")?.id ?? "",
        e.textContent.replace(/\s+/g, " ").slice(0, 60)]),
    code: [...article.querySelectorAll(".highlight pre")].filter((e) => seen(e) && over(e) > 1).map(name),
    tables: [...article.querySelectorAll("table")].filter((e) => seen(e) && over(e.parentElement) > 1)
      .map(name),
    unreachable: [...article.querySelectorAll("*")].filter((e) => seen(e) && over(e) > 1 && e.tabIndex < 0
      && /auto|scroll/.test(getComputedStyle(e).overflowX)
      && getComputedStyle(e).display !== "inline").map(name),
    ids: [...document.querySelectorAll("[id]")].map((e) => e.id),
    links: [...document.querySelectorAll("a[href]")].map((e) => e.href),
  });
})()"""

# Places in folds, and headings whose sections are folded: each is gone to, and has to be open then. At the
# end all folds are. (A browser refuses more than 200 changes of the address in ten seconds.)
FOLDS = r"""(async () => {
  document.head.insertAdjacentHTML("beforeend", "<style>* { transition: none !important; }</style>");
  const seen = (e) => e.checkVisibility({opacityProperty: true, visibilityProperty: true});
  const article = document.querySelector(".bd-article") ?? document.body;
  const inside = [...article.querySelectorAll(":is(details, .toggle-hidden) [id]")].filter((e) => !seen(e)
    && !e.closest("svg, mjx-container, summary, button") && !/^(codecell|toggle|mjx)/.test(e.id));
  const heads = [...article.querySelectorAll("section[id] > details.rest")];
  const places = [...heads.map((e) => [e.parentElement.id, () => e.open]),
    ...inside.map((e) => [e.id, () => seen(e)])];
  const lost = [];
  for (const [id, shown] of places.slice(0, 100)) {
    const changed = new Promise((done) => addEventListener("hashchange", done, {once: true}));
    location.hash = id;
    await changed;
    if (!shown()) lost.push(id);
  }
  article.querySelectorAll("details").forEach((e) => { e.open = true; });
  return JSON.stringify([places.map(([id]) => id), lost]);
})()"""

# Formulas are thousands of elements without a role; in the dark only colours differ.
AXE_RUN = """(async () => {
  document.documentElement.dataset.theme = "THEME";
  document.querySelectorAll("mjx-container").forEach((e) => e.replaceWith("x"));
  const only = "THEME" === "dark" ? {runOnly: ["color-contrast"]} : {};
  const found = await axe.run(document, {resultTypes: ["violations"], ...only});
  return JSON.stringify(found.violations.filter((v) => ["serious", "critical"].includes(v.impact))
    .map((v) => [v.id, v.nodes.length, v.nodes[0].target.join(" "), v.nodes[0].html.slice(0, 160)]));
})()"""


def faults_of_loading(events: list[dict[str, Any]], origin: str) -> Iterator[str]:
    """Console errors, and requests that failed or left the site."""
    urls: dict[str, str] = {}
    for event in events:
        method, body = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = body["exceptionDetails"]
            yield f"script error: {details.get('exception', {}).get('description', details['text'])[:200]}"
        elif method == "Log.entryAdded" and body["entry"]["level"] == "error":
            yield f"console: {body['entry']['text'][:200]} {body['entry'].get('url', '')}"
        elif method == "Runtime.consoleAPICalled" and body["type"] in ("error", "assert"):
            yield f"console: {[a.get('value', a.get('description')) for a in body['args']]}"[:240]
        elif method == "Network.requestWillBeSent":
            urls[body["requestId"]] = body["request"]["url"]
            if not body["request"]["url"].startswith((origin, "data:", "blob:")):
                yield f"leaves the site: {body['request']['url'][:150]}"
        elif method == "Network.loadingFailed" and not body.get("canceled"):
            yield f"failed: {urls.get(body['requestId'], '')[:150]} {body['errorText']}"


def weight(events: list[dict[str, Any]]) -> int:
    """Bytes of a page's own document and pictures; scripts, styles and fonts are shared by all pages."""
    own = {
        e["params"]["requestId"]
        for e in events
        if e.get("method") == "Network.responseReceived" and e["params"]["type"] in ("Document", "Image")
    }
    ends = (e["params"] for e in events if e.get("method") == "Network.loadingFinished")
    return int(sum(p["encodedDataLength"] for p in ends if p["requestId"] in own))


def faults_of_page(page: dict[str, Any]) -> Iterator[str]:
    if page["marked"] and not page["math"]:
        yield "no formula is set"
    yield from (f"left as LaTeX: {text}" for text in page["raw"])
    yield from (f"MathJax cannot set: {text}" for text in page["mathErrors"])
    if page["width"] > 0:
        yield f"scrolls sideways by {page['width']} pixels"
    yield from (f"scrolls, but no key reaches it: {text}" for text in page["unreachable"])
    if doubled := sorted({i for i in page["ids"] if page["ids"].count(i) > 1 and not i.startswith("mjx")}):
        yield f"the same id twice: {doubled[:5]}"


def faults_of_size(name: str, height: int, size: int) -> Iterator[str]:
    too = [f"{height:,} pixels tall at 1440, expected at most {TALLEST:,}"] * (height > TALLEST)
    too += [f"{size / 1e6:.2f} MB, expected at most {HEAVIEST / 1e6}"] * (size > HEAVIEST)
    if name not in LONG:
        yield from too
    elif not too:
        yield "neither too tall nor too heavy any more: take it out of LONG"


def faults_of_links(pages: dict[str, dict[str, Any]], origin: str, html: Path) -> Iterator[str]:
    for name, page in pages.items():
        for link in sorted(set(page["links"])):
            address, anchor = urldefrag(link)
            if not address.startswith(origin):
                continue
            target = unquote(urlsplit(address).path).lstrip("/") or "index.html"
            if not (html / target).exists():
                yield f"{name}: a link to {target}, which does not exist"
            elif anchor and target in pages and unquote(anchor) not in pages[target]["ids"]:
                yield f"{name}: no anchor {anchor} in {target}"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def found_by_search(browser: Browser, origin: str, word: str) -> list[str]:
    """Addresses that the search page lists for a word, after it has stopped growing."""
    browser.open(f"{origin}/search.html?q={word}")
    script = "JSON.stringify([...document.querySelectorAll('#search-results li a')].map((a) => a.href))"
    found: list[str] = []
    for _ in range(100):
        time.sleep(0.2)
        if (now := browser.evaluate(script)) and now == found:
            break
        found = now
    return found


def check(html: Path, program: str, overflow: bool, shots: Path | None, only: str) -> list[str]:
    """Every fault of the book, one line each."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    origin = f"http://127.0.0.1:{server.server_address[1]}"
    names = sorted(str(f.relative_to(html)) for f in [*html.glob("*.html"), *html.glob("book/*.html")])
    names = [n for n in names if n != "search.html" and only in n]
    browser, faults, pages, some_fold, moving = Browser(program), [], {}, [], 0
    axe = AXE.read_text()
    try:
        for name in names:
            browser.open(f"{origin}/{name}")
            page = pages[name] = browser.evaluate(PROBE)
            own = [*faults_of_loading(browser.events, origin), *faults_of_page(page)]
            bytes_ = weight(browser.events)
            own += faults_of_size(name, page["height"], bytes_)
            found = faults_of_figures(browser)
            moving += len(found)
            own += [f"figure {figure}: {fault}" for figure, its in found.items() for fault in its]
            for width, theme in [(1280, "light"), (390, "light"), (1280, "dark")] if shots else []:
                browser.resize(width, 2400 if width > 400 else 1600)
                browser.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
                browser.screenshot(shots / f"{name.replace('/', '-')[:-5]}-{width}-{theme}.png")
            browser.resize(390)
            folded, lost = browser.evaluate(FOLDS)  # from here on all is open
            own += [f"a link to {anchor} does not open the fold that it is in" for anchor in lost]
            some_fold = some_fold or [f"{name}#{anchor}" for anchor in folded[:1]]
            opened = browser.evaluate(PROBE)
            if opened["width"] > 0:
                own.append(f"scrolls sideways by {opened['width']} pixels at a width of 390")
            own += [f"opened at 390, {fault}" for fault in faults_of_page({**opened, "width": 0})]
            browser.resize(1440)
            browser.evaluate(axe + ";0")
            for theme in ["light", "dark"]:
                for rule, count, where, what in browser.evaluate(AXE_RUN.replace("THEME", theme)):
                    own.append(f"axe, {theme}: {rule}, {count} times, first {where}: {what}")
            print(f"{name:40} {page['height']:6,} px {bytes_ / 1e6:5.2f} MB  {len(own)} faults", flush=True)
            if overflow:
                for kind in ["formulas", "code", "tables"]:
                    for each in page[kind]:
                        print(f"    {kind}: {each}")
            faults += [f"{name}: {fault}" for fault in own]
            print(*(f"    {fault}" for fault in own), sep="\n", end="\n" * bool(own), flush=True)
        whole = [] if only else list(faults_of_links(pages, origin, html))
        print(f"{moving} interactive figures")
        if moving < FIGURES and not only:
            whole.append(f"{moving} interactive figures, expected at least {FIGURES}")
        for address in some_fold:
            browser.open("about:blank")  # a place of the same page would be gone to without loading it
            browser.open(f"{origin}/{address}")
            browser.evaluate(PROBE)
            place = "document.getElementById(location.hash.slice(1))"
            if not browser.evaluate(
                f"{place}.querySelector('details.rest')?.open ?? {place}.checkVisibility()"
            ):
                whole.append(f"{address}, opened, does not open the fold")
        if not only and not any("06_" in a for a in found_by_search(browser, origin, "posterior")):
            whole.append('search.html: "posterior" does not find chapter 6')
        some = next((n for n in names if "06_" in n), names[0])
        browser.open((html / some).resolve().as_uri())
        local = browser.evaluate(PROBE)
        lost = [*faults_of_loading(browser.events, "file://"), *faults_of_page(local)]
        whole += [f"{some} opened as a file: {fault}" for fault in lost]
        print(*whole, sep="\n", end="\n" * bool(whole))
        faults += whole
    finally:
        browser.close()
        server.shutdown()
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the built book in headless Chromium.")
    parser.add_argument("html", nargs="?", type=Path, default=Path("_build/html"))
    parser.add_argument("--overflow", action="store_true", help="print what is wider than its column")
    parser.add_argument("--shots", type=Path, help="a folder for screenshots: desktop, phone, dark")
    parser.add_argument("--only", default="", help="pages whose name contains this")
    options = parser.parse_args()
    try:
        program = chromium(options.html)
    except Missing as error:
        print(error)
        return 2
    if options.shots:
        options.shots.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the browser is closed
    faults = check(options.html, program, options.overflow, options.shots, options.only)
    print(f"{len(faults)} faults" if faults else "The pages are in order.")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
