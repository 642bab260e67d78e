"""Would another normalisation pay? Seconds of a training step with each, and what the fastest learns.

    group      `GroupNorm`, as the networks have it; autocast makes it float32
    bfloat16   the same in the precision of what it is given
    layer      `LayerNorm` over the channels of each pixel, which lie side by side in memory
    none       no normalisation: the ceiling

A step is forward, backward and AdamW on one batch, in turns in one process. The trainings are rows
of `search.py` ("told, both": `unet-tiny`, 400 steps), one seed after the other, measured on photographs that
were set aside.

    python benchmarks/normalisation.py --data PATH [--seeds 0 1] [--network unet-small] [--quick]
"""

import copy
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import search
import torch
import torch.nn.functional as F
from captured import Norm
from timing import median, options, ratio, turns, write
from torch import Tensor, nn

from i2sb_lib.config import TrainConfig
from i2sb_lib.data import fingerprint
from i2sb_lib.denoiser import Denoiser, ModelConfig
from i2sb_lib.devices import auto_precision


class Layer(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)
        return F.layer_norm(pixels, pixels.shape[-1:], self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class Nothing(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return x


KINDS: dict[str, type[nn.GroupNorm]] = {
    "group": nn.GroupNorm, "bfloat16": Norm, "layer": Layer, "none": Nothing
}  # fmt: skip


def exchanged(net: Any, kind: str) -> Any:
    """The network with another normalisation in the place of each of its own, and their weights."""
    for module in net.modules():
        if isinstance(module, nn.GroupNorm):
            module.__class__ = KINDS[kind]
    return net


def steps(network: str, batch: int, side: int, rounds: int) -> dict[str, Any]:
    """Seconds of a step with each kind, and how many times as fast as with `group`."""
    cpu, calls = torch.device("cpu"), dict[str, Any]()
    first = Denoiser(ModelConfig(network)).place(cpu)
    x0, x1, noise = torch.randn(3, batch, 3, side, side).clamp(-1, 1)
    t, half = torch.linspace(0.05, 1, batch), auto_precision(cpu) == "bf16"

    def step(model: Denoiser, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model.loss(x0, x1, t, noise).mean()
        loss.backward()
        optimizer.step()

    for kind in KINDS:
        model = exchanged(copy.deepcopy(first), kind)
        calls[kind] = partial(step, model, torch.optim.AdamW(model.parameters(), 1e-4, fused=True))
    found = turns(rounds, **calls)
    return {
        "seconds": {k: median(v) for k, v in found.items()},
        "times_as_fast": {k: ratio(found, "group", k) for k in KINDS},
        "precision": "bf16" if half else "float32",
    }


class Run(search.Run):
    kind = "group"

    def _build(self) -> Denoiser:
        return exchanged(super()._build(), self.kind)


def learnt(data: str, kind: str, seed: int, **changes: Any) -> tuple[dict[str, Any], str]:
    """The metrics of the search's walks after a training with this kind, and the photographs' fingerprint."""
    variant = search.Variant(f"{kind}, seed {seed}", "normalisation", search.BOTH | {"seed": seed} | changes)
    with tempfile.TemporaryDirectory() as out:
        config = TrainConfig(**search.BASE | {"data": data, "out": out, "progress": False} | variant.changes)
        run = type("Run", (Run,), {"kind": kind})(config, variant)
        run.ema.load_state_dict(run.learn()["ema"])
        return {"kind": kind, "seed": seed, **run.restore()}, run.fingerprint


def main() -> None:
    parser = options(__doc__, "normalisation")
    parser.add_argument("--data", default="embedded", help="training photographs")
    parser.add_argument("--network", default="unet-small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    changes: dict[str, Any] = {}
    if args.quick:
        args.network, args.batch, args.rounds, args.seeds = "unet-tiny", 2, 1, [0]
        changes = {"steps": 1, "batch_size": 2, "holdout": 2}
    torch.set_num_threads(1)
    cost = steps(args.network, args.batch, 64, args.rounds)
    for kind, seconds in cost["seconds"].items():
        print(
            f"{kind:10s} {seconds:.3f} s a step, {cost['times_as_fast'][kind]:.2f} times as fast", flush=True
        )
    rows, seen = [], fingerprint(torch.zeros(1, dtype=torch.uint8))
    for seed in args.seeds:
        for kind in ("group", "layer"):
            found, seen = learnt(args.data, kind, seed, **changes)
            rows.append(found)
            print(found, flush=True)
    config = {k: v for k, v in vars(args).items() if k not in ("out", "quick")}
    config |= {"data": Path(args.data).name}
    data = {"source": config["data"], "fingerprint": seen}
    write(args, config, data, results={"step": cost, "trainings": rows})


if __name__ == "__main__":
    main()
