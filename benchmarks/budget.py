"""What a training run costs: parameters, resolution and GPUs to hours and memory, up to ImageNet-256.

Floating-point operations are counted (torch.utils.flop_counter, one for a multiplication and one for an
addition) on a device that has shapes and no numbers, and so are the bytes that the forward pass keeps for the
backward pass. All else is arithmetic with ASSUMED, which the record states; two of these were measured on one
H100 and are taken to hold elsewhere. On Linux the bytes are compared with what one step of a small network
takes on this CPU.

    python benchmarks/budget.py [--out data/runs/benchmarks/budget]
"""

import argparse
import json
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from i2sb_lib.config import PRESETS, config_hash
from i2sb_lib.data import sides
from i2sb_lib.devices import device_name
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.networks import UNet, create_network

ASSUMED: dict[str, Any] = {
    # dense half precision, as the makers state it, and the memory of a card
    "gpus": {"T4": {"flops": 65e12, "bytes": 15e9}, "A100": {"flops": 312e12, "bytes": 80e9},
             "H100": {"flops": 989e12, "bytes": 80e9}},
    "reached": 0.1,  # share of that: an H100's, with unet-full and 64 images of 64 x 64, see training-h100
    "passes": 3,  # a step's operations over those of its forward pass
    "scaling": 0.9,  # of several GPUs, each
    "bytes_a_value": 2,  # of what the forward pass keeps, under autocast
    "room": 1.9,  # of memory over that, for what lives for a moment, as on that H100; see memory_check
    "bytes_a_parameter": 20,  # weight, gradient, two moments and the average, in float32
}  # fmt: skip
# networks of the size that the published ImageNet models have, as this library would build it
WIDE: dict[str, Any] = {"channels": (256, 256, 512, 512, 1024, 1024), "blocks": 2, "attention": (3, 4, 5)}
IMAGENET = {"images": 1_281_167, "epochs": 100, "batch_size": 256, "size": 256}


def build(network: str) -> nn.Module:
    """A network that sees x_t and x1."""
    return UNet(6, 3, **WIDE) if network == "unet-wide" else create_network(network, 6)


def held(net: nn.Module, size: tuple[int, int], count: int) -> int:
    """Bytes of float32 that a forward pass of `count` images keeps, each tensor once, without the weights."""
    kept: dict[int, Any] = {}
    own = {p.untyped_storage()._cdata for p in net.parameters()}

    def keep(v: torch.Tensor) -> torch.Tensor:
        storage = v.untyped_storage()
        kept.update({} if storage._cdata in own else {storage._cdata: storage})
        return v

    place = next(net.parameters()).device
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda v: v):
        net(torch.empty(count, 6, *size, device=place), torch.empty(count, device=place))
    return sum(storage.nbytes() for storage in kept.values())


def measure(network: str, size: int | tuple[int, int]) -> dict[str, float]:
    """Parameters, operations of one image forwards, and bytes that it keeps in float32."""
    with torch.device("meta"):
        net = build(network)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            net(torch.empty(1, 6, *sides(size)), torch.empty(1))
    one, two = (held(net, sides(size), n) for n in (1, 2))
    parameters = sum(p.numel() for p in net.parameters())
    return {"parameters": parameters, "flops": counter.get_total_flops(), "held": two - one}


def cost(found: dict[str, float], images: float, batch: int, accumulate: int) -> dict[str, Any]:
    """Memory of one GPU that takes the whole batch in parts, and hours of each kind and number of GPUs."""
    a = ASSUMED
    state = a["bytes_a_parameter"] * found["parameters"]
    each = a["room"] * found["held"] * a["bytes_a_value"] / 4
    work = a["passes"] * found["flops"]
    hours = {
        f"{n} {name}": images
        * work
        / (gpu["flops"] * a["reached"] * n * (a["scaling"] if n > 1 else 1))
        / 3600
        for name, gpu in a["gpus"].items()
        for n in (1, 8, 64)
    }
    return {
        "memory": state + each * batch / accumulate,
        "images_at_a_time": {k: int((gpu["bytes"] - state) / each) for k, gpu in a["gpus"].items()},
        "hours": {k: float(f"{v:.3g}") for k, v in hours.items()},
    }


def checked(network: str = "unet-small", size: int = 64, count: int = 16) -> dict[str, float] | None:
    """Bytes of one forward and backward pass on this CPU, in float32: as counted, and as the system says."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None

    def anonymous() -> int:
        return int(status.read_text().split("RssAnon:")[1].split()[0]) * 1024

    net, done, peak = build(network), threading.Event(), [0]

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.001)

    def step(n: int) -> None:
        net(torch.rand(n, 6, size, size), torch.rand(n)).square().mean().backward()

    step(1)  # so that gradients and the libraries' own memory are there
    before = anonymous()
    threading.Thread(target=watch).start()
    step(count)
    done.set()
    counted = count * (held(net, (size, size), 2) - held(net, (size, size), 1))
    return {"counted": counted, "measured": peak[0] - before}


def rows() -> list[dict[str, Any]]:
    """The presets of the recommended networks, then ImageNet with two of them."""
    wanted = [
        (name, c.network, c.size, c.steps * c.batch_size, c.batch_size, c.accumulate)
        for name, c in PRESETS.items()
        if name.split("-")[0] in ("celeba64", "celeba128", "celeba256") and name.split("-")[1:] == ["deblur"]
    ]
    drawn, batch = IMAGENET["images"] * IMAGENET["epochs"], IMAGENET["batch_size"]
    wanted += [
        ("imagenet256", n, IMAGENET["size"], drawn, batch, k)
        for n, k in (("unet-full", 32), ("unet-wide", 256))
    ]
    out = []
    for name, network, size, images, batch, accumulate in wanted:
        found = measure(network, size)
        about = {"run": name, "network": network, "size": size, "images": images, "batch_size": batch}
        out.append({**about, "accumulate": accumulate, **found, **cost(found, images, batch, accumulate)})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/runs/benchmarks/budget"))
    args = parser.parse_args()
    config = {"assumed": ASSUMED, "wide": {k: str(v) for k, v in WIDE.items()}, "imagenet": IMAGENET}
    found = rows()
    kinds = ("1 T4", "1 A100", "8 A100", "8 H100", "64 H100")
    heads = f"{'run':16} {'network':10} {'side':>4} {'params':>7} {'GFLOP':>7} {'at once':>7} {'memory':>8}"
    print(f"{heads}  hours on", *kinds)
    for r in found:
        line = f"{r['run']:16} {r['network']:10} {r['size']:4} {r['parameters'] / 1e6:6.1f}M"
        line += (
            f" {r['flops'] / 1e9:7.1f} {r['batch_size'] // r['accumulate']:7} {r['memory'] / 1e9:5.1f} GB "
        )
        print(line, *(f"{r['hours'][k]:>{len(k) + 2}.3g}" for k in kinds))
    content = {
        "config": config,
        "config_hash": config_hash(config),
        "data": {"source": "shapes without pixels", "images": 0, "fingerprint": "none"},
        "seed": 0,
        "git_commit": git_commit(),
        "device": device_name(torch.device("cpu")),
        "torch": torch.__version__,
        "memory_check": checked(),
        "results": found,
    }
    print(f"memory of a small step, counted and measured: {content['memory_check']}")
    atomic_write(args.out / "metrics.json", lambda p: p.write_text(json.dumps(content, indent=1) + "\n"))


if __name__ == "__main__":
    main()
