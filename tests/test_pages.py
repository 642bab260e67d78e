"""What the rendered pages make of a notebook, and that the cover draws what was measured."""

import base64
import contextlib
import copy
import functools
import io
import json
import pkgutil
import re
import sys

import pytest
from conftest import ROOT, script
from PIL import Image

pytest.importorskip("myst_nb")
pytestmark = pytest.mark.slow  # its imports are, and the pages change seldom
REFERENCE = script("reference", "book/_ext")
COVER = script("cover", "book")
PDF = script("pdf", "book")
CHECK_PAGES = script("check_pages", "tests/browser")
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))


@functools.cache
def extension():
    """The Sphinx extension: it imports Sphinx and the notebooks' formats, which takes three seconds."""
    return script("pages", "book/_ext")


def code(source: str, *tags: str, outputs: tuple[dict, ...] = ()) -> dict:
    return {
        "cell_type": "code",
        "source": [source],
        "metadata": {"tags": list(tags)},
        "outputs": list(outputs),
    }


def checked(claim: str) -> dict:
    record = {"claim": claim, "what": "error", "sign": "≤", "limit": 1.0, "measured": 0.5}
    return {"output_type": "display_data", "data": {"text/plain": "✓"}, "metadata": {"i2sb_check": record}}


FIGURE = {"output_type": "display_data", "data": {"image/png": ""}, "metadata": {}}
TEXT = {"cell_type": "markdown", "source": ["text"], "metadata": {}}


def shown(*cells: dict) -> list[dict]:
    return extension().page({"cells": [code("bootstrap", "hide-cell"), *cells], "metadata": {}})["cells"]


def outputs(notebook: dict) -> list[dict]:
    return [o for c in notebook["cells"] for o in c.get("outputs", [])]


def words(text: str) -> str:
    return " ".join(text.split())


def listed(line: dict) -> list[dict]:
    """The records behind one line of checks."""
    return json.loads(line["data"]["text/markdown"].split("\n")[1])


def test_the_bootstrap_is_not_on_the_page():
    assert shown(TEXT) == [TEXT]


def test_set_up_and_helpers_stand_in_the_fold_of_the_next_figure():
    helper, last = code("def f(): 0", "hide-input"), code("f()", "hide-input", outputs=(FIGURE,))
    cells = [code("import a"), TEXT, helper, last]
    text, figure = shown(*cells)
    assert (text, figure["source"]) == (TEXT, "import a\n\n\ndef f(): 0\n\n\nf()")


def test_helpers_are_folded_before_visible_code_that_uses_them():
    helpers, visible = shown(code("def f(): 0", "hide-input"), code("f()", outputs=(FIGURE,)))
    assert helpers["source"] == "def f(): 0"
    assert helpers["metadata"]["tags"] == ["hide-input"]
    assert visible["source"] == ["f()"]


def test_set_up_that_no_fold_takes_is_not_lost():
    assert [c["source"] for c in shown(code("import a"), code("a.b", outputs=(FIGURE,)))] == [
        ["a.b"],
        "import a",
    ]


def test_checks_of_a_cell_are_one_output_behind_the_others():
    (cell,) = shown(code("check()", outputs=(checked("a"), FIGURE, checked("b"))))
    figure, line = cell["outputs"]
    assert figure == FIGURE
    assert [r["claim"] for r in listed(line)] == ["a", "b"]


def test_checks_of_a_figure_stand_below_it_and_not_in_a_figure_of_their_own():
    figure = code("check()", "hide-input", outputs=(FIGURE, checked("a")))
    figure["metadata"]["mystnb"] = {"figure": {"caption": "once"}}
    above, below = shown(figure | {"id": "c1"})
    assert (above["id"], below["id"]) == ("c1", "c1-checks")  # the same twice is corrected with a warning
    assert above["outputs"] == [FIGURE]
    assert "mystnb" not in below["metadata"]
    assert [r["claim"] for r in listed(*below["outputs"])] == ["a"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_no_code_and_no_check_is_lost_between_notebook_and_page(file):
    before = json.loads(file.read_text())
    after = extension().page(copy.deepcopy(before))
    pages = words("\n".join("".join(c["source"]) for c in after["cells"]).replace("```{rest}\n```", ""))
    assert all(words("".join(c["source"])) in pages for c in before["cells"][1:])
    made = [r for o in outputs(before) if (r := o.get("metadata", {}).get("i2sb_check"))]
    lines = [o for o in outputs(after) if o.get("metadata", {}).get("i2sb_checks")]
    assert [r for line in lines for r in listed(line)] == made


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_a_line_of_checks_names_the_figure_that_stands_before_or_after_it(file):
    cells, far = extension().page(json.loads(file.read_text()))["cells"], []
    names = [c["metadata"].get("mystnb", {}).get("figure", {}).get("name") for c in cells]
    for i, cell in enumerate(cells):
        before, after = [n for n in names[: i + 1] if n], [n for n in names[i + 1 :] if n]
        lines = [o for o in cell.get("outputs", []) if o.get("metadata", {}).get("i2sb_checks")]
        claims = {r["claim"] for line in lines for r in listed(line) if r["claim"].startswith("fig-")}
        far += claims - {*before[-1:], *after[:1]}
    assert far == []


def test_names_are_listed_in_words():
    assert extension().listed(["A"]) == "A"
    assert extension().listed(["A", "B", "C"]) == "A, B and C"
    assert extension().listed(list("ABCDE")) == "A, B and 3 more"


NUMBERS = {"27.50": True, "−0.3 ± 0.1": True, "≤ 1e-8": False, "10 or 20": False, "cunet": False}


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_in_tables_are_told_from_words(text):
    assert bool(extension().Numbers.NUMBER.fullmatch(text)) == NUMBERS[text]


def test_the_cover_draws_the_records_as_they_are():
    assert (COVER.COVER / "results.svg").read_text() == COVER.results_svg()
    assert f"{COVER.measured('celeba64-deblur', 10)['psnr']['value']:.2f} dB" in COVER.described()


def test_the_cover_has_the_tree_of_chapter_12():
    assert (COVER.COVER / "tree.html").read_text() == COVER.tree_html()
    assert COVER.tree_html().count('class="ask"') == 3


def test_the_cover_moves_along_walks_that_were_simulated():
    """As drawn, up to a pixel: another machine's random numbers are the same, its last digits need not be."""
    drawn = (COVER.COVER / "walk.html").read_text()
    lines = re.findall(r'<path d="M(\d+,[\d., -]+)"/>', drawn)
    path, x0, _ = COVER.walks()
    assert len(lines) == COVER.WALKS
    for line, walk in zip(lines, path.tolist(), strict=True):
        ys = [float(point.split(",")[1]) for point in line.split()]
        assert ys == pytest.approx([COVER.down(x) for x in walk], abs=1)
    ends = path[:, -1]
    assert ((ends[:, None] - x0[None, ::100]).abs().amin(1) < 0.2).all()  # each ends among the clean


def test_faults_of_a_page_are_seen():
    good = {"marked": 3, "math": 3, "width": 0, "ids": ["a"]}
    good |= {"raw": [], "mathErrors": [], "unreachable": []}
    faults = CHECK_PAGES.faults_of_page
    assert list(faults(good)) == []
    worse = {"math": 0, "raw": [r"\(x\)"], "width": 5, "unreachable": ["t"]}
    worse |= {"ids": ["a", "a"], "mathErrors": ["x"]}
    for key, value in worse.items():
        assert len(list(faults({**good, key: value}))) == 1, key


def test_pages_too_long_are_seen_and_a_list_of_exceptions_shrinks():
    faults, (known, *_) = CHECK_PAGES.faults_of_size, sorted(CHECK_PAGES.LONG) or ["x"]
    assert list(faults("y", 15_000, 1_500_000)) == []
    assert len(list(faults("y", 15_001, 1_500_001))) == 2
    if CHECK_PAGES.LONG:
        assert list(faults(known, 15_001, 0)) == []
        assert "take it out" in next(faults(known, 15_000, 0))


def test_requests_that_leave_the_site_are_seen():
    sent = [
        {"method": "Network.requestWillBeSent", "params": {"requestId": url, "request": {"url": url}}}
        for url in ("http://h/a.js", "https://cdn.x/a.js")
    ]
    assert list(CHECK_PAGES.faults_of_loading(sent, "http://h")) == ["leaves the site: https://cdn.x/a.js"]


def test_without_a_chromium_one_sentence_says_so(monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr(sys, "argv", ["check_pages.py"])
    assert CHECK_PAGES.main() == 2
    assert capsys.readouterr().out.startswith("No Chromium was found")


def test_without_a_chromium_or_the_pages_no_pdf_is_begun(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.delenv("CHROMIUM", raising=False)
    assert PDF.main(str(tmp_path)) == 2
    assert capsys.readouterr().out.startswith("No Chromium was found")
    monkeypatch.setenv("CHROMIUM", "chromium")
    assert PDF.main(str(tmp_path)) == 2
    assert capsys.readouterr().out.startswith(f"No book at {tmp_path}")


def article(html: str):
    return PDF.BeautifulSoup(f"<article>{html}</article>", "html.parser").article


def test_on_paper_a_place_is_that_of_its_chapter_and_links_stay_in_the_book():
    links = ["#a", "02_b.html#a", "02_b.html", "../genindex.html", "https://x.org/y"]
    text = article(
        '<h2 id="a"></h2><img src="../_images/p.png"/>' + "".join(f'<a href="{u}"></a>' for u in links)
    )
    done = PDF.moved(text, "book/01_a.html", {"book/01_a.html", "book/02_b.html"}, "html/")
    assert [t["id"] for t in done.select("h2")] == ["p-01_a-a"]
    assert done.img["src"] == "html/_images/p.png"
    there = [a.get("href") for a in done.select("a")]
    assert there == ["#p-01_a-a", "#p-02_b-a", "#p-02_b", None, "https://x.org/y"]


def test_on_paper_arguments_are_open_and_code_is_left_out_but_that_of_a_solution():
    code = '<details class="fold"><summary>Code</summary><div class="cell_input">x</div></details>'
    proof = '<details class="fold"><summary>Proof</summary>So.</details>'
    line = '<details class="checks"><summary>2 checks</summary>of what</details>'
    rows = code.replace("Code", "All rows").replace("</details>", "<table>z</table></details>")
    text = article(f'{code}{proof}<div class="solution">{code.replace("x", "y")}</div>{line}{rows}')
    PDF.opened(text)
    assert text.get_text() == "ProofSo.y2 checksAll rowsz"
    assert [d.has_attr("open") for d in text.select("details")] == [True]


def test_pages_of_a_pdf_are_counted_through_its_tree():
    pdf = b"""1 0 obj
<</Type /Catalog
/Pages 2 0 R
/Dests 9 0 R>>
endobj
2 0 obj
<</Kids [3 0 R
6 0 R]>>
endobj
3 0 obj
<</Kids [7 0 R 5 0 R]>>
endobj
5 0 obj
<<>>
endobj
6 0 obj
<<>>
endobj
7 0 obj
<<>>
endobj
9 0 obj
<</p-a [6 0 R /XYZ 0 1 0]
/p#2Db [5 0 R /XYZ 0 1 0]>>
endobj
"""
    assert PDF.places(pdf) == {"p-a": 3, "p-b": 2}


def test_the_versions_that_build_the_pages_are_within_the_ranges_that_are_stated():
    from packaging.requirements import Requirement

    locked = [Requirement(line) for line in (ROOT / "book" / "versions.txt").read_text().splitlines()[1:]]
    exact = {r.name: str(r.specifier).removeprefix("==") for r in locked}
    stated = re.findall(
        r'^    "((?:jupyter-book|sphinx)[^"]*)",$', (ROOT / "pyproject.toml").read_text(), re.M
    )
    assert len(stated) == 3
    for text in stated:
        wanted = Requirement(text)
        assert wanted.specifier.contains(exact[wanted.name]), text


def test_a_proof_that_is_folded_opens_and_others_stay():
    from docutils import nodes
    from sphinx_proof.nodes import proof_node

    for classes, body in ((["proof", "dropdown"], 2), (["proof"], 0)):
        page, node = type("Page", (), {"body": []})(), proof_node()
        node += nodes.admonition("", nodes.paragraph("", "Proof. By parts."), classes=classes)
        extension().open_proof(page, node)
        extension().close_proof(page, node)
        assert len(page.body) == body
        assert node[0]["classes"] == ["proof"]
        assert node.astext() == ("By parts." if body else "Proof. By parts.")


def test_an_item_is_folded_below_its_first_paragraph():
    item = "(a)=\n## 1. Title\n\n*In short: no,*\n*not so.*\n\nWhy.\n\n(b)=\n## 2. Other\n\nIn short."
    (cell,) = shown({"cell_type": "markdown", "source": [item], "metadata": {"tags": ["items"]}})
    before, between, after = cell["source"].split("```{rest}\n```\n")
    assert before.endswith("*not so.*\n\n")
    assert between.strip().startswith("Why.")
    assert between.strip().endswith("In short.")
    assert after == ""


def test_an_opaque_picture_loses_its_alpha_and_nothing_else():
    def picture(alpha: int) -> dict:
        image = Image.new("RGBA", (20, 10), (1, 2, 3, alpha))
        image.putpixel((0, 0), (200, 100, 50, alpha))
        image.save(file := io.BytesIO(), "png")
        return {"data": {"image/png": base64.b64encode(file.getvalue()).decode()}, "metadata": {}}

    def opened(output: dict) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"])))

    opaque, clear = picture(255), picture(100)
    assert extension().lighter(clear) == clear
    assert extension().lighter(FIGURE) == FIGURE
    light = opened(extension().lighter(opaque))
    assert light.mode == "RGB"
    assert light.tobytes() == opened(opaque).convert("RGB").tobytes()


def drawing(*photographs: int) -> Image.Image:
    """Lines on white, and a photograph at each place that is named."""
    image = Image.new("RGB", (320, 160), "white")
    for at in range(0, 320, 8):
        image.paste((0, 114, 178), (at, 0, at + 2, 160))
    for at in photographs:
        image.paste(Image.effect_noise((96, 96), 25).convert("RGB"), (at, 32))
    return image


def test_a_drawing_is_told_from_what_holds_a_photograph():
    def marked(image: Image.Image, html: str = "") -> dict:
        image.save(file := io.BytesIO(), "png")
        png = base64.b64encode(file.getvalue()).decode()
        data = {"image/png": png} | ({"text/html": html} if html else {})
        (cell,) = shown(code("plot()", "hide-input", outputs=({"data": data, "metadata": {}},)))
        return cell

    group = '<div role="group">'
    cell = marked(drawing(), group)
    assert cell["metadata"]["mystnb"]["image"]["classes"] == "drawn"
    assert cell["outputs"][0]["data"]["text/html"] == '<div class="drawn" role="group">'
    cell = marked(drawing(120), group)
    assert "mystnb" not in cell["metadata"]
    assert cell["outputs"][0]["data"]["text/html"] == group


def test_a_docstring_says_on_its_page_what_it_says_in_the_code():
    lines = [
        "The *x* of |a_b_|.",
        "",
        "x1: as `restore` has it. nfe, seed: whole.",
        "",
        "    a = b * c",
        "",
        ">>> f(1)",
    ]
    assert REFERENCE.plain(lines, {"x1", "nfe", "seed"}) == [
        r"The \*x\* of \|a\_b\_\|.", "", "**x1**: as ``restore`` has it. **nfe, seed**: whole.",
        "", "::", "", "    a = b * c", "", ">>> f(1)",
    ]  # fmt: skip


def test_settings_are_listed_with_their_comments():
    from i2sb_lib import TrainConfig

    found = {name: (default, comment) for name, default, comment in REFERENCE.fields(TrainConfig)}
    assert list(found) == list(TrainConfig.__dataclass_fields__)
    assert found["warmup"] == ("200", "steps of linear warm-up")
    assert all(comment for _, comment in found.values())


NAMED = {
    "load_pretrained()": "i2sb_lib.load_pretrained",
    "bridge.q_sample(t, x0)": "i2sb_lib.Bridge.q_sample",
    "MixturePair": "i2sb_lib.gaussian_mixtures.MixturePair",
    "sample": "",
    "x0": "",
    "nfe=10": "",
}


@pytest.mark.parametrize("text", NAMED)
def test_code_that_names_something_of_the_reference_is_linked(text):
    functions = [
        "load_pretrained",
        "sample",
        "Bridge.q_sample",
        "gaussian_mixtures.MixturePair",
        "Mixture.sample",
    ]
    assert REFERENCE.full_name(text, {f"i2sb_lib.{name}": None for name in functions}) == NAMED[text]


STATEMENTS = {
    label
    for file in NOTEBOOKS
    for cell in json.loads(file.read_text())["cells"]
    for label in re.findall(r"\{prf:\w+\}[^\n]*\n:label: (\S+)", "".join(cell["source"]))
}
ROWS = re.findall(
    r"^\| (.*`.*|the same.*) \| (.*prf:ref.*) \|$", (ROOT / "book" / "reference.md").read_text(), re.M
)


def named(name: str) -> object:
    """What a row calls by the name that the reference has it under."""
    for home in ("", ".operators", ".schrodinger", ".gaussian_mixtures"):
        with contextlib.suppress(AttributeError, ImportError):
            return pkgutil.resolve_name(f"i2sb_lib{home}.{name}")
    raise AssertionError(f"no {name} in the library")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].split(",")[0].strip("`"))
def test_a_function_and_its_statements_are_there(row):
    for code in re.findall(r"`([\w.]+)[^`]*`", row[0]):
        assert callable(named(code.removeprefix("i2sb_lib."))), code
    labels = re.findall(r"\{prf:ref\}`([\w-]+)`", row[1])
    assert labels
    assert set(labels) <= STATEMENTS


def test_as_many_functions_stand_beside_their_statements_as_are_announced():
    assert len(ROWS) == 19
    assert "Nineteen rows" in (ROOT / "book" / "reference.md").read_text()


def test_a_reader_can_reach_every_source_that_is_published():
    entries = re.split(r"^@", (ROOT / "book" / "references.bib").read_text(), flags=re.M)[1:]
    without = [
        e.split("{")[1].split(",")[0] for e in entries if not re.search(r"^\s*(doi|eprint|url)\s*=", e, re.M)
    ]
    assert without == ["zaytsev2024", "wang_slides"]  # the report and the slides, which are not


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_every_figure_is_referred_to(file):
    cells = json.loads(file.read_text())["cells"]
    text = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    names = {c["metadata"].get("mystnb", {}).get("figure", {}).get("name") for c in cells} - {None}
    assert {name for name in names if not re.search(rf"[`<]{re.escape(name)}[`>]", text)} == set()
