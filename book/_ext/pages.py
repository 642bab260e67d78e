"""What the pages show of a notebook: a Sphinx extension. The notebooks themselves stay as they are.

Before a notebook is parsed, `page` drops the Colab bootstrap, moves what only sets up into the next folded
cell, turns the checks of each cell into one line that opens, and folds the sections of cells tagged `items`
below their first paragraphs. Then: numbers in tables marked, previews for links, and no Thebe, which the book
does not use and whose script is otherwise on every page, twice.
"""

import ast
import json
import re
import zlib
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from myst_nb.sphinx_ import HideCodeCellNode
from pictures import lighter, mark_drawing
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx_proof.nodes import proof_node, visit_proof_node

FOLDED = {"hide-input", "hide-cell"}
LEDGER = "book/appendix_c_ledger"
ITEM = re.compile(r"^## .*\n\n(?:.+(?:\n|$))+", re.M)  # a heading and the paragraph below it


def page(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook as its page shows it: no bootstrap, one fold a figure, one line of checks a cell."""
    cells, waiting = [], []  # waiting: set-up and helpers that the next folded cell takes in
    for cell in notebook["cells"][1:]:
        if cell["cell_type"] == "code":
            if not cell["outputs"] and (is_folded(cell) or is_setup(cell)):
                waiting.append(cell)
                continue
            if is_folded(cell):
                cell["source"] = "\n\n\n".join(source(c) for c in [*waiting, cell])
                waiting = []
            else:
                if not all(map(is_setup, waiting)):  # its helpers come before it
                    cells, waiting = [*cells, fold(waiting)], []
            cell["outputs"] = one_line([lighter(output) for output in cell["outputs"]])
            mark_drawing(cell)
            if "hide-cell" in cell["metadata"].get("tags", []) and cell["outputs"] == checks_of(cell):
                cell["metadata"]["tags"] = ["hide-input"]
            elif "figure" in cell["metadata"].get("mystnb", {}) and (line := checks_of(cell)):
                cell["outputs"].remove(*line)  # each output of its cell would get the caption
                cells.append(cell)
                cell = {**cell, "id": f"{cell['id']}-checks", "source": "", "outputs": line, "metadata": {}}
        elif "items" in cell["metadata"].get("tags", []):
            cell["source"] = ITEM.sub(lambda head: head[0].rstrip() + "\n\n```{rest}\n```\n", source(cell))
        cells.append(cell)
    return {**notebook, "cells": cells + ([fold(waiting)] if waiting else [])}


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def is_folded(cell: dict[str, Any]) -> bool:
    return bool(FOLDED & set(cell["metadata"].get("tags", [])))


def is_setup(cell: dict[str, Any]) -> bool:
    """Whether a cell imports: what else such a cell holds is preparation too."""
    try:
        return any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(source(cell)).body)
    except SyntaxError:  # a magic
        return False


def fold(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """One folded cell with the code of several."""
    return {**cells[-1], "source": "\n\n\n".join(map(source, cells)), "metadata": {"tags": ["hide-input"]}}


def one_line(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A cell's outputs with those of `check` gathered into one, behind the others."""
    records = [r for o in outputs if (r := o.get("metadata", {}).get("i2sb_check"))]
    others = [o for o in outputs if not o.get("metadata", {}).get("i2sb_check")]
    text = "```{checks}\n" + json.dumps(records) + "\n```"
    line = {"output_type": "display_data", "data": {"text/markdown": text}, "metadata": {"i2sb_checks": True}}
    return [*others, line] if records else others


def checks_of(cell: dict[str, Any]) -> list[dict[str, Any]]:
    return [o for o in cell["outputs"] if o.get("metadata", {}).get("i2sb_checks")]


class Checks(nodes.General, nodes.Element):
    """The records that the checks of one cell left."""


class ChecksDirective(Directive):
    has_content = True

    def run(self) -> list[nodes.Node]:
        return [Checks(records=json.loads("\n".join(self.content)))]


class Rest(nodes.General, nodes.Element):
    """From here to its end a section is folded."""


class RestDirective(Directive):
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        return [Rest(title="".join(self.arguments) or "The argument")]


class Folds(SphinxPostTransform):
    """The rest of a section, behind a line that says how many checks are in it."""

    default_priority = 4

    def run(self, **_: Any) -> None:
        for node in list(self.document.findall(Rest)):
            section = node.parent
            held = sum(len(checks["records"]) for checks in section.findall(Checks))
            told = f', <span aria-hidden="true">✓</span> {counted(held)}' if held else ""
            summary = f'<details class="fold rest"><summary>{escape(node["title"])}{told}</summary>'
            node.replace_self(nodes.raw("", summary, format="html"))
            section.append(nodes.raw("", "</details>", format="html"))


class Numbers(SphinxPostTransform):
    """Cells of a table that hold a number, and the heads above them, are marked, for the style to align."""

    default_priority = 6
    formats = ("html",)
    NUMBER = re.compile(r"[≤≥<>≈±+−-]?\s*\d[\d.,]*\s*(%|dB|s|MB)?(\s*[±\[(–].*)?")

    def run(self, **_: Any) -> None:
        for table in self.document.findall(nodes.table):
            rows = [list(row.findall(nodes.entry)) for row in table.findall(nodes.row)]
            numeric = {(i, j) for i, r in enumerate(rows) for j, e in enumerate(r) if self.is_number(e)}
            heads = {(0, j) for _, j in numeric} & {(0, j) for j in range(len(rows[0]))}
            for i, j in numeric | heads:
                rows[i][j]["classes"].append("number")

    def is_number(self, entry: nodes.entry) -> bool:
        return bool(self.NUMBER.fullmatch(entry.astext().strip()))


class ChecksLine(SphinxPostTransform):
    """✓ 6 checks of Theorem 11.2: opens to say what was measured against which bound."""

    default_priority = 5

    def run(self, **_: Any) -> None:
        for node in list(self.document.findall(Checks)):
            records = node["records"]
            names = {r["claim"]: self.name(r["claim"]) for r in records}
            known = list(dict.fromkeys(name for name, _ in names.values() if name))
            of = f" of {listed(known)}" if known else ""
            lines = [(names[r["claim"]], said(r)) for r in records]
            if self.app.builder.format != "html":
                node.replace_self(nodes.paragraph("", f"✓ {counted(len(records))}{of}"))
                continue
            items = "".join(f"<li>{linked(*name)}{escape(text)}</li>" for name, text in lines)
            ledger = self.app.builder.get_relative_uri(self.env.docname, LEDGER)
            body = f'<ul>{items}</ul><p><a href="{ledger}">Ledger of claims</a></p>'
            head = f'<summary><span aria-hidden="true">✓</span> {counted(len(records))}{escape(of)}</summary>'
            html = f'<details class="checks">{head}{body}</details>'
            node.replace_self(nodes.raw("", html, format="html"))

    def name(self, claim: str) -> tuple[str, str]:
        """("Theorem 11.2", its address), or two empty strings for a claim that is no numbered statement."""
        env, builder = self.env, self.app.builder
        if statement := getattr(env, "proof_list", {}).get(claim):
            place, label = statement["docname"], claim
            number = env.toc_fignumbers.get(place, {}).get(statement["countertype"], {}).get(claim)
            kind = statement["realtype"].title()
        elif claim in env.domaindata["std"]["anonlabels"]:
            place, label = env.domaindata["std"]["anonlabels"][claim]
            number, kind = env.toc_fignumbers.get(place, {}).get("figure", {}).get(label), "Figure"
        else:
            return "", ""
        address = builder.get_relative_uri(env.docname, place) + "#" + label
        return (f"{kind} {'.'.join(map(str, number))}", address) if number else ("", "")


def counted(number: int) -> str:
    return f"{number} check{'s' * (number > 1)}"


def listed(names: list[str]) -> str:
    """At most three names, and how many more there are."""
    shown = names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if shown[1:] else shown)


def said(record: dict[str, Any]) -> str:
    bound = record["limit"]
    limit = f"[{bound[0]:g}, {bound[1]:g}]" if isinstance(bound, list) else f"{bound:g}"
    what = record["what"] or record["claim"]
    return f"{what} {record['sign']} {limit} (measured {record['measured']:.3g})"


def linked(name: str, address: str) -> str:
    return f'<a href="{escape(address)}">{escape(name)}</a>: ' if name else ""


def open_fold(translator: Any, node: HideCodeCellNode) -> None:
    said = node["prompt_show"]  # a cell's own title, if it has one
    title = "Code" if said.startswith("Show code cell") else escape(said)
    translator.body.append(f'<details class="fold"><summary>{title}</summary>\n')


def close_fold(translator: Any, node: HideCodeCellNode) -> None:
    translator.body.append("</details>\n")


def open_proof(translator: Any, node: proof_node) -> None:
    """A proof of class dropdown is a fold: as an admonition without a title it stops the theme's script."""
    if "dropdown" in node[0]["classes"]:
        node["folded"] = True
        node[0]["classes"].remove("dropdown")
        first = next(iter(node.findall(nodes.Text)))
        first.parent.replace(first, nodes.Text(first.removeprefix("Proof. ")))
        translator.body.append('<details class="fold"><summary>Proof</summary>\n')


def close_proof(translator: Any, node: proof_node) -> None:
    if node.get("folded"):
        translator.body.append("</details>\n")


def read(app: Sphinx, docname: str, content: list[str]) -> None:
    """Sphinx's source-read: a notebook becomes its page."""
    if app.env.doc2path(docname).endswith(".ipynb"):
        content[0] = json.dumps(page(json.loads(content[0])))


def summary(doctree: nodes.document) -> str:
    """The first paragraph of some length, formulas as plain letters, cut at a word."""
    texts = (re.sub(r"\\(\w+)|[{}$^]", r"\1", p.astext()) for p in doctree.findall(nodes.paragraph))
    text = re.sub(r"\s+", " ", next((t for t in texts if len(t) > 40), ""))
    return text if len(text) <= 200 else text[:200].rsplit(" ", 1)[0] + " …"


def finish(app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: nodes.document) -> None:
    """Sphinx's html-page-context: a preview for links; each id once, no empty heads of columns."""
    context["default_mode"] = "auto"
    if doctree is None:
        return
    body = re.sub(r' id="(proof|exercise|solution)(-content)?"', "", context["body"])
    body = body.replace(
        '<div role="list" class="citation-list">', '<div class="citation-list">'
    )  # of no items
    context["body"] = re.sub(r'<th class="head(?: number)?"><p></p></th>', "<td></td>", body)
    *_, owner, book = app.config.html_theme_options["repository_url"].split("/")
    base = app.config.html_baseurl.rstrip("/") or f"https://{owner}.github.io/{book}"
    title = re.sub("<[^>]*>", "", context["title"]) if name != app.config.root_doc else app.config.html_title
    tags = {
        "og:type": "article",
        "og:title": title,
        "og:site_name": app.config.html_title,
        "og:description": summary(doctree),
        "og:url": f"{base}/{name}.html",
        "og:image": f"{base}/_static/cover/preview.jpg",
        "og:image:alt": "The walks of a bridge from blurred to clean, and a face that was restored",
    }
    lines = [f'<meta property="{key}" content="{escape(value)}" />' for key, value in tags.items()]
    lines.append('<meta name="twitter:card" content="summary_large_image" />')
    lines.append(f'<meta name="description" content="{escape(tags["og:description"])}" />')
    context["metatags"] = context.get("metatags", "") + "\n" + "\n".join(lines)


def without_thebe(app: Sphinx) -> None:
    """Take back what sphinx_thebe, which Jupyter Book always loads, has asked for."""
    for listeners in app.events.listeners.values():
        listeners[:] = [each for each in listeners if each.handler.__module__ != "sphinx_thebe"]
    app.registry.css_files[:] = [css for css in app.registry.css_files if css[0] != "sphinx-thebe.css"]


def setup(app: Sphinx) -> dict[str, Any]:
    without_thebe(app)
    app.add_directive("checks", ChecksDirective)
    app.add_directive("rest", RestDirective)
    app.add_node(Checks)
    app.add_node(Rest)
    app.add_node(HideCodeCellNode, override=True, html=(open_fold, close_fold))
    latex = (visit_proof_node, visit_proof_node)  # both do nothing
    app.add_node(proof_node, override=True, html=(open_proof, close_proof), latex=latex)
    app.add_post_transform(Folds)
    app.add_post_transform(ChecksLine)
    app.add_post_transform(Numbers)
    app.connect("source-read", read)
    app.connect("html-page-context", finish)
    # another version of these files makes every page anew
    mine = zlib.crc32(b"".join(f.read_bytes() for f in sorted(Path(__file__).parent.glob("*.py"))))
    return {"version": "1", "env_version": mine, "parallel_read_safe": True, "parallel_write_safe": True}
