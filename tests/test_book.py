"""Gates on the book: executed, quiet, described, every theorem bound to a check that was made.

A gate takes a notebook and yields what is wrong with it: nothing for a chapter, something for a
good notebook with a fault.
"""

import copy
import doctest
import importlib
import json
import re
import sys

import pytest
import torch
from conftest import ROOT, script
from test_project import texts as tracked_texts

import i2sb_lib
from i2sb_lib.images import to_float

BOOK = ROOT / "book"
EXECUTE = script("execute", "book")
sys.modules.setdefault("execute", EXECUTE)  # beside it, for
ADDRESS = script("address", "book")
NOTEBOOKS = {f.stem: json.loads(f.read_text()) for f in sorted(BOOK.glob("*.ipynb"))}

# The claims that the book must hold, with the largest tolerance that the tightest upper bound on
# each may have in a chapter (None: a band, a rate or a number).
LEDGER = {
    "fokker-planck": None, "schrodinger-pdes": None, "boundary-products": 1e-8, "gaussian-sb": 1e-6,
    "pot-agreement": 1e-8, "nelson": 1e-10, "thm-linear-scores": 1e-8, "cor-dirac": None,
    "prop-posterior": None, "lem-ddpm-recursion": 1e-12, "target": 1e-6,
    "algorithm-2": None, "coupling": None, "blur": 1e-6, "blur-invertible": None, "blur-quantised": None,
    "blur-off-by-one": None,
    "b-slides-target": 1e-12, "b-report-prediction": 1e-12, "b-report-conditioning": 1e-6,
    "b-nelson-assumption": None, "b-report-blur": None, "b-table1": None, "b-schedule-n": 1e-12,
    "b-double-count": 0, "b-benchmark-blur": 1e-12, "b-training-loop": None, "b-norm-squared": None,
    "b-posterior-drift": None, "b-sgm-start": None, "b-both-densities": 1e-6, "b-sampler-labels": None,
    "b-benchmark-spectrum": 1e-3, "b-integer-time": None, "b-subclass": None, "b-same-marginal": 0,
    "b-zero-time": 0, "b-driftless": 1e-12, "b-entropic": None,
    "b-known-operator": None, "p-values": None, "levels": None, "prop-known": 1e-12,
}  # fmt: skip


# and the same for the largest lower bound
LEAST = {"schrodinger-pdes": 1.9, "blur-invertible": 100, "b-report-blur": 100}


def code(nb):
    return [c for c in nb["cells"] if c["cell_type"] == "code" and "".join(c["source"]).strip()]


def prose(nb):
    return "\n\n".join("".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "markdown")


def outputs(nb):
    return [o for c in code(nb) for o in c["outputs"]]


def texts(nb):
    """What nbval compares: printed lines, and values without a richer form."""
    printed = ["".join(o["text"]) for o in outputs(nb) if o["output_type"] == "stream"]
    data = [
        o["data"]
        for o in outputs(nb)
        if not {"image/png", "text/html", "text/markdown"} & set(o.get("data", ["text/html"]))
    ]
    return "\n".join(printed + ["".join(d.get("text/plain", "")) for d in data])


def checks(nb):
    """The records that `check` left when the notebook ran."""
    return [r for o in outputs(nb) if (r := o.get("metadata", {}).get("i2sb_check"))]


def labels(nb):
    """(labels of statements, with None for one that has none; of directives, figures and sections)."""
    head = r"\{prf:(?:theorem|proposition|corollary|lemma)\}[^\n]*\n((?:\s*:[\w-]+:[^\n]*\n)*)"
    heads = re.findall(head, prose(nb))
    found = [re.search(r":label:\s*(\S+)", head) for head in heads]
    figures = {c["metadata"].get("mystnb", {}).get("figure", {}).get("name") for c in nb["cells"]}
    named = set(re.findall(r":label:\s*(\S+)|^\((sec-\S+)\)=$", prose(nb), re.M))
    return [m and m.group(1) for m in found], {name for pair in named for name in pair if name} | figures


def executed(nb):
    if (counts := [c.get("execution_count") for c in code(nb)]) != list(range(1, len(counts) + 1)):
        yield f"cells not run once each from top to bottom: {counts}"


def current(nb):
    if EXECUTE.is_stale(nb):
        yield "the code changed after it was executed: make execute"


def quiet(nb):
    if bad := [o for o in outputs(nb) if o["output_type"] == "error" or o.get("name") == "stderr"]:
        yield f"an error or warning is in the outputs: {str(bad)[:200]}"


def readable(nb):
    if found := re.findall(r".* at 0x[0-9a-f]+|<[^<>\n]* object\b", texts(nb)):
        yield f"raw repr: {found}"


def timeless(nb):
    times = r".*\d\s?(?:ns|[µu]s|ms|s|secs?|seconds?|min|minutes?|(?:it|img|images?)/s)\b"
    if found := re.findall(times, texts(nb)):
        yield f"a time is in a compared output: {found}"


def bootstrapped(nb):
    first, reference = nb["cells"][0], next(iter(NOTEBOOKS.values()), nb)["cells"][0]
    source = "".join(first["source"])
    if first["cell_type"] != "code" or source != "".join(reference["source"]):
        yield "the first cell is not the bootstrap that all notebooks share"
    for line in re.findall(r".*pip install.*", source):
        if "--constraint" not in line or re.search(r"\b(torch|torchvision|numpy)\b(?!-)", line):
            yield f"may replace torch or numpy: {line}"


def described(nb):
    names = []
    for cell in code(nb):
        if any("image/png" in o.get("data", {}) for o in cell["outputs"]):
            meta = cell["metadata"].get("mystnb", {})
            figure, alt = meta.get("figure", {}), meta.get("image", {}).get("alt")
            names.append(figure.get("name"))
            if not (figure.get("caption") and figure.get("name") and alt):
                yield f"a figure without caption, name or alt text: {meta}"
    if len(names) != len(set(names)):
        yield f"figure names are not unique: {names}"


def bound(nb):
    stated, known = labels(nb)
    if None in stated:
        yield "a statement has no label"
    if free := {label for label in stated if label} - {c["claim"] for c in checks(nb)}:
        yield f"statements without an executed check: {sorted(free)}"
    if unknown := {c["claim"] for c in checks(nb)} - known - set(LEDGER):
        yield f"checks of claims that nobody states: {sorted(unknown)}"


def tight(nb):
    for claim, most in LEDGER.items():
        limits = [c["limit"] for c in checks(nb) if c["claim"] == claim and c["sign"] == "≤"]
        if most is not None and limits and min(limits) > most:
            yield f"{claim}: the design asks for {most}, the chapter for {min(limits)}"
    for claim, least in LEAST.items():
        limits = [c["limit"] for c in checks(nb) if c["claim"] == claim and c["sign"] == "≥"]
        if limits and max(limits) < least:
            yield f"{claim}: the design asks for {least}, the chapter for {max(limits)}"
    for c in checks(nb):
        low, high = {"≤": (-1e99, c["limit"]), "≥": (c["limit"], 1e99)}.get(c["sign"], c["limit"])
        if not low <= c["measured"] <= high:
            yield f"a recorded check does not hold: {c}"


def cited(nb):
    known = set(re.findall(r"^@\w+\{([^,\s]+)", (BOOK / "references.bib").read_text(), re.M))
    keys = {k.strip() for ks in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", prose(nb)) for k in ks.split(",")}
    if missing := keys - known:
        yield f"not in references.bib: {sorted(missing)}"


def typeset(nb):
    """A line that begins with + or - inside a formula makes Markdown see a list, and no formula."""
    text = re.sub(r"\$\$.*?\$\$", "", prose(nb).replace(r"\$", ""), flags=re.S)
    parts = re.split(r"\n\s*\n|\n(?= *[-+*>#] )", re.sub(r"`[^`\n]*`", "", text))
    if broken := [part for part in parts if part.count("$") % 2]:
        yield f"formulas broken by a list marker: {broken[:3]}"


def punctuated(nb):
    "A displayed formula ends with a stop, a full one before a new sentence, or its sentence goes on."
    for formula, after in re.findall(r"\$\$\n(.+?)\$\$(?: \([\w-]+\))?\s*(.?)", prose(nb), re.S):
        text = re.sub(r"\s|\\end\{\w+\}", "", formula)
        if text[-1] not in (".:" if after.isupper() else ".,;:") and not after.islower():
            yield f"no stop after {text[-60:]}"


def portable(nb):
    if nb["metadata"].get("kernelspec", {}).get("name") != "python3":
        yield f"kernelspec {nb['metadata'].get('kernelspec')}"
    if any("execution" in c["metadata"] for c in nb["cells"]):
        yield "cells carry the times at which they ran"
    if (size := len(json.dumps(nb))) > 2_000_000:
        yield f"{size} bytes"


GATES = [
    executed,
    current,
    quiet,
    readable,
    timeless,
    bootstrapped,
    described,
    bound,
    tight,
    cited,
    typeset,
    punctuated,
    portable,
]


@pytest.mark.parametrize("gate", GATES, ids=lambda g: g.__name__)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_chapter(name, gate):
    assert list(gate(NOTEBOOKS[name])) == []


def test_every_claim_of_the_ledger_is_checked():
    assert set(LEDGER) <= {c["claim"] for nb in NOTEBOOKS.values() for c in checks(nb)}


def a_good_notebook():
    first = copy.deepcopy(next(iter(NOTEBOOKS.values()))["cells"][0])
    first |= {"execution_count": 1, "outputs": []}
    record = {"claim": "thm-a", "what": "x", "sign": "≤", "limit": 1e-3, "measured": 1e-5}
    shown = {"output_type": "display_data", "data": {"text/plain": "✓ thm-a: x ≤ 0.001"}}
    shown["metadata"] = {"i2sb_check": record}
    picture = {"output_type": "display_data", "metadata": {}, "data": {"image/png": "", "text/plain": "<F>"}}
    figure = {"mystnb": {"figure": {"caption": "c", "name": "fig-a"}, "image": {"alt": "a"}}}
    statement = "# T\n\n```{prf:theorem} Name\n:label: thm-a\n:nonumber:\n$x$\n```\n{cite:t}`liu2023i2sb`"
    ran = {"cell_type": "code", "source": "x"}
    text = {"cell_type": "markdown", "metadata": {}, "source": statement}
    check = ran | {"metadata": {}, "execution_count": 2, "outputs": [shown]}
    plot = ran | {"metadata": figure, "execution_count": 3, "outputs": [picture]}
    nb = {"cells": [first, text, check, plot], "metadata": {"kernelspec": {"name": "python3"}}}
    nb["metadata"]["i2sb"] = {"code": EXECUTE.code_hash(nb)}
    return nb


def said(text):
    return lambda c: c[2]["outputs"].append({"output_type": "stream", "name": "stdout", "text": text})


FAULTS = [
    (current, lambda c: c[2].update(source="x = 2")),
    (executed, lambda c: c[3].update(execution_count=None)),
    (executed, lambda c: c[3].update(execution_count=5)),
    (quiet, lambda c: said("a warning")(c) or c[2]["outputs"][-1].update(name="stderr")),
    (readable, said("<generator object f>")),
    (readable, lambda c: c[2]["outputs"][0]["data"].update({"text/plain": "<Net at 0x7f00>"})),
    (timeless, said("took 3.1 ms")),
    (timeless, said("10/10 [00:01, 9.9it/s]")),
    (bootstrapped, lambda c: c[0].update(source="".join(c[0]["source"]) + "\n")),
    (bootstrapped, lambda c: c[0].update(source="%pip install torch")),
    (described, lambda c: c[3]["metadata"]["mystnb"].pop("image")),
    (described, lambda c: c.append(copy.deepcopy(c[3]))),
    (bound, lambda c: c[1].update(source=c[1]["source"].replace(":label: thm-a\n", ""))),
    (bound, lambda c: c[1].update(source=c[1]["source"] + "\n:::{prf:lemma}\n:label: lem-b\n:::")),
    (bound, lambda c: c[2]["outputs"].clear()),
    (bound, lambda c: c[2]["outputs"][0]["metadata"]["i2sb_check"].update(claim="thm-z")),
    (tight, lambda c: c[2]["outputs"][0]["metadata"]["i2sb_check"].update(claim="nelson")),
    (tight, lambda c: c[2]["outputs"][0]["metadata"]["i2sb_check"].update(measured=0.1)),
    (
        tight,
        lambda c: c[2]["outputs"][0]["metadata"]["i2sb_check"].update(
            claim="schrodinger-pdes", sign="≥", limit=1.5, measured=2
        ),
    ),
    (cited, lambda c: c[1].update(source=c[1]["source"] + "{cite:p}`liu2023i2sb, nobody1900`")),
    (typeset, lambda c: c[1].update(source=c[1]["source"] + "\n$a\n+ b$")),
    (punctuated, lambda c: c[1].update(source=c[1]["source"] + "\n\n$$\na=b\n$$\n\nSo it is.")),
    (punctuated, lambda c: c[1].update(source=c[1]["source"] + "\n\n$$\na=b,\n$$ (eq)\n\nSo it is.")),
    (portable, lambda c: c[3]["metadata"].update(execution={"iopub.status.busy": "now"})),
]


@pytest.mark.parametrize(("gate", "fault"), FAULTS, ids=[g.__name__ for g, _ in FAULTS])
def test_the_gate_notices(gate, fault):
    nb = a_good_notebook()
    assert [problem for g in GATES for problem in g(nb)] == []
    fault(nb["cells"])
    assert list(gate(nb)) != []


def test_pages_are_listed_their_citations_exist_and_figure_names_are_unique():
    listed = re.findall(r"^\s*(?:- file|root):\s*(\S+)", (ROOT / "_toc.yml").read_text(), re.M)
    files = {"index", "genindex"} | {
        f"book/{f.stem}" for f in BOOK.iterdir() if f.suffix in (".ipynb", ".md")
    }
    assert len(listed) == len(set(listed))
    assert {name.removesuffix(".ipynb").removesuffix(".md") for name in listed} == files
    metas = [c["metadata"].get("mystnb", {}) for nb in NOTEBOOKS.values() for c in nb["cells"]]
    names = [m["figure"]["name"] for m in metas if "name" in m.get("figure", {})]
    assert len(names) == len(set(names))
    pages = [{"cell_type": "markdown", "source": f.read_text()} for f in BOOK.glob("*.md")]
    assert list(cited({"cells": pages})) == []


def test_a_work_stands_once_in_the_bibliography():
    entries = re.split(r"^@", (BOOK / "references.bib").read_text(), flags=re.M)[1:]
    fields = [re.findall(r"^\s*(?:author|title)\s*=\s*(.*)$", e, re.M) for e in entries]
    works = {re.sub(r"\W", "", "".join(found)).lower() for found in fields}
    assert len({e.split(",")[0] for e in entries}) == len(works) == len(entries) > 40


def test_the_address_is_the_same_wherever_it_stands():
    url = ADDRESS.address()
    for name in ADDRESS.TEXTS:
        assert ADDRESS.slug(url) in (ROOT / name).read_text(), name
    for name, nb in NOTEBOOKS.items():
        assert "".join(nb["cells"][0]["source"]) == ADDRESS.bootstrap(url), name
    others = {f: text for f, text in tracked_texts().items() if f not in ADDRESS.TEXTS and ".ipynb" not in f}
    assert [f for f, text in others.items() if ADDRESS.slug(url) in text] == []


def test_the_address_moves_everywhere_and_back(tmp_path):
    (tmp_path / "book").mkdir()
    files = [*ADDRESS.TEXTS, "book/01_restoration_as_a_bridge.ipynb", "book/12_results.ipynb"]
    for name in files:
        (tmp_path / name).write_text((ROOT / name).read_text())
    home, away = ADDRESS.address(), "https://github.com/a-b/c.d"
    assert ADDRESS.move(away, tmp_path) == files
    for name in files:
        assert ADDRESS.slug(home) not in (tmp_path / name).read_text()
    assert list(current(json.loads((tmp_path / files[-1]).read_text()))) == []
    assert ADDRESS.move(away, tmp_path) == []
    ADDRESS.move(home, tmp_path)
    assert all((tmp_path / name).read_text() == (ROOT / name).read_text() for name in files)


@pytest.mark.parametrize("url", ["i2sb/i2sb", "http://github.com/a/b", "https://github.com/a/b.git"])
def test_an_address_of_another_form_is_refused(url, tmp_path):
    with pytest.raises(ValueError, match="expected an address"):
        ADDRESS.slug(url)


def test_every_public_name_is_in_the_reference():
    page = (BOOK / "reference.md").read_text()
    named = set(re.findall(r"^\.\. auto\w+:: (?:i2sb_lib\.(?=\w+$))?([\w.]+)$", page, re.M))
    assert set(i2sb_lib.__all__) <= named


def test_the_adapter_of_chapter_14_serves_deepinv():
    deepinv = pytest.importorskip("deepinv")
    blocks = re.findall(r"```python\n(.*?)```", prose(NOTEBOOKS["14_other_degradations"]), re.S)
    (block,) = (b for b in blocks if "deepinv" in b)
    x = (to_float(i2sb_lib.load_images("embedded", "test")[:4]) + 1) / 2
    scope = {"i2sb_lib": i2sb_lib, "x": x}
    exec(block, scope)
    blur = i2sb_lib.create_degradation("blur-gauss", quantise=True)
    torch.testing.assert_close(2 * scope["y"] - 1, blur(2 * x - 1))
    decibels = deepinv.metric.PSNR()
    assert (decibels(scope["x_hat"], x) > decibels(scope["y"], x) + 5).all()


WITH_EXAMPLES = [f for f in sorted((ROOT / "i2sb_lib").glob("*.py")) if ">>> " in f.read_text()]


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=lambda f: f.stem)
def test_examples_in_docstrings_run(file):
    module = importlib.import_module(f"i2sb_lib.{file.stem}".removesuffix(".__init__"))
    given = {"i2sb_lib": i2sb_lib, "x1": torch.zeros(1, 3, 16, 16)}
    found = doctest.testmod(module, extraglobs=given)
    assert found.attempted > 0
    assert found.failed == 0
