"""What `pip install i2sb-lib` without extras can do, and what it says of the rest."""

import ast
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from conftest import ROOT, photograph
from packaging.requirements import Requirement


def core() -> list[str]:
    text = (ROOT / "pyproject.toml").read_text()
    return ast.literal_eval(re.search(r"\ndependencies = (\[.*?\n\])", text, re.S).group(1))


@pytest.fixture(scope="module")
def core_alone(tmp_path_factory):
    """Python with links to what the core requires, to what that requires, and to nothing else."""
    site, todo, seen = tmp_path_factory.mktemp("site"), [Requirement(r) for r in core()], set()
    while todo:
        wanted = todo.pop()
        if wanted.marker and not any(wanted.marker.evaluate({"extra": e}) for e in wanted.extras or {""}):
            continue
        try:
            dist = distribution(wanted.name)
        except PackageNotFoundError:  # of another platform
            continue
        if dist.name in seen:
            continue
        seen.add(dist.name)
        todo += map(Requirement, dist.requires or [])
        for name in {file.parts[0] for file in dist.files} - {"..", "__pycache__"}:
            link = site / name
            if not link.exists():
                link.symlink_to(Path(dist.locate_file(name)))

    def python(*args, **options) -> subprocess.CompletedProcess:
        command = [sys.executable, "-S", *map(str, args)]
        env = {"PYTHONPATH": f"{site}:{ROOT}", "PATH": "", "HOME": str(site), "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=env, capture_output=True, text=True, **options)

    return python


def test_the_core_is_small():
    names = {re.split(r"[<>=]", r)[0] for r in core()}
    assert names == {"torch", "numpy", "pillow", "safetensors", "tqdm", "huggingface-hub", "tyro"}


@pytest.mark.slow
def test_the_core_alone_restores_in_python_and_runs_the_commands(core_alone, tmp_path):
    photograph(0, 24, 32).save(tmp_path / "a.png")
    (tmp_path / "x.parquet").touch()
    code = """if True:
        import numpy, i2sb_lib
        from i2sb_lib.cli import main
        model = i2sb_lib.load_pretrained(device="cpu")
        picture = i2sb_lib.restore_image("a.png", model, nfe=1)
        assert picture.size == (32, 24)
        assert model.restore(numpy.asarray(picture), nfe=1).shape == (24, 32, 3)
        for extra in ("train", "demo", "metrics", "book"):
            print(extra)
            try:
                if extra == "train": i2sb_lib.train(i2sb_lib.TrainConfig())
                if extra == "demo": i2sb_lib.load_images("embedded")
                if extra == "metrics": i2sb_lib.evaluation.check_metrics(["ssim"])
                if extra == "book": import i2sb_lib.plotting
            except (ImportError, RuntimeError) as error: print(error)
        main(["degrade", "a.png", "b.png"])
        main("restore b.png c.png --nfe 1 --device cpu".split())
        main(["info", "celeba64-deblur"])
        for command in ("train", "evaluate --data x.parquet"):
            try: main(command.split())
            except SystemExit as stop: print(stop)
        """
    done = core_alone("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "c.png").exists()
    said = done.stdout.splitlines()
    assert said[:8] == [
        "train", 'training needs accelerate: pip install "i2sb-lib[train]"',
        "demo", 'embedded needs scikit-image: pip install "i2sb-lib[demo]"',
        "metrics", 'ssim needs torchmetrics: pip install "i2sb-lib[metrics]"',
        "book", 'plotting needs matplotlib: pip install "i2sb-lib[book]"',
    ]  # fmt: skip
    assert said[-2:] == [
        'i2sb: training needs accelerate: pip install "i2sb-lib[train]"',
        'i2sb: parquet needs pyarrow: pip install "i2sb-lib[train]"',
    ]
