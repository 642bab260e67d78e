"""The reference: docstrings as they stand in the code become pages, and code in the text links to them.

A Sphinx extension. The library's docstrings are plain text: paragraphs in which `code` is quoted and
arguments are named with a colon, indented formulas, examples. `plain` makes of that what autodoc reads.
Classes of settings get a table of their fields with the comments beside them. Any `code` of a page that names
something of the reference is linked, and the statements of the book stand in the index.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode
from sphinx_proof.nodes import proof_node

# what the book calls an object, and its class
CALLED = {"schedule": "Schedule", "bridge": "Bridge", "blur": "operators.Separable", "model": "Pretrained"}
CALLED["system"] = "schrodinger.SchrodingerSystem"


def plain(lines: list[str], arguments: set[str]) -> list[str]:
    """A docstring as reStructuredText: nothing in it is markup but `code`, indented formulas and examples."""
    return "\n\n".join(block(part, arguments) for part in "\n".join(lines).strip("\n").split("\n\n")).split(
        "\n"
    )


def block(text: str, arguments: set[str]) -> str:
    """One paragraph, formula or example."""
    if text.startswith(">>>"):
        return text
    if all(line.startswith("    ") for line in text.split("\n")):
        return f"::\n\n{text}"
    parts = re.split(r"`([^`]+)`", text)
    parts[::2] = [re.sub(r"([\\*|_])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"``{part}``" for part in parts[1::2]]
    names = "|".join(re.escape(name.replace("_", r"\_")) for name in sorted(arguments, key=len, reverse=True))
    argument = rf"(?:^|(?<=[.:;]\s)|(?<=\s\s))((?:{names})(?:, (?:{names}))*):(?=\s)"
    text = re.sub(argument, r"**\1**:", "".join(parts), flags=re.M) if arguments else "".join(parts)
    if re.search(r"^\s", text, re.M):  # set line by line
        return "\n".join(f"| {line.strip()}" for line in text.split("\n"))
    return text


def fields(cls: type) -> list[tuple[str, str, str]]:
    """(name, default, comment) of each field of a dataclass, those of its parents first."""
    found: dict[str, tuple[str, str, str]] = {}
    for each in reversed([c for c in cls.__mro__ if dataclasses.is_dataclass(c)]):
        lines = textwrap.dedent(inspect.getsource(each)).split("\n")
        for node in ast.parse("\n".join(lines)).body[0].body:  # type: ignore[attr-defined]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                beside = lines[node.end_lineno - 1][node.end_col_offset :].partition("#")[2].strip()
                above = lines[node.lineno - 2].strip()
                comment = beside or (above[1:].strip() if above.startswith("#") else "")
                default = ast.unparse(node.value) if node.value else ""
                default = "{}" if default.startswith("field(") else default
                found[node.target.id] = node.target.id, default, comment
    return list(found.values())


def is_settings(thing: Any) -> bool:
    """A dataclass of so many fields that its signature would not be read."""
    return dataclasses.is_dataclass(thing) and isinstance(thing, type) and len(dataclasses.fields(thing)) > 8


def docstring(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """autodoc-process-docstring."""
    try:
        arguments = set(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        arguments = set()
    arguments |= set(getattr(thing, "__annotations__", {}))
    lines[:] = [*plain(lines, arguments), ""]
    if is_settings(thing):
        head = f'<details class="fold"><summary>Its {len(fields(thing))} fields</summary>'
        lines += [".. raw:: html", "", f"   {head}", ""]
        lines += [".. list-table::", "   :header-rows: 1", ""]
        for row in [("field", "default", "meaning"), *fields(thing)]:
            cells = [f"``{row[0]}``", f"``{row[1]}``" if row[1] else "–", block(row[2], set())]
            for start, cell in zip("*  ", row if row[0] == "field" else cells, strict=True):
                lines.append(f"   {start} - {cell}")
        lines += ["", ".. raw:: html", "", "   </details>", ""]


def signature(app: Sphinx, what: str, name: str, thing: Any, options: Any, sig: str, returns: str) -> Any:
    """autodoc-process-signature."""
    return ("", None) if is_settings(thing) else None


class Linked(SphinxPostTransform):
    """Code in the text that names something of the reference leads there."""

    default_priority = 7
    formats = ("html",)

    def run(self, **_: Any) -> None:
        known = self.env.domaindata["py"]["objects"]
        for node in list(self.document.findall(nodes.literal)):
            inside = (nodes.reference, nodes.title, addnodes.desc, addnodes.pending_xref)
            name = full_name(node.astext(), known)
            if not name or any(isinstance(parent, inside) for parent in parents(node)):
                continue
            there, label = known[name].docname, known[name].node_id
            link = make_refnode(self.app.builder, self.env.docname, there, label, node.deepcopy(), name)
            node.replace_self(link)


def parents(node: nodes.Node) -> list[nodes.Node]:
    found = []
    while node.parent is not None:
        found.append(node := node.parent)
    return found


def full_name(text: str, known: Any) -> str:
    """The object that a piece of code names, by its full name; "" for any other code."""
    path = re.fullmatch(r"([A-Za-z_][\w.]*)(\(.*\))?", text.strip(), re.S)
    if not path:
        return ""
    first, dot, rest = path[1].removeprefix("i2sb_lib.").partition(".")
    first = CALLED.get(first, first) if dot else first
    if not dot and not path[2] and first.islower() and "_" not in first:
        return ""  # a word, such as `sample` or `train`, that need not be the function
    name = f"i2sb_lib.{first}{dot}{rest}"
    found = [name] if name in known else [n for n in known if n.endswith(name.removeprefix("i2sb_lib"))]
    return found[0] if len(found) == 1 else ""


class Indexed(SphinxTransform):
    """A statement with a title stands in the index under its title."""

    default_priority = 500  # before the index is gathered

    def apply(self, **_: Any) -> None:
        for node in self.document.findall(proof_node):
            title = node.get("title", "").strip(" ()").replace("$", "")
            if title and (ids := node.get("ids")):
                entry = addnodes.index(entries=[("single", title[0].upper() + title[1:], ids[0], "", None)])
                node.parent.insert(node.parent.index(node), entry)


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", docstring)
    app.connect("autodoc-process-signature", signature)
    app.add_transform(Indexed)
    app.add_post_transform(Linked)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
