"""The whole book as one PDF, printed from its built pages by a headless Chromium: `make pdf`.

    python book/pdf.py [_build/html [_build/i2sb-book.pdf]]

The pages follow each other in the order of the side bar, behind a title and a table of contents. Code that
they fold away is left out, but for that of solutions; proofs, arguments and solutions are open. It is printed
twice: the first print says on which page each heading falls. Exits 2 without a Chromium or the pages.
"""

import posixpath
import re
import sys
from html import escape
from pathlib import Path
from urllib.parse import unquote, urldefrag

from bs4 import BeautifulSoup, Tag

from browser import Browser, Missing, chromium

ROOT = Path(__file__).parent.parent
RECURRING = {"Three sentences to keep", "Exercises"}  # in every chapter, so not in the table of contents
NO_NUMBER = "000"  # as wide as a page's number, until that is known


def soup(html: Path, page: str) -> Tag:
    return BeautifulSoup((html / page).read_text(), "html.parser")


def contents(root: Tag) -> list[tuple[str, str, str]]:
    """(caption of the part or "", page, title) of every chapter, from the side bar of the first page."""
    found, part = [], ""
    for entry in root.select("nav.bd-links p.caption, nav.bd-links li.toctree-l1 > a"):
        if entry.name == "p":
            part = entry.get_text(strip=True)
        elif not entry["href"].startswith("genindex"):
            found.append((part, entry["href"], entry.get_text(strip=True)))
            part = ""
    return found


def key(page: str, anchor: str = "") -> str:
    """The id that a place of a page has in the whole: chapters share the names of their sections."""
    return "-".join(filter(None, ["p", Path(page).stem, unquote(anchor)]))


def opened(article: Tag) -> None:
    """Nothing on paper can be opened: arguments are, and code is left out unless it is a solution.

    What a fold says of a table or a print that it held stays as the words above it.
    """
    for fold in article.select("details"):
        if "checks" in fold.get("class", []):
            fold.replace_with(checks := fold.summary)
            checks.name, checks["class"] = "p", "checks"
        elif (code := fold.select_one(".cell_input")) and not fold.find_parent(class_="solution"):
            code.decompose()
            title = fold.summary
            if fold.select_one("table, pre") and title.get_text() != "Code":
                title.name, title["class"] = "p", "told"
            else:
                title.decompose()
            fold.unwrap()
        elif code:
            fold.summary.decompose()
            fold.unwrap()
        else:
            fold["open"] = ""


def moved(article: Tag, page: str, pages: set[str], up: str) -> Tag:
    """An article with the ids and the links that it has in the whole. up: from there to the pages."""
    for tag in article.select("a.headerlink, script[src]"):
        tag.decompose()
    opened(article)
    for tag in article.select("[id]"):
        if not tag.find_parent(class_="text_html"):  # an interactive figure finds its parts by their ids
            tag["id"] = key(page, tag["id"])
    for tag in article.select("[src]"):
        if not tag["src"].startswith("data:"):
            tag["src"] = up + posixpath.normpath(posixpath.join(posixpath.dirname(page), tag["src"]))
    for link in article.select("a[href]"):
        address, anchor = urldefrag(link["href"])
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), address)) if address else page
        if target in pages:
            link["href"] = "#" + key(target, anchor)
        elif "://" not in address:  # what is no page: an index, a notebook
            del link["href"]
    article["id"], article["class"] = key(page), "bd-article chapter"
    return article


def title_page(root: Tag, version: str, address: str) -> str:
    heading = root.h1
    if sign := heading.select_one(".headerlink"):
        sign.decompose()
    return f"""<section class="title"><h1>{heading.get_text(strip=True)}</h1>
<figure class="walk">{root.select_one("figure.walk svg")}</figure>
<p>{heading.find_next("p").decode_contents()}</p>
<p class="small">Edition {escape(version)}. The pages with all their code, to run and to change:
<a href="{address}">{address}</a></p></section>"""


def table(chapters: list[tuple[str, Tag]], parts: dict[str, str], numbers: dict[str, int]) -> str:
    """The table of contents: parts, chapters and their sections, each with its page."""
    lines = []
    for page, article in chapters:
        lines += [f'<p class="part">{escape(parts[page])}</p>'] * bool(parts[page])
        for heading in article.select("h1, section > h2"):
            if heading.find(string=RECURRING, recursive=False):
                continue
            place, level = heading.find_parent("section")["id"], {"h1": "of-chapter"}.get(heading.name, "")
            name, number = heading.decode_contents(), numbers.get(place, NO_NUMBER)
            lines.append(f'<a class="{level}" href="#{place}"><span>{name}</span><b>{number}</b></a>')
    return f'<nav class="table-of-contents"><h1>Contents</h1>{"".join(lines)}</nav>'


def whole(html: Path, out: Path, numbers: dict[str, int]) -> str:
    """The book as one page, for `out`."""
    root = soup(html, "index.html")
    entries = contents(root)
    up = posixpath.relpath(html.resolve().as_posix(), out.parent.resolve().as_posix()) + "/"
    pages = {page for _, page, _ in entries}
    chapters = [
        (p, moved(soup(html, p).select_one("article.bd-article"), p, pages, up)) for _, p, _ in entries
    ]
    heads = "".join(
        f'@page {key(page)} {{ @top-left {{ content: "{title}" }} }}\n#{key(page)} {{ page: {key(page)} }}\n'
        for _, page, title in entries
    )
    first = soup(html, entries[0][1]).head
    styles = [f'<link rel="stylesheet" href="{up}_static/{name}">' for name in sheets(first)]
    config = next(s for s in first.select("script") if "MathJax" in s.get_text())
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    address = root.select_one("a.btn-source-repository-button")["href"]
    parts = {page: part for part, page, _ in entries}
    return f"""<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8">
<title>{root.title.get_text(strip=True)}</title>{"".join(styles)}<style>{heads}</style>{config}
<script defer src="{up}_static/mathjax/tex-chtml.js"></script></head><body>
{title_page(root, version, address)}{table(chapters, parts, numbers)}
{"".join(str(article) for _, article in chapters)}</body></html>"""


def sheets(head: Tag) -> list[str]:
    """The style sheets of a page, in their order, and the one for paper."""
    links = [urldefrag(link["href"])[0].split("?")[0] for link in head.select("link[rel=stylesheet]")]
    return [*(link.split("_static/")[1] for link in links), "print.css"]


def places(pdf: bytes) -> dict[str, int]:
    """The number of the page, from 1, on which each named place of a PDF of Chromium's is."""
    objects = dict(re.findall(rb"^(\d+) 0 obj\n(.*?)^endobj", pdf, re.M | re.S))

    def leaves(number: bytes) -> list[bytes]:
        kids = re.search(rb"/Kids\s*\[(.*?)\]", objects[number], re.S)
        return [p for k in re.findall(rb"(\d+) 0 R", kids[1]) for p in leaves(k)] if kids else [number]

    root = re.search(rb"/Type\s*/Catalog.*?/Pages (\d+) 0 R", pdf, re.S)
    order = {number: i for i, number in enumerate(leaves(root[1]), 1)}
    named = re.findall(rb"/([^\s/\[]+)\s*\[\s*(\d+) 0 R\s*/XYZ", pdf)
    return {re.sub(rb"#(..)", lambda h: bytes.fromhex(h[1].decode()), n).decode(): order[p] for n, p in named}


def make(html: Path, out: Path) -> int:
    """Write the PDF; its number of pages."""
    browser, source = Browser(chromium(html)), out.with_suffix(".html")
    try:
        numbers: dict[str, int] = {}
        for _ in range(2):
            source.write_text(whole(html, out, numbers))
            browser.open(source.resolve().as_uri())
            browser.evaluate("MathJax.startup.promise.then(() => document.fonts.ready).then(() => 0)")
            browser.pdf(out)
            numbers = places(out.read_bytes())
    finally:
        browser.close()
        source.unlink(missing_ok=True)
    return max(numbers.values())


def main(html: str = "_build/html", out: str = "_build/i2sb-book.pdf") -> int:
    try:
        number = make(Path(html), Path(out))
    except Missing as error:
        print(error)
        return 2
    print(f"The book in {number} pages: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
