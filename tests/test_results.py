"""Results as data: the numbers in README and model cards are those of the recorded runs."""

import json
import re

import pytest
import torch
from conftest import ROOT, SHARED

from i2sb_lib.checkpoints import load_pretrained
from i2sb_lib.config import create_pair_maker
from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.evaluation import evaluate
from i2sb_lib.images import to_float

DIGITS = {"psnr": 2, "ssim": 3, "lpips": 3, "fid": 1}
RUN = json.loads((ROOT / "data" / "runs" / "celeba64-deblur-blind" / "metrics.json").read_text())
ROWS = {row["nfe"]: row for row in RUN["results"]}


def stated(text: str, rows: dict[int, str]) -> dict[int, list[str]]:
    """Cells after the first heading cells of each Markdown table row that `rows` names by a pattern."""
    found = {nfe: re.search(rf"^\| {head} \|(.*)\|$", text, re.M) for nfe, head in rows.items()}
    return {
        nfe: [cell.strip() for cell in match.group(1).split("|")] for nfe, match in found.items() if match
    }


def recorded(nfe: int) -> list[str]:
    return [f"{ROWS[nfe][k]['value']:.{d}f}" for k, d in DIGITS.items()]


def test_readme_states_the_recorded_numbers():
    heads = {n: rf"I²SB \| {n}" if n else r"blurred input \| 0" for n in ROWS}
    assert stated((ROOT / "README.md").read_text(), heads) == {n: recorded(n) for n in ROWS}


def test_the_model_card_states_the_recorded_numbers():
    card = (ROOT / "data" / "checkpoints" / "celeba64-deblur-blind" / "README.md").read_text()
    heads = {0: "blurred input", 1: "1 network call", 10: "10 network calls"}
    assert stated(card, heads) == {n: recorded(n) for n in heads}


def test_an_altered_digit_is_noticed():
    table = f"| I²SB | 1 | {' | '.join(recorded(1))} |"
    assert stated(table, {1: r"I²SB \| 1"}) == {1: recorded(1)}
    assert stated(table.replace("9", "8", 1), {1: r"I²SB \| 1"}) != {1: recorded(1)}


def test_the_record_is_that_of_the_shipped_model():
    assert RUN["checkpoint"] == load_pretrained("celeba64-deblur-blind", "cpu").record


@pytest.mark.skipif(not SHARED.exists(), reason="needs the photographs of faces")
def test_the_recorded_numbers_come_out_again():
    clean = load_images(str(SHARED / "celebahq256"), progress=False)
    assert fingerprint(clean) == RUN["data"]["fingerprint"]
    model, x0 = load_pretrained("celeba64-deblur-blind"), to_float(clean)
    x1 = create_pair_maker(model.record["training"])(x0, torch.Generator().manual_seed(RUN["seed"]))
    for nfe, x in ((0, x1), (1, model.restore(x1, nfe=1, seed=RUN["seed"]))):
        again = evaluate(x, x0)
        assert again["psnr"].value == pytest.approx(ROWS[nfe]["psnr"]["value"], abs=0.02)
        assert again["ssim"].value == pytest.approx(ROWS[nfe]["ssim"]["value"], abs=0.001)
