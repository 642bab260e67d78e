"""Results as data: the numbers in README and model cards are those of the recorded runs."""

import functools
import json
import re

import pytest
import torch
from conftest import ROOT, SHARED, script

from i2sb_lib import restoration
from i2sb_lib.checkpoints import DEFAULT, load_pretrained
from i2sb_lib.config import config_hash, create_pair_maker
from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.images import psnr, quantise, to_float, to_uint8

FLAGSHIP = "celeba64-deblur"
DIGITS = {"psnr": 2, "ssim": 3, "lpips": 4, "fid": 1}
SHIPPED = sorted(f.parent.name for f in (ROOT / "data" / "checkpoints").glob("*/model.json"))


def run(name: str) -> dict:
    return json.loads((ROOT / "data" / "runs" / name / "metrics.json").read_text())


def stated(text: str, head: str) -> list[list[str]]:
    """The cells after those that `head`, a pattern, matches at the start of Markdown table rows."""
    found = re.findall(rf"^\| {head} \|((?: *[\d.–]+ *\|)+)$", text, re.M)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found]


def recorded(row: dict) -> list[str]:
    return [script("ship").digits(row[k]["value"], d) for k, d in DIGITS.items()]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_states_the_recorded_numbers_of_the_shipped_weights(name):
    content, card = run(name), (ROOT / "data" / "checkpoints" / name / "README.md").read_text()
    assert content["checkpoint"] == load_pretrained(name, "cpu").record
    rows = content["results"]
    assert len(rows) > 1
    assert card == script("ship").card(name, content)
    assert stated(card, r"(?:degraded input|\d+ network calls?(?:, \w+)?)") == [recorded(r) for r in rows]


def test_the_readme_states_the_recorded_numbers():
    text = (ROOT / "README.md").read_text()
    rows = {r["nfe"]: r for r in run(FLAGSHIP)["results"] if r["sampler"] in ("identity", "sde")}
    assert stated(text, r"blurred input \| 0") == [recorded(rows.pop(0))]
    assert stated(text, r"I²SB \| \d+") == [recorded(r) for r in rows.values()]
    blind = [r for r in run("celeba64-deblur-blind")["results"] if r["sampler"] == "sde"]
    assert stated(text, r"I²SB, blind \| \d+") == [recorded(r) for r in blind]
    long = run("celeba64-deblur-blind-long")["results"][1:2]
    assert stated(text, r"I²SB, blind, long \| \d+") == [recorded(r) for r in long]
    advised = next(r for r in run("ladder")["results"] if r["row"] == "celeba64-deblur-blind-long:dbim:5:2")
    assert stated(text, r"I²SB, blind, long, as it does unless told \| 5") == [recorded(advised)]
    walk = {"nfe": 5, "sampler": "dbim", "power": 2.0, "consistency": 0.0}
    assert load_pretrained("celeba64-deblur-blind-long", "cpu").walk() == walk
    advised = next(r for r in run("ladder")["results"] if r["row"] == f"{FLAGSHIP}:dbim:5:2:1e-2")
    assert stated(text, r"I²SB, as it does unless told \| 5") == [recorded(advised)]
    assert load_pretrained(FLAGSHIP, "cpu").recommended()[1:] == ("dbim", advised["lam"])
    long = run("celeba64-deblur-long")["results"][1:]
    assert stated(text, r"I²SB, long \| \d+") == [recorded(r) for r in long]
    advised = next(r for r in run("ladder")["results"] if r["row"] == "celeba64-deblur-long:dbim:5:2:1e-2")
    assert stated(text, r"I²SB, long, as it does unless told \| 5") == [recorded(advised)]
    assert load_pretrained("celeba64-deblur-long", "cpu").recommended()[1:] == ("dbim", advised["lam"])
    student = run("celeba64-deblur-student")["results"][1:]
    assert stated(text, r"I²SB, student \| 1") == [recorded(r) for r in student]
    advised = next(r for r in run("ladder")["results"] if r["row"] == "celeba64-deblur-student:sde:1:1:1e-2")
    assert stated(text, r"I²SB, student, as it does unless told \| 1") == [recorded(advised)]
    assert load_pretrained("celeba64-deblur-student", "cpu").recommended()[1:] == ("sde", advised["lam"])
    for head, name, nfe in (("regression", "regression", 1), ("diffusion from noise", "diffusion", 10)):
        row = next(
            r for r in run(f"celeba64-deblur-{name}")["results"] if (r["sampler"], r["nfe"]) == ("sde", nfe)
        )
        assert stated(text, rf"{head}, blind \| {nfe}") == [recorded(row)]


def test_the_readme_states_what_the_default_does_to_each_kind_of_damage():
    text = (ROOT / "README.md").read_text()
    kinds = re.findall(r"^\| ([^|]+) \| [\d.a-z]+ → [\d.]+ \|", text, re.M)
    assert {"clean", "blur 1", "blur 2", "noise 0.05", "JPEG 30"} <= set(kinds)
    assert script("ship").cell_table(DEFAULT, kinds) in text
    walk = {k: load_pretrained(DEFAULT, "cpu").walk()[k] for k in ("nfe", "sampler")}
    rows = [r for r in run("photos-robust-cells")["results"] if walk.items() <= r.items()]
    rows = [r for r in rows if r["set"] != "allfaces" and r["cell"] != "clean"]
    lost = sum(r["psnr"]["change"][0] < 0 for r in rows)
    assert f"{lost} cells of {len(rows)} have fewer decibels afterwards" in " ".join(text.split())


def test_the_readme_states_what_the_default_does_to_whole_scenes():
    text = " ".join((ROOT / "README.md").read_text().split())
    rows = {r["row"]: r for r in run("photos-robust-scenes")["results"]}
    calls = load_pretrained(DEFAULT, "cpu").walk()["nfe"]
    ours, told = rows[f"photos-robust, calls: {calls}"], rows["Tikhonov, told the blur"]
    (a, b), (c, d) = ((r["psnr"][0], r["lpips"][0]) for r in (ours, told))
    assert f"{run('photos-robust-scenes')['scenes']} whole photographs" in text
    assert f"reaches {a:.1f} dB and an LPIPS of {b:.2f}; a Tikhonov" in text
    assert f"was tuned, {c:.1f} and {d:.2f}." in text


def test_the_readme_states_the_recorded_speed():
    text = " ".join((ROOT / "README.md").read_text().split())
    walks = {r["walk"]: r for r in run("benchmarks/restoring")["results"]["walks"]["walks"]}
    ours, student = (walks[k]["times_as_fast_as"]["report, 100"] for k in ("ours", "student"))
    assert f"is {ours:.0f} times as fast as a hundred float32 steps with the report's" in text
    assert f"the student {student:.0f} times" in text
    assert walks["ours"]["lpips"] < walks["published"]["lpips"]


def test_an_altered_digit_is_noticed():
    row = run(FLAGSHIP)["results"][1]
    head, cells = "| I²SB | 1 |", f" {' | '.join(recorded(row))} |"
    assert stated(head + cells, r"I²SB \| 1") == [recorded(row)]
    for i in (i for i, c in enumerate(cells) if c.isdigit()):
        altered = cells[:i] + str((int(cells[i]) + 1) % 10) + cells[i + 1 :]
        assert stated(head + altered, r"I²SB \| 1") != [recorded(row)]


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["clean", "noise 0.05", "blur 2"])
def test_the_default_s_recorded_numbers_come_out_again(cell):
    content, clean = run("photos-robust-cells"), load_images("embedded", "test")
    model = load_pretrained(DEFAULT, "cpu")
    assert content["checkpoint"] == model.record
    assert content["data"]["sets"]["embedded"]["fingerprint"] == fingerprint(clean)
    walk = (model.walk()[k] for k in ("nfe", "sampler"))
    what = ("embedded", cell, *walk)
    row = next(r for r in content["results"] if (r["set"], r["cell"], r["nfe"], r["sampler"]) == what)
    x0 = to_float(clean)
    x1 = quantise(script("photos").cells()[cell](x0, torch.Generator().manual_seed(2**31)))
    before, after = (psnr(x, x0).clamp(max=60) for x in (x1, quantise(model.restore(x1))))
    for when, x in (("before", before), ("after", after)):
        assert float(x.mean()) == pytest.approx(row["psnr"][when], abs=0.05)
    kept = (to_uint8(model.restore(x0)) == clean).flatten(1).all(1)
    assert content["data"]["sets"]["embedded"]["kept"] == int(kept.sum()) < len(clean)
    assert float((after - before)[kept].mean()) == pytest.approx(row["psnr"]["kept"][0], abs=0.05)


def test_the_readme_states_what_the_default_s_trainings_were():
    text = " ".join((ROOT / "README.md").read_text().split())
    file = ROOT / "data" / "runs" / DEFAULT / "trainings.json"
    first, *later = json.loads(file.read_text())["before"] + [load_pretrained(DEFAULT, "cpu").record]
    seen = sum(r["step"] * r["training"]["batch_size"] for r in (first, *later))
    assert f"It saw {round(seen, -4):,}: {first['seconds']:.0f} seconds of training on an H100" in text
    assert "H100" in first["device"]
    assert {r["device"][:3] for r in later} == {"cpu"}
    assert 4.5 < sum(r["seconds"] for r in later) / 3600 < 4.7
    assert "then 4.6 hours on a CPU" in text


@functools.cache
def faces(degradation: str, seed: int) -> tuple[str, float, torch.Tensor, torch.Tensor]:
    """The photographs' fingerprint, the mean PSNR of them as they are degraded, and the first 8 x0 and x1."""
    clean = load_images(str(SHARED / "celebahq256"), progress=False)
    x0, make = to_float(clean), create_pair_maker(json.loads(degradation))
    x1 = make(x0, torch.Generator().manual_seed(seed + 2**31))
    return fingerprint(clean), float(psnr(x1, x0).mean()), x0[:8].clone(), x1[:8].clone()


@pytest.mark.skipif(not SHARED.exists(), reason="needs the photographs of faces")
@pytest.mark.parametrize("name", [n for n in SHIPPED if n != DEFAULT])
@pytest.mark.slow
def test_the_recorded_numbers_come_out_again(name, monkeypatch):
    """One call on the first 8 photographs, one by one as the ladder has them, and all of the inputs.

    In the precision of the record's machine: float32 is up to 0.3 dB better on a photograph than bfloat16.
    """
    content, model = run(name), load_pretrained(name)
    precision = "bf16" if "AVX512" in content["device"] else "no"
    monkeypatch.setattr(restoration, "auto_precision", lambda _: precision)
    made = {
        k: model.record["training"][k] for k in ("degradation", "degradation_options", "noise", "quantise")
    }
    found, before, x0, x1 = faces(json.dumps(made), content["seed"])
    assert found == content["data"]["fingerprint"]
    assert before == pytest.approx(content["results"][0]["psnr"]["value"], abs=1e-3)
    ladder = RUNS / ("ladder-noisy" if "noisy" in name else "ladder") / "per_image.json"
    each = torch.tensor(json.loads(ladder.read_text())[f"{name}:sde:1"]["psnr"][:8])
    gap = psnr(quantise(model.restore(x1, nfe=1)), x0) - each
    assert float(gap.abs().max()) < 0.1
    assert float(gap.mean().abs()) < 0.02


RUNS = ROOT / "data" / "runs"
RECORDS = {str(f.parent.relative_to(RUNS)): f for f in sorted(RUNS.glob("**/metrics.json"))}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_says_how_it_was_made(name):
    content = json.loads(RECORDS[name].read_text())
    assert {"seed", "device", "git_commit"} <= set(content)
    assert "data" in content or name == "iterative-sb"  # which draws its own points
    made = [content, content.get("checkpoint", {}), *content["results"]]
    for part in (part for part in made if isinstance(part, dict) and "config_hash" in part):
        config = part["training"] if "training" in part else part["config"]
        assert part["config_hash"] == config_hash(config)


@pytest.mark.parametrize("name", [n for n, f in RECORDS.items() if (f.parent / "per_image.json").exists()])
def test_a_ladder_s_means_are_those_of_its_photographs(name):
    content = json.loads(RECORDS[name].read_text())
    each = json.loads((RECORDS[name].parent / "per_image.json").read_text())
    assert set(each) == {row["row"] for row in content["results"]}
    for row in content["results"]:
        for metric, values in each[row["row"]].items():
            assert len(values) == content["data"]["images"]
            mean, low, high = (row[metric][k] for k in ("value", "low", "high"))
            if None in values:  # a perfect photograph has an infinite PSNR
                assert mean is None
                continue
            assert mean == pytest.approx(sum(values) / len(values), abs=6e-5)
            assert low < mean < high or low == mean == high


def test_one_number_has_one_value():
    """A restoration that stands in a model's record and in the ladder is the same measurement."""
    compared = 0
    for name in RECORDS:
        task = "ladder-noisy" if "noisy" in name else "ladder"
        ladder = {r["row"]: r for r in run(task)["results"]}
        for r in run(name)["results"] if name.startswith("celeba64-") else []:
            other = ladder.get(f"{name}:{r['sampler']}:{r['nfe']}" if r["nfe"] else "identity")
            if other is not None:
                for metric, digits in DIGITS.items():
                    if {metric} <= r.keys() & other.keys():
                        one, two = (f"{v[metric]['value']:.{digits}f}" for v in (r, other))
                        assert one == two, (name, r["sampler"], r["nfe"], metric)
                        compared += 1
    assert compared > 40
