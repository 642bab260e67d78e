"""The recipe, searched at a small budget: one row a variant, every row kept, helpful or not.

Each variant trains the same small network for the same few steps on the same images from the same
seed, one thing changed, and restores the same held-out training photographs. The test photographs
are not looked at. Rows that are in the record already are skipped, so that the search resumes.

    python benchmarks/search.py --data PATH [--out data/runs/search] [--work runs/search]
"""

import argparse
import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from search_parts import Averages, Levels
from torch import Tensor

from i2sb_lib.bridge import expand
from i2sb_lib.config import TrainConfig, config_hash
from i2sb_lib.data import fingerprint
from i2sb_lib.degradations import Compose, Degradation, GaussianBlur
from i2sb_lib.denoiser import Denoiser, ModelConfig
from i2sb_lib.devices import device_name
from i2sb_lib.evaluation import evaluate
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.images import to_float
from i2sb_lib.networks import UNet
from i2sb_lib.samplers import sample
from i2sb_lib.training import CPU, Trainer, seeded

BASE = {"network": "unet-tiny", "steps": 400, "batch_size": 16, "lr": 2e-3, "warmup": 40, "holdout": 128}
SIGMA2 = 0.141069  # sigma_1^2 of the default schedule, beta_min 0.1 and beta_max 0.3
CUNET = {"network": "cunet", "prediction": "eps", "cond_x1": False, "steps": 200, "lr": 3e-4}


@dataclass(frozen=True)
class Variant:
    """One row. changes: fields of TrainConfig; the rest is what the library does not offer."""

    name: str
    changed: str
    changes: dict[str, Any] = field(default_factory=dict)
    weight: str = "unit"  # the loss: |D - x0|^2 / out^2 (unit), |D - x0|^2 (uniform), / sigma_t^2 (sigma)
    roles: tuple[str, ...] = ("base", "input")  # of the Tikhonov guess g, where there is one
    start: float = 0.0  # the bridge starts from the Tikhonov inverse with this weight instead of x1
    of: str = ""  # no training: another row's weights,
    average: str = "ema"  # and which: ema, short (decay 0.9), none (the last) or one of LENGTHS
    consistency: float = 0.0  # after each call x0_hat += K (x1 - H x0_hat), K the inverse with this weight
    levels: str = ""  # times drawn by the loss so far: importance or fall, see `Levels`
    net: dict[str, Any] = field(default_factory=dict)  # of a U-Net in place of the named one


def scaled(sigma: float) -> dict[str, float]:
    return {"beta_min": 0.1 * sigma**2 / SIGMA2, "beta_max": 0.3 * sigma**2 / SIGMA2}


TOLD: dict[str, Any] = {"tikhonov": 2e-4}
BOTH = TOLD | scaled(1.0) | {"lr": 5e-3}
LONG = {"told": TOLD, "told, both": BOTH, "told, both, sigma_1 = 2.0": BOTH | scaled(2.0)}
LONG |= {"told, both, seed 1": BOTH | {"seed": 1}, "told, both, seed 2": BOTH | {"seed": 2}}
LONG |= {"told, sigma_1 = 1.0": TOLD | scaled(1.0), "told, lr 5e-3": TOLD | {"lr": 5e-3}}
LONG |= {"told, both, sigma_1 = 4.0": BOTH | scaled(4.0)}
SIZES = ("unet-small", "unet-medium")
LENGTHS = (0.05, 0.15, 0.25)  # sigma_rel of the averages rebuilt after a training; the EMA here is of 0.09
LEVELS = {
    "importance": "times as often as their loss is large, weighted back",
    "fall": "times that learn most",
}
NETS = {
    "deep": ("0.94 GFLOP an image: three blocks a level", (16, 32, 48), 3),
    "wide": ("0.97 GFLOP an image: 1.5 times the channels", (24, 48, 72), 1),
}
VARIANTS = [
    Variant("base", "nothing: precond, cond_x1, blind"),
    Variant("short average", "EMA decay at most 0.9", of="base", average="short"),
    Variant("no average", "no EMA", of="base", average="none"),
    Variant("blind, consistent", "data consistency while sampling", of="base", consistency=1e-3),
    Variant("eps", "target (x_t - x0) / sigma_t", {"prediction": "eps"}),
    Variant("x0", "target x0", {"prediction": "x0"}),
    Variant("weight of eps", "loss |D - x0|^2 / sigma_t^2", weight="sigma"),
    Variant("seed 1", "the seed", {"seed": 1}),
    Variant("g as base and input", "operator-aware, lambda 2e-4", {"tikhonov": 2e-4}),
    Variant("aware, consistent", "the same", {"tikhonov": 2e-4}, of="g as base and input", consistency=1e-3),
    Variant("seed 2", "the seed", {"seed": 2}),
    Variant("uniform weight", "loss |D - x0|^2", weight="uniform"),
    Variant("g as input", "operator-aware, base x1", {"tikhonov": 2e-4}, roles=("input",)),
    Variant("g as base", "operator-aware, no further input", {"tikhonov": 2e-4}, roles=("base",)),
    Variant("g as start", "operator-aware, bridge from g, not x1", start=2e-4),
    Variant("x1 not shown", "cond_x1 off", {"cond_x1": False}),
    Variant("x1 not shown, eps", "cond_x1 off, the paper's target", {"cond_x1": False, "prediction": "eps"}),
    *[Variant(f"sigma_1 = {sigma}", "noise of the bridge", scaled(sigma)) for sigma in (0.1, 0.2, 1.0)],
    *[Variant(f"lambda {s}", "weight of g", {"tikhonov": float(s)}) for s in ("3e-5", "1e-4", "1e-3")],
    Variant("lr 5e-4", "learning rate", {"lr": 5e-4}),
    Variant("lr 5e-3", "learning rate", {"lr": 5e-3}),
    Variant("constant beta", "schedule's shape, same sigma_1", {"beta_min": SIGMA2, "beta_max": SIGMA2}),
    Variant("steep beta", "schedule's shape, same sigma_1", {"beta_min": 1e-3, "beta_max": 1.5294}),
    Variant("dropout 0.1", "dropout", {"dropout": 0.1}),
    Variant("wide", "width: unet-small", {"network": "unet-small"}),
    Variant("cunet, eps", "the report's network and target, 200 steps, lr 3e-4", CUNET),
    # again, told the blur, and at four times the budget: is a short run's winner a long run's?
    Variant("told, sigma_1 = 1.0", "g as base and input, noise of the bridge", TOLD | scaled(1.0)),
    Variant("told, lr 5e-3", "g as base and input, learning rate", TOLD | {"lr": 5e-3}),
    Variant("told, both", "sigma_1 = 1.0 and lr 5e-3", BOTH),
    *[Variant(f"told, both, seed {k}", "the seed", BOTH | {"seed": k}) for k in (1, 2)],
    *[Variant(f"told, both, sigma_1 = {s}", "noise of the bridge", BOTH | scaled(s)) for s in (2.0, 4.0)],
    Variant("told, both, steep beta", "schedule's shape", BOTH | {"beta_min": 0.00709, "beta_max": 10.8415}),
    Variant("told, both, batch 8", "batch, twice the steps", BOTH | {"batch_size": 8, "steps": 800}),
    Variant("told, both, batch 32", "batch, half the steps", BOTH | {"batch_size": 32, "steps": 200}),
    *[Variant(f"{name}, long", "1,600 steps", of | {"steps": 1600}) for name, of in LONG.items()],
]
VARIANTS += [
    Variant(f"told, both, batch {b}, long", "batch, 25,600 images", BOTH | {"batch_size": b, "steps": n})
    for b, n in ((8, 3200), (32, 800))
]
VARIANTS += [Variant("told, both, unet-small", "network", BOTH | {"network": "unet-small"})]
for end, how in (("", BOTH), (", long", BOTH | {"steps": 1600})):
    slow = how | {"lr": 2e-3}  # at which larger networks learn
    VARIANTS += [Variant(f"told, sigma_1 = 1.0, {n}{end}", "network", slow | {"network": n}) for n in SIZES]
    VARIANTS += [Variant(f"told, both, {k}{end}", what, how, levels=k) for k, what in LEVELS.items()]
    VARIANTS += [
        Variant(f"told, both, {k}{end}", what, how, net={"channels": c, "blocks": b, "attention": ()})
        for k, (what, c, b) in NETS.items()
    ]
    VARIANTS += [
        Variant(
            f"told, both, average {k}{end}", "rebuilt afterwards", how, of=f"told, both{end}", average=str(k)
        )
        for k in LENGTHS
    ]


class Model(Denoiser):
    """A denoiser with the losses and the forms of operator-awareness that the search compares."""

    def __init__(self, config: ModelConfig, variant: Variant, net: UNet | None = None) -> None:
        roles = variant.roles
        super().__init__(config if "input" in roles else dataclasses.replace(config, tikhonov=0.0), net)
        self.config, self.weight, self.roles = config, variant.weight, roles
        self.levels = Levels(variant.levels) if variant.levels else None

    def forward(self, xt: Tensor, t: Tensor, x1: Tensor | None = None, g: Tensor | None = None) -> Tensor:
        if not self.config.tikhonov or self.roles == ("base", "input"):
            return super().forward(xt, t, x1, g)
        s, g = self.scalings(expand(t, xt)), self.guess(x1) if g is None else g
        planes = [s.in_t * xt, s.in_1 * x1] + [s.in_1 * g] * ("input" in self.roles)
        base = g if "base" in self.roles else x1
        return s.skip_t * xt + s.skip_1 * x1 + s.skip_g * base + s.out * self._raw(planes, t)

    def loss(self, x0: Tensor, x1: Tensor, t: Tensor, noise: Tensor, *more: Any) -> Tensor:
        unit, var = super().loss(x0, x1, t, noise), self.scalings(t).out.square()
        unit = self.levels.weigh(unit, t) if self.levels else unit
        return unit * {"unit": 1, "uniform": var, "sigma": var / self.bridge.schedule.var_fwd(t)}[self.weight]


@dataclass(frozen=True)
class Inverse(Degradation):
    """Tikhonov's inverse of the blur as a further degradation, for a bridge that starts there."""

    lam: float

    def apply(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return GaussianBlur().inverse(x, self.lam).clamp(-1, 1)


class Run(Trainer):
    """Training of one variant; `held` is the same for every seed."""

    def __init__(self, config: TrainConfig, variant: Variant) -> None:
        self.variant = variant
        with seeded(config.seed, CPU):
            net = UNet(9, 3, **variant.net) if variant.net else None  # x_t, x1 and g
        super().__init__(config, net=net)

    def pairs(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        return x0, self.degrade(x0, torch.Generator(x0.device).manual_seed(0))

    def _build(self) -> Denoiser:
        v, images = self.variant, self.batches.images
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        self.held, self.batches.places = images[order[: self.config.holdout]], order[self.config.holdout :]
        if v.start:
            self.degrade = self.batches.degrade = Compose((self.degrade, Inverse(v.start)))
        config = super()._build().config
        if config.tikhonov and "base" not in v.roles:  # the moments that belong to the base x1
            x0, x1 = self.pairs(to_float(images[self.batches.places[:512]]))
            m00, m11, m01 = (round(float((a * b).mean()), 4) for a, b in ((x0, x0), (x1, x1), (x0, x1)))
            config = dataclasses.replace(config, moments=(m00, m11, m01))
        return Model(config, v, self.net)

    def batch(self) -> tuple[Tensor, ...]:
        x0, x1, t, *more = super().batch()
        return x0, x1, self.model.levels.draw(t) if self.model.levels else t, *more

    def learn(self) -> dict[str, dict[str, Tensor]]:
        """Train to the end; the weights by kind of average."""
        short = {k: p.detach().clone() for k, p in self.model.named_parameters()}
        fast = list(self.model.parameters())
        averages, started = Averages(fast), time.perf_counter()
        while self.step < self.config.steps:
            self.optimise()
            with torch.no_grad():
                torch._foreach_lerp_(list(short.values()), fast, 1 - min(0.9, self.step / (9 + self.step)))
            averages.follow(fast, self.step % max(1, self.config.steps // 16) == 0)
        self.seconds = time.perf_counter() - started
        last = self.model.state_dict()
        kinds = {"ema": self.ema.state_dict(), "none": last, "short": last | short}
        rebuilt = {str(k): [w.float() for w in averages.rebuilt(k)] for k in LENGTHS}
        return kinds | {k: last | dict(zip(short, w, strict=True)) for k, w in rebuilt.items()}

    @torch.no_grad()
    def restore(self) -> dict[str, dict[str, float]]:
        """What `measures` says of the held-out photographs, by sampler and network calls."""
        (x0, x1), lam, out = self.pairs(to_float(self.held)), self.variant.consistency, {}

        def denoise(xt: Tensor, t: Tensor) -> Tensor:
            parts = zip(xt.split(16), t.split(16), x1.split(16), strict=True)  # what a CPU's cache holds
            with self.host.autocast():
                x0_hat = torch.cat([self.ema(*part) for part in parts])
            return x0_hat + GaussianBlur().inverse(x1 - GaussianBlur().apply(x0_hat), lam) if lam else x0_hat

        for sampler, nfe in (("sde", 1), ("ode", 5), ("sde", 10)):
            generator = torch.Generator(x0.device).manual_seed(0)
            x0_hat = sample(denoise, self.ema.bridge, x1, nfe, sampler, generator=generator).x
            out[f"{sampler}-{nfe}"] = measures(x0_hat, x0)
        return out


def measures(x0_hat: Tensor, x0: Tensor) -> dict[str, float]:
    """PSNR, LPIPS and the share of the residual's power beyond half of the Nyquist frequency."""
    x0_hat = x0_hat.float().clamp(-1, 1)
    m = evaluate(x0_hat, x0, ["psnr", "lpips"])
    power = torch.fft.fft2(x0_hat - x0).abs().square().mean((0, 1))
    f = torch.fft.fftfreq(x0.shape[-1], device=x0.device)
    high = float(power[(f[:, None] ** 2 + f**2).sqrt() > 0.25].sum() / power.sum())
    return {"psnr": round(m["psnr"].value, 3), "lpips": round(m["lpips"].value, 5), "high": round(high, 4)}


def row(name: str, changed: str, config: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    hashed = {"config": config, "config_hash": config_hash(config)}
    return {"name": name, "changed": changed, **hashed, "values": values}


def references(x0: Tensor, x1: Tensor) -> list[dict[str, Any]]:
    """The blurred photographs themselves, and Tikhonov's inverse of them."""
    rows = [row("identity", "no network", {"reference": "identity"}, {"reference": measures(x1, x0)})]
    for lam in (3e-5, 1e-4, 2e-4, 3e-4, 1e-3):
        values, name = measures(GaussianBlur().inverse(x1, lam), x0), f"Tikhonov {lam:.0e}".replace("-0", "-")
        rows.append(row(name, "no network", {"reference": "tikhonov", "lam": lam}, {"reference": values}))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="embedded", help="training photographs")
    parser.add_argument("--out", type=Path, default=Path("data/runs/search"))
    parser.add_argument("--work", type=Path, default=Path("runs/search"), help="weights of the rows")
    args = parser.parse_args()
    file, source = args.out / "metrics.json", Path(args.data).name
    old = json.loads(file.read_text()) if file.exists() else {}
    rows = old.get("results", [])
    for variant in (v for v in VARIANTS if v.name not in {r["name"] for r in rows}):
        place = {"data": args.data, "out": str(args.work / variant.name), "progress": False}
        run = Run(TrainConfig(**BASE | place | variant.changes), variant)
        weights = args.work / f"{variant.of or variant.name}.pt"
        kinds = torch.load(weights, map_location=run.device) if variant.of and weights.exists() else {}
        if variant.average not in kinds:
            kinds = run.learn()
            atomic_write(weights, lambda path, kinds=kinds: torch.save(kinds, path))
        run.ema.load_state_dict(kinds[variant.average])
        rows = rows or references(*run.pairs(to_float(run.held)))
        beside = {f.name: getattr(variant, f.name) for f in dataclasses.fields(variant)[3:]}
        config = dataclasses.asdict(run.config) | {"data": source, "out": variant.name, "variant": beside}
        rows.append(row(variant.name, variant.changed, config, run.restore()))
        rows[-1]["parameters"] = sum(p.numel() for p in run.model.parameters())
        rows[-1] |= {"git_commit": git_commit(), "device": device_name(run.device)}
        if run.seconds:
            rows[-1]["images_per_second"] = round(run.step * run.config.batch_size / run.seconds, 1)
        images = {"images": len(run.batches.images), "fingerprint": run.fingerprint}
        record = {
            "data": {"source": source, **images},
            **{"seed": 0, "git_commit": git_commit(), "device": device_name(run.device)},
            "precision": run.host.precision,
            "held_out": {"images": len(run.held), "fingerprint": fingerprint(run.held)},
            "results": rows,
        }
        kept = ("data", "held_out", "precision")
        if any(old.get(k, record[k]) != record[k] for k in kept):
            raise SystemExit(f"{file}: holds a search with other photographs or another precision")
        record |= {k: old[k] for k in ("git_commit", "device") if k in old}  # of the first rows
        atomic_write(file, lambda path, record=record: path.write_text(json.dumps(record, indent=1) + "\n"))
        numbers = [v for m in rows[-1]["values"].values() for v in m.values()]
        print(f"{variant.name:26s}" + " ".join(f"{v:8.4f}" for v in numbers), flush=True)


if __name__ == "__main__":
    main()
