"""From a finished run to a shipped model: weights, record, metrics on test photographs, card.

    python benchmarks/ship.py runs/gpu/celeba64-deblur --test TEST [--calls 5 --sampler dbim --power 2]

writes data/checkpoints/NAME (weights, model.json, README.md: the card) and data/runs/NAME (history,
metrics, restored images), NAME being that of the run's folder. Every number in the card is read from
these files. --card writes the card alone, from what is recorded already.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from i2sb_lib.checkpoints import load_pretrained, save_pretrained
from i2sb_lib.cli import main as i2sb
from i2sb_lib.config import config_hash
from i2sb_lib.files import atomic_write

METRICS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS (alex)", "fid": "FID"}
DIGITS = {"psnr": 2, "ssim": 3, "lpips": 4, "fid": 1}

CARD = """# {name}

An image-to-image Schrödinger bridge that removes a Gaussian blur (7 taps, σ = 2 pixels, reflected borders,
{noise}rounded to 8 bits) from 64×64 photographs of faces.
{sees}

**Model.** Network `{network}`, {parameters:,} parameters, {conditioned}, with the `{prediction}` prediction
of `i2sb_lib.denoiser`; symmetric schedule with σ₁ = {sigma:.3f}. The weights are the exponential average, in
float16.

**Training.** {images:,} images drawn from `{data}` (`data/README.md`; {holdout} of it held out), flipped at
random; AdamW, learning rate {lr:g}, {steps:,} steps of {batch}, seed {seed}; {time} on
`{device}`.{note}

**Results.** On the {tested} test photographs of CelebA-HQ at 64×64, restored images rounded to 8 bits:

{table}

{walk}Intervals, device and seed are in `data/runs/{name}/metrics.json`.

**Use it for** learning, and as a starting point for work on restoration. **Do not use it** to identify
anyone: restored faces are plausible, not true. It was trained on one blur, on aligned faces, at one
size; on other blurs it has no reason to work. {others}{wrong} CelebA consists of celebrities and is
not balanced in age, skin tone or sex, and neither is what the model assumes of a face.

**Licence.** The weights are released for non-commercial research, as the photographs are; the code is MIT.
"""

OTHERS = """Of other pictures chapter 12 of the book tried
two models of blur without noise: they gained as much PSNR, give or take two decibels, but a walk won no LPIPS
outside faces, and one corrected strongly lost it."""

ROBUST = """# {name}

An image-to-image Schrödinger bridge for pictures whose damage is not known: it takes out some of the blur
(Gaussian, to about 3 pixels; motion was trained on, not measured by itself), of the noise
(to 0.1 of the range), alone or together,
also after JPEG, and leaves a picture that is whole nearly as it is. About JPEG alone it does little,
often at a higher LPIPS.
It sees the picture only, of any size, and what can be guessed from it: Wiener's filter for the Gaussian blur
and the noise that it most likely has (`i2sb_lib.wiener`).

**Model.** Network `{network}`, {parameters:,} parameters, {conditioned}, with the `{prediction}` prediction
of `i2sb_lib.denoiser`; symmetric schedule with σ₁ = {sigma:.3f}. The weights are the exponential average, in
float16. It recommends {calls}, and leaves alone what it would change by less than {least:g} grey
levels (root mean square), which was chosen on training photographs. A grey picture stays grey.

**Training.** {images:,} draws from {data},
damaged by `i2sb_lib.degradations.Mixture`, flipped at random; an image's error counts in terms of its own
damage (`damage_floor` {floor:g}); started from {init};
AdamW, learning rate {lr:g}, {steps:,} steps of {batch}, seed {seed}; {time} on `{device}`.
`benchmarks/photos.py train` repeats it.{note}

**Results.** On the {tested} test photographs of CelebA-HQ at 64×64, each with a damage of its own:

{table}

By kind of damage, before and after, on 64×64 crops of photographs of natural scenes that were not trained on:

{cells}

The other sets and numbers of calls are in `data/runs/{name}-cells/metrics.json`, whole photographs beside
methods that are told the blur in `data/runs/{name}-scenes/metrics.json`.

**Use it for** photographs that are a little blurred, noisy or compressed. Text, screens and drawings were not
among its pictures, and smooth places can get a grain that was never there. **Do not use it** to identify
anyone: what it restores is plausible, not true. On the blur of `celeba64-deblur-blind` that model does
better. CelebA consists of celebrities and is not balanced in age, skin tone or sex; the scenes are
photographs of one archive. Neither is what the world looks like.

**Licence.** The weights are released for non-commercial research, as the photographs are; the code is MIT.
"""


def cell_table(name: str, kinds: Sequence[str] | None = None, which: str = "scenes") -> str:
    """Before and after by kind of damage, as `benchmarks/photos.py measure` recorded its walk."""
    record = json.loads((Path("data/runs") / f"{name}-cells" / "metrics.json").read_text())
    walk = [record["checkpoint"].get(k, other) for k, other in (("nfe", 10), ("sampler", "sde"))]
    lines = ["| damage | PSNR (dB) | LPIPS (alex) |", "|---|---|---|"]
    for row in (r for r in record["results"] if [r["set"], r["nfe"], r["sampler"]] == [which, *walk]):
        if kinds and row["cell"] not in kinds:
            continue
        whole = row["psnr"]["before"] >= 60
        cells = [f"{'whole' if whole else format(row['psnr']['before'], '.2f')} → {row['psnr']['after']:.2f}"]
        cells += [f"{row['lpips']['before']:.4f} → {row['lpips']['after']:.4f}"]
        lines.append(f"| {row['cell']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


NOTES = {
    "celeba64-deblur-student": """ A student: its targets are not the photographs
but what five calls of `celeba64-deblur-long` (`dbim`, power 2) make of them, each with a noise of its own;
it starts from that model's weights and restores in one call (`benchmarks/student.py --teacher
celeba64-deblur-long --steps 2200`, `data/runs/student-long`).""",
    "celeba64-deblur-blind": """ The length of the cosine decay was shortened twice while the run was
under way (6,500, then 5,000, then 4,400 steps): repeating it from the configuration gives a slightly
different model.""",
    "celeba64-deblur-long": """ `benchmarks/gpu_flagship.py`
trained it, one CUDA graph a step, beside another training on the same card. It saw each photograph 49 times:
one call of it has 1.0 dB more than that of `celeba64-deblur` on photographs that both were trained on, and
nothing on others (`data/runs/overfitting`); its walks gain on those, too.""",
    "celeba64-deblur-blind-long": """ This is its second training
(the preset of its name), with AdamW anew and from the weights of the first (`celeba64-deblur-blind-longer`,
as preset and in `data/runs`): 14,400 steps of 16, 131 minutes on the same CPU. Together they saw 422,400
images. What either held out the other saw, as their seeds differ.""",
    "photos-robust": """ This is its last training of five
(`--init RUN --alone 0.5 --mild 0.5 --seed 1 --steps 3700`: half of the pictures have one kind of damage
alone, and JPEG is then weak more often), each with AdamW anew and from the weights of the one before. The
first: 6,299 steps of 128, learning rate 0.0015, floor 4, in 380 seconds on an H100, beside two other
trainings (`benchmarks/gpu_flagship.py`). The second: 2,200 steps of 16, floor 2, 42 minutes on a CPU. The
third: 4,250 steps of 16, of 6,000 that were planned, 93 minutes on a CPU. The fourth: `--alone 0.5` and
2,700 steps of 16, 59 minutes on a CPU.""",
}


def digits(value: float | None, count: int) -> str:
    """A number as a table has it; None is no mean: some picture is the clean one to the byte."""
    return "–" if value is None else f"{value:.{count}f}"


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each row of a run's metrics."""
    lines = ["| | " + " | ".join(METRICS.values()) + " |", "|---" * (1 + len(METRICS)) + "|"]
    for row in rows:
        calls = f"{row['nfe']} network call" + "s" * (row["nfe"] > 1)
        other = "" if row["sampler"] in ("sde", "identity") else f", {row['sampler']}"
        head = f"{calls}{other}" if row["nfe"] else "degraded input"
        lines.append(
            f"| {head} | " + " | ".join(digits(row[k]["value"], d) for k, d in DIGITS.items()) + " |"
        )
    if any(row["psnr"]["value"] is None for row in rows):
        lines.append("\nNo mean of PSNR: some pictures are the clean ones to the byte.")
    return "\n".join(lines)


def walk(name: str, record: dict[str, Any]) -> str:
    """The walk that a model recommends, where that is another than ten calls of sde, and its row's values."""
    if "sampler" not in record:
        return ""
    how = record["sampler"], record.get("nfe", 10), record.get("power", 1.0), record.get("consistency", 0.0)
    rows = json.loads(Path("data/runs/ladder/metrics.json").read_text())["results"]
    rows = [r for r in rows if r["row"].startswith(f"{name}:")]
    (row,) = (r for r in rows if (r["sampler"], r["nfe"], r["power"], r.get("lam", 0.0)) == how)
    values = ", ".join(f"{label} {row[k]['value']:.{DIGITS[k]}f}" for k, label in METRICS.items())
    more = f", consistency {how[3]:g}" if how[3] else ""
    what = f"{how[1]} calls of `{how[0]}`, power {how[2]:g}{more}" if how[1] > 1 else f"one call{more}"
    return f"Unless told otherwise it takes {what}: {values} (`data/runs/ladder`).\n\n"


def card(name: str, metrics: dict[str, Any]) -> str:
    model, record = load_pretrained(name, "cpu").denoiser, metrics["checkpoint"]
    training, known = record["training"], model.config.tikhonov > 0
    robust = training["degradation"] == "mixture"
    calls, how, seconds = record.get("nfe", 10), record.get("sampler"), record["seconds"]
    return (ROBUST if robust else CARD).format(
        name=name,
        cells=cell_table(name) if robust else "",
        calls="one call" if calls == 1 else f"{calls} calls" + (f" of `{how}`" if how else ""),
        floor=training.get("damage_floor", 0.0),
        init=training.get("init", ""),
        least=record.get("least_change", 0.0),
        noise=f"then Gaussian noise of standard deviation {training['noise']:g} on [0, 1], "
        if training["noise"]
        else "",
        sees="It is told the blur: it also sees the Tikhonov inverse of the degraded image "
        f"(λ = {model.config.tikhonov:g}), which it corrects."
        if known
        else "It sees the degraded image only.",
        network=training["network"],
        parameters=record["parameters"],
        conditioned="conditioned on x1" if model.config.cond_x1 else "not conditioned on x1",
        prediction=model.config.prediction,
        sigma=model.bridge.total_std,
        data=training["data"],
        images=record["step"] * training["batch_size"],
        holdout=training["holdout"],
        lr=training["lr"],
        steps=record["step"],
        batch=training["batch_size"],
        seed=training["seed"],
        time=f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds",
        device=record["device"],
        note=NOTES.get(name, ""),
        tested=metrics["data"]["images"],
        table=table(metrics["results"]),
        walk="" if robust else walk(name, record),
        others="Other pictures were not tried." if training["noise"] else OTHERS,
        wrong="\nWhere the blur is not the one it is told, what it is shown is wrong as well."
        if known
        else "",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--test", help="clean test photographs")
    parser.add_argument("--nfe", nargs="+", help="1 2 5 10, or the one number that it takes, unless given")
    parser.add_argument("--recommended", action="store_true", help="the walk that it recommends, no --nfe")
    parser.add_argument("--of", help="what the training images are, where they were given in memory")
    parser.add_argument("--calls", type=int, help="network calls that the model recommends, if not ten")
    parser.add_argument("--sampler", help="which it recommends, if not sde")
    parser.add_argument("--power", type=float, help="of the times of that walk, if not 1")
    parser.add_argument("--consistency", type=float, help="its weight of the measurement, if not 0")
    parser.add_argument("--least-change", type=float, help="grey levels below which a picture is left alone")
    parser.add_argument("--grey-stays", action="store_true", help="what has no colour comes back with none")
    parser.add_argument("--card", action="store_true")
    args = parser.parse_args()
    if not (args.test or args.card):
        parser.error("expected --test, the clean photographs that the card's numbers are of")
    name = args.run.name
    out, shipped = Path("data/runs") / name, Path("data/checkpoints") / name
    if not args.card:
        run = load_pretrained(args.run, "cpu")
        training = run.record["training"] | {"out": name} | ({"data": args.of} if args.of else {})
        said = {"nfe": args.calls, "least_change": args.least_change, "grey_stays": args.grey_stays}
        said |= {k: getattr(args, k) for k in ("sampler", "power", "consistency")}
        record = run.record | {k: v for k, v in said.items() if v}
        record |= {"training": training, "config_hash": config_hash(training)}
        save_pretrained(shipped, run.denoiser, record)
        command = ["evaluate", "--checkpoint", str(shipped), "--data", args.test, "--out", str(out)]
        calls = args.nfe or (["1"] if run.alone else ["1", "2", "5", "10"])
        nfe = [] if args.recommended else ["--nfe", *calls]
        i2sb([*command, *nfe, "--metrics", *METRICS])
        shutil.copy(args.run / "history.json", out / "history.json")
    text = card(name, json.loads((out / "metrics.json").read_text()))
    atomic_write(shipped / "README.md", lambda p: p.write_text(text))


if __name__ == "__main__":
    main()
