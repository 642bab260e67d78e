"""The house rules: one list of requirements, small modules, imports one way, traceable results."""

import ast
import functools
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from i2sb_lib.config import config_hash

LIBRARY = sorted((ROOT / "i2sb_lib").glob("*.py"))

# What each module may import from the library. Data flows one way, and a module that is new must
# say here what it needs, no more: `cli` is imported by its entry point alone, `plotting` by nobody.
MAY_IMPORT = {
    "schedule": "",
    "checks": "",
    "files": "",
    "devices": "",
    "progress": "",
    "networks": "",
    "images": "faults files",
    "bridge": "schedule",
    "samplers": "bridge",
    "tiles": "",
    "operators": "devices faults images",
    "blurs": "operators",
    "degradations": "blurs images operators",
    "pixels": "",
    "data": "faults images pixels progress sources",
    "sources": "faults files folders images",
    "plotting": "faults images",
    "schrodinger": "schedule",
    "gaussian_mixtures": "bridge samplers",
    "wiener": "blurs operators",
    "denoiser": "schedule bridge networks degradations devices operators wiener",
    "config": "degradations denoiser",
    "batches": "bridge config degradations denoiser images",
    "pairs": "data faults files images sources",
    "inputs": "batches checkpoints config data degradations denoiser faults pairs wiener",
    "estimation": "blurs images",
    "restoration": "blurs config denoiser devices estimation faults images operators progress "
    "samplers tiles",
    "checkpoints": "config denoiser devices faults files restoration",
    "evaluation": "data faults images",
    "faults": "",
    "processes": "devices faults",
    "states": "config faults",
    "training": "batches checkpoints config data denoiser devices faults files images inputs processes "
    "progress samplers states",
    "baselines": "devices images operators",
    "console": "faults",
    "folders": "console faults files images",
    "cli": "checkpoints config console data degradations devices evaluation faults files folders images "
    "pairs samplers",
    "__main__": "cli",
    "__init__": "bridge checkpoints config data degradations denoiser estimation evaluation images networks "
    "operators pairs samplers schedule training",
}  # fmt: skip

CORE = {"torch", "numpy", "PIL", "safetensors", "tqdm", "huggingface_hub", "tyro"}


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of what a piece of code imports; `from i2sb_lib import x` is i2sb_lib.x."""
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            inside = node.module == "i2sb_lib"
            names |= {f"i2sb_lib.{a.name}" for a in node.names} if inside else {node.module or "."}
    return names


def siblings(source: str) -> set[str]:
    return {name.split(".")[1] for name in imports(ast.parse(source)) if name.startswith("i2sb_lib.")}


@pytest.mark.parametrize("file", LIBRARY, ids=lambda f: f.stem)
def test_modules_import_exactly_what_the_design_allows(file):
    assert file.stem in MAY_IMPORT, "a new module: say in MAY_IMPORT what it may import"
    assert siblings(file.read_text()) == set(MAY_IMPORT[file.stem].split())


def test_the_import_rules_see_every_form_of_import():
    forms = "import i2sb_lib.cli\nfrom i2sb_lib import data\ndef f():\n  from i2sb_lib.images import psnr"
    assert siblings(forms) == {"cli", "data", "images"}


@pytest.mark.parametrize("file", LIBRARY, ids=lambda f: f.stem)
def test_extras_are_imported_only_where_they_are_used(file):
    """At the top of a module stands only what `pip install` without extras brings."""
    top = [n for n in ast.parse(file.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)]
    roots = {name.split(".")[0] for name in imports(ast.Module(top, []))}
    assert roots <= {*CORE, "i2sb_lib"} | set(sys.stdlib_module_names)


def code_lines(source: str) -> int:
    """Lines that hold code: blank lines, comments and docstrings, which are the reference, are free."""
    held = ast.Module | ast.ClassDef | ast.FunctionDef
    doc = [n.body[0] for n in ast.walk(ast.parse(source)) if isinstance(n, held) and ast.get_docstring(n)]
    free = {line for node in doc for line in range(node.lineno, node.end_lineno + 1)}
    lines = [line.strip() for n, line in enumerate(source.splitlines(), 1) if n not in free]
    return sum(bool(line) and not line.startswith("#") for line in lines)


def test_the_library_is_thin():
    assert max(len(f.read_text().splitlines()) for f in LIBRARY) <= 300
    assert sum(code_lines(f.read_text()) for f in LIBRARY) <= 4360
    assert code_lines('"""Doc\nstring."""\n\n# note\ndef f():\n    """Doc."""\n    return 1  # x\n') == 2


def requirements() -> tuple[set[str], set[str]]:
    """(what pyproject.toml requires, extras included; what environment.yml installs)."""
    text = (ROOT / "pyproject.toml").read_text()  # tomllib is newer than the oldest Python supported
    base, extras = text.split("\ndependencies")[1], text.split("[project.optional-dependencies]")[1]
    lists = re.findall(r"= (\[.*?\])\n", base.split("\n[")[0] + extras.split("\n[")[0] + "\n", re.S)
    content = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = (part["pip"] for part in content if isinstance(part, dict))
    python = re.search(r'requires-python = "(.*)"', text)
    assert {part for part in content if isinstance(part, str)} == {"pip", f"python{python.group(1)}"}
    wanted = {r for each in lists for r in ast.literal_eval(each) if not r.startswith("i2sb-lib[")}
    return wanted, {line for line in pip if "editable" not in line}


def test_environment_and_pyproject_agree():
    wanted, installed = requirements()
    assert len(wanted) > 25
    assert wanted == installed


def tracked() -> list[Path]:
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / n for n in names if (ROOT / n).is_file()]


def test_no_file_is_too_large():
    assert {f.name for f in tracked() if f.stat().st_size > 45_500_000} == set()
    weights = sum(f.stat().st_size for f in (ROOT / "data" / "checkpoints").rglob("*") if f.is_file())
    assert weights <= 75_000_000
    others = {f.name for f in tracked() if f.suffix != ".safetensors" and f.stat().st_size > 20_000_000}
    assert others == set()


FORBIDDEN = {
    r'(?<!scope=")\b[Ss]essions?\b': "",
    r"(?i)(?<!Jean-)\bclau" + "de|chat" + "gpt|copi" + "lot": "",
    "/work" + "/": "",
    r"\.\./" + "shared": ".ci/run Makefile tests/conftest.py",
    r"pypi\.o" + r"rg|pythonho" + "sted|index" + "-url": "",
}


@functools.cache
def texts() -> dict[str, str]:
    suffixes = {"", ".py", ".md", ".ipynb", ".toml", ".yml", ".cff", ".bib", ".json", ".css", ".cfg", ".txt"}
    files = [f for f in tracked() if f.suffix in suffixes]
    picture = re.compile(r'"image/(png|jpeg|gif)": "[^"]*"')  # as long as all words together, and no word
    return {str(f.relative_to(ROOT)): picture.sub("", f.read_text()) for f in files}


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_no_file_speaks_of_where_it_was_made(pattern):
    found = {name for name, text in texts().items() if re.search(pattern, text)}
    assert found <= {*FORBIDDEN[pattern].split(), "tests/test_project.py"}


def records(content) -> list[dict]:
    """Every part of a JSON value that states the hash of a configuration."""
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list) else []
    own = [content] if isinstance(content, dict) and "config_hash" in content else []
    return own + [r for part in parts for r in records(part)]


def hashes_match(content) -> bool:
    return all(r["config_hash"] == config_hash(r.get("training", r.get("config"))) for r in records(content))


def test_every_record_states_the_hash_of_its_own_configuration():
    for file in sorted((ROOT / "data").rglob("*.json")):
        content = json.loads(file.read_text())
        assert hashes_match(content), file
        if file.name == "metrics.json":
            assert {"data", "seed", "git_commit", "device", "results"} <= set(content), file
            assert content["data"]["fingerprint"]
            assert records(content), file


def test_an_altered_record_is_noticed():
    good = {"a": [{"training": {"lr": 0.1}, "config_hash": config_hash({"lr": 0.1})}]}
    assert hashes_match(good)
    good["a"][0]["training"]["lr"] = 0.2
    assert not hashes_match(good)


@pytest.mark.slow
def test_a_source_distribution_holds_every_file_and_both_licences(tmp_path):
    """So that its tests can run, and that nobody takes the weights for MIT."""
    files = tracked()
    copy = tmp_path / "copy"
    for file in files:
        target = copy / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors":
            target.touch()  # its name is enough, and packing 50 MB takes seconds
        else:
            target.symlink_to(file)
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        inside = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
        top = next(n for n in archive.getnames() if n.endswith("/PKG-INFO") and n.count("/") == 1)
        info = archive.extractfile(top).read().decode()
    assert {str(f.relative_to(ROOT)) for f in files} <= inside
    assert "License-Expression: MIT AND LicenseRef-NonCommercial-Research-Weights" in info
    assert info.count("License-File: ") == 2
    assert "](data/" not in info  # a link that would lead nowhere from an index's page


def test_data_s_readme_says_of_every_record_what_it_is():
    text = (ROOT / "data" / "README.md").read_text()
    models = {p.name for p in (ROOT / "data" / "checkpoints").iterdir()}
    runs = {p.name for p in (ROOT / "data" / "runs").iterdir() if p.is_dir()} - models - {"benchmarks"}
    costs = {p.name for p in (ROOT / "data" / "runs" / "benchmarks").iterdir()}
    assert len(runs) > 20
    assert not [name for name in sorted(runs | costs) if not re.search(rf"`{name}/?`", text)]
