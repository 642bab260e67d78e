"""How fast is a restoration, beside the sampler of the published code? And against batch, size, a cold start.

    ours       `restore` with the flagship as it is unless told: five calls of "dbim", corrected a little
    ours N     the same in N calls of "sde"
    student    `restore` with `celeba64-deblur-student` as it is unless told: one call, corrected a little
    published  the pattern of `ddpm_sampling` in the code of [Liu 2023], written here for this: float32,
               contiguous, a table of steps, and at each the time's features, the network, the estimate
               clamped, the state carried on, noise for the batch, and a copy of the estimate kept on the
               host. The same weights, in 100 steps; 1000 are taken to cost ten times as much
    report     that with the network of [Zaytsev 2024], 100 steps. Its weights are not trained, which does not
               change the time; the record of `celeba64-deblur-cunet` has the quality of trained ones

All restore the same photographs, and LPIPS is that of the whole walks. A call of the network is timed in
pairs, the walks once each. The other parts: images a second against batch and size, with the peak memory of a
process of its own; the flagship's guess against size; and from an interpreter's start to the first restored
image, in turns with `import torch` alone. Seconds are those of one core.

    python benchmarks/restoring.py [--data PATH] [--photos 16] [--sizes 64 … 2048] [--quick]
"""

import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import median, options, peak_of, ratio, turns, write
from torch import Tensor, nn

from i2sb_lib.bridge import expand
from i2sb_lib.checkpoints import DEFAULT, Pretrained, load_pretrained
from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.degradations import create_degradation
from i2sb_lib.denoiser import Denoiser
from i2sb_lib.evaluation import MetricUnavailable, bootstrap, evaluate
from i2sb_lib.images import to_float
from i2sb_lib.networks import create_network
from i2sb_lib.operators import Separable, _factors

FLAGSHIP = "celeba64-deblur"
WALKS: dict[str, tuple[str, int | None]] = {  # model and calls
    "ours": (FLAGSHIP, None), **{f"ours {n}": (FLAGSHIP, n) for n in (10, 3, 2)},
    "student": (f"{FLAGSHIP}-student", None),
}  # fmt: skip


@torch.no_grad()
def published(denoiser: Denoiser, net: nn.Module, x1: Tensor, steps: int, calls: int | None = None) -> Tensor:
    """The walk in `steps` steps, or its first `calls` of them; the last estimate."""
    bridge, times = denoiser.bridge, denoiser.bridge.schedule.grid(steps).float()
    std = bridge.schedule.var_fwd(times).sqrt()
    g = denoiser.guess(x1)
    told, log, xt = denoiser.config.tikhonov > 0, [], x1
    for n in range(calls or steps):
        t = torch.full((len(x1),), float(times[n]))
        s = denoiser.scalings(expand(t, xt))
        raw = net(torch.cat([s.in_t * xt, s.in_1 * x1, *[s.in_1 * g] * told], 1).contiguous(), t)
        x0_hat = (s.skip_t * xt + s.skip_1 * x1 + s.skip_g * g + s.out * raw).clamp(-1, 1)
        log.append(x0_hat.cpu().clone())
        share = (std[n + 1] / std[n]) ** 2  # of x_t in the mean of p(x_s | x0_hat, x_t)
        xt = share * xt + (1 - share) * x0_hat
        if n < steps - 1:
            xt = xt + std[n + 1] * (1 - share).sqrt() * torch.randn_like(xt)
    return x0_hat


def plain(net: nn.Module) -> nn.Module:
    """The network in the layout that PyTorch gives by default."""
    return net.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]


def quality(x: Tensor, x0: Tensor, theirs: Tensor) -> dict[str, Any]:
    """PSNR, LPIPS, and how much that is above the published walk's, with an interval; PSNR alone offline."""
    try:
        psnr, lpips = evaluate(x, x0, ["psnr", "lpips"]).values()
        other = evaluate(theirs, x0, ["lpips"])["lpips"]
    except MetricUnavailable:
        return {"psnr": evaluate(x, x0, ["psnr"])["psnr"].value}
    assert lpips.per_image is not None
    assert other.per_image is not None
    above = bootstrap(lpips.per_image - other.per_image)
    return {"psnr": psnr.value, "lpips": lpips.value, "lpips_above_published": list(above[:3])}


def compare(model: Pretrained, x0: Tensor, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of a call in pairs, seconds and LPIPS of whole walks, and their ratios."""
    x1 = create_degradation("blur-gauss", quantise=True)(x0)
    peer, report = plain(load_pretrained(FLAGSHIP, "cpu").denoiser.net), plain(create_network("cunet", 9))
    few = x1[:4]
    call = turns(
        rounds,
        ours=partial(model.restore, few, 3),
        published=partial(published, model.denoiser, peer, few, 1000, 3),
        report=partial(published, model.denoiser, report, few, 100, 3),
    )
    share, out = ratio(call, "report", "published"), dict[str, Tensor]()
    models = {name: load_pretrained(name, "cpu") for name, _ in WALKS.values()}
    walks = {name: partial(models[which].restore, x1, nfe) for name, (which, nfe) in WALKS.items()}
    walks["published"] = partial(published, model.denoiser, peer, x1, steps)
    torch.manual_seed(0)
    kept = {
        name: partial(lambda n, walk: out.update({n: walk()}), name, walk) for name, walk in walks.items()
    }
    seconds = {name: v[0] for name, v in turns(1, warm=False, **kept).items()}
    rows = []
    for name, x in out.items():
        calls = steps
        if name != "published":
            which, nfe = WALKS[name]
            calls = len(models[which].recommended(nfe)[0]) - 1 - ("start" in models[which].record)
        row = {"walk": name, "calls": calls, "seconds": seconds[name], **quality(x, x0, out["published"])}
        if name != "published":
            step = seconds["published"] / steps / seconds[name]  # of one of the peer's
            times = {f"published, {steps}": steps, "published, 1000": 1000, "report, 100": 100 * share}
            row["times_as_fast_as"] = {name: count * step for name, count in times.items()}
        rows.append(row)
    return {
        "photographs": len(x0),
        "call": {
            "seconds_an_image": {k: median(v) / 3 / len(few) for k, v in call.items()},
            "published_over_ours": ratio(call, "published", "ours"),
            "report_over_published": share,
        },
        "walks": rows,
    }


def once(side: int, count: int) -> None:
    load_pretrained(DEFAULT, "cpu").restore(torch.zeros(count, 3, side, side) - 0.1)


def throughput(x0: Tensor, batches: list[int], sizes: list[int], rounds: int, memory: bool) -> dict[str, Any]:
    """The default model, one call: images a second by batch at 64 x 64, megapixels a second by side."""
    model = load_pretrained(DEFAULT, "cpu")
    many = x0.repeat(-(-max(batches) // len(x0)), 1, 1, 1)
    calls = {str(n): partial(model.restore, many[:n], batch_size=n) for n in batches}
    found = turns(rounds, **calls)
    by_batch = [{"batch": n, "images_a_second": n / median(found[str(n)])} for n in batches]
    by_size = []
    for side in sizes:
        tiles, small = -(-side // 64), side <= 256
        x = x0[:1].repeat(1, 1, tiles, tiles)[..., :side, :side]
        seconds = median(turns(rounds if small else 1, warm=small, one=partial(model.restore, x))["one"])
        row = {"side": side, "seconds": seconds, "megapixels_a_second": side**2 / seconds / 1e6}
        by_size.append(row | ({"bytes": peak_of(once, side, 1)} if memory else {}))
    return {"model": DEFAULT, "by_batch": by_batch, "by_size": by_size}


def guesses(model: Pretrained, sizes: list[int]) -> list[dict[str, Any]]:
    """Seconds of the Tikhonov guess by side: its factors, once for each side, and the guess itself."""
    operator, rows = model.denoiser.operator, []
    assert isinstance(operator, Separable)
    for side in sizes:
        other = create_degradation("blur-gauss", sigma=2.0 + 1e-6)  # whose factors nobody has asked for
        assert isinstance(other, Separable)
        y = torch.rand(1, 3, side, side) * 2 - 1
        factors = turns(1, warm=False, one=partial(_factors, other, side, y.device))["one"][0]
        rows.append({
            "side": side, "factors": factors,
            "apply": median(turns(3, one=partial(other.inverse, y, model.denoiser.config.tikhonov))["one"]),
        })  # fmt: skip
    return rows


COLD = """
import i2sb_lib, numpy
model = i2sb_lib.load_pretrained(device="cpu")
model.restore(numpy.full((64, 64, 3), 100, numpy.uint8))
"""


def start(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def main() -> None:
    parser = options(__doc__, "restoring")
    parser.add_argument("--data", default="embedded", help="photographs: what load_images takes")
    parser.add_argument("--photos", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--guesses", type=int, nargs="+", default=[64, 256, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.quick:
        args.photos, args.steps, args.batches, args.sizes, args.guesses = 1, 6, [1], [64], [64]
        args.rounds = 1
    torch.set_num_threads(1)
    x0 = to_float(load_images(args.data, None, 64, progress=False)[: args.photos])
    model = load_pretrained(FLAGSHIP, "cpu")
    walked = compare(model, x0, args.rounds, args.steps)
    one = walked["call"]["seconds_an_image"]
    print("seconds of a call and image: " + ", ".join(f"{k} {v:.4f}" for k, v in one.items()))
    for r in walked["walks"]:
        said = (
            f"{r['walk']:18} {r['calls']:4} calls {r['seconds']:7.2f} s, LPIPS {r.get('lpips', math.nan):.4f}"
        )
        print(said, *(f"{v:.1f} x {k}" for k, v in r.get("times_as_fast_as", {}).items()), sep="; ")
    speed = throughput(x0, args.batches, args.sizes, args.rounds, not args.quick)
    print(
        "images/s by batch: "
        + ", ".join(f"{r['batch']}: {r['images_a_second']:.1f}" for r in speed["by_batch"])
    )
    for r in speed["by_size"]:
        said = f"{r['side']:5}^2 {r['seconds']:8.2f} s {r['megapixels_a_second']:.4f} MP/s"
        print(said, f"{r['bytes'] / 1e6:.0f} MB" if "bytes" in r else "")
    parts = guesses(model, args.guesses)
    for r in parts:
        print(f"guess {r['side']:5}^2: factors {r['factors']:.3f} s, apply {r['apply']:.3f} s")
    cold = turns(
        args.rounds, not args.quick, torch=partial(start, "import torch"), first=partial(start, COLD)
    )
    beside = ratio(cold, "first", "torch")
    print(
        f"first image after a cold start: {beside:.2f} times `import torch` ({median(cold['torch']):.2f} s)"
    )
    config = {k: v for k, v in vars(args).items() if k not in ("out", "quick")} | {
        "data": Path(args.data).name
    }
    data = {"source": config["data"], "images": len(x0), "fingerprint": fingerprint(x0)}
    starts = {"seconds": {k: median(v) for k, v in cold.items()}, "first_image_over_import_torch": beside}
    results = {"walks": walked, "throughput": speed, "guess": parts, "cold_start": starts}
    write(args, config, data, checkpoint=FLAGSHIP, results=results)


if __name__ == "__main__":
    main()
