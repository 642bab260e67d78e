r"""Weights on disk, and the model that restores with them.

A checkpoint is a folder with model.json (configuration, shards, the run's record), safetensors
shards of the averaged weights in float16, and, where it is shipped, a README.md: its model card.
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from i2sb_lib.denoiser import Denoiser, ModelConfig
from i2sb_lib.images import atomic_write, check_images
from i2sb_lib.samplers import Sampler, sample

SHARD_BYTES = 45_000_000
DEFAULT = "celeba64-deblur"
_PACKAGE = Path(__file__).parent
SHIPPED = [_PACKAGE / "pretrained", _PACKAGE.parent / "data" / "checkpoints"]  # installed, or a clone


def auto_precision(device: torch.device) -> str:
    """What this hardware computes in: "bf16", "fp16" on GPUs without it (T4), "no" for float32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    return "bf16" if getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() else "no"


def device_name(device: torch.device) -> str:
    """What a result was made on, for its record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def save_pretrained(folder: Path, model: Denoiser, record: dict[str, Any]) -> None:
    """Write float16 shards of at most 45 MB each, then model.json, to `folder`."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, weight in model.state_dict().items():
        value = weight.detach().to("cpu", torch.float16).contiguous()
        if shards[-1] and size + value.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += value.nbytes
    names = [f"model-{i + 1}-of-{len(shards)}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        atomic_write(folder / name, lambda p, shard=shard: save_file(shard, p))  # type: ignore[misc]
    content = {"model": dataclasses.asdict(model.config), "shards": names, "record": record}
    atomic_write(folder / "model.json", lambda p: p.write_text(json.dumps(content, indent=2) + "\n"))


def _mirror(x: Tensor, height: int, width: int) -> Tensor:
    """Continue x (B, C, H, W) below and to the right by reflection, as often as needed, or cut it."""
    for dim, size in ((-2, height), (-1, width)):
        n = x.shape[dim]
        period = max(1, 2 * (n - 1))
        i = torch.arange(size, device=x.device) % period
        x = x.index_select(dim, torch.minimum(i, period - i) if n > 1 else i)
    return x


@dataclass
class Pretrained:
    """A denoiser ready to restore: what `load_pretrained` returns. record: the run's own account."""

    denoiser: Denoiser
    record: dict[str, Any]
    folder: Path

    @torch.no_grad()
    def restore(
        self,
        x1: Tensor,
        nfe: int = 10,
        sampler: Sampler = "sde",
        seed: int = 0,
        *,
        power: float = 1.0,
        consistency: float = 0.0,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Clean estimates x0_hat (B, 3, H, W) in [-1, 1] of degraded images x1 of that form.

        nfe: network calls. sampler: see `samplers.sample`; "sde" for the sharpest, one step or
        "ode" for the smallest error. seed: of the sampler's noise, which must not repeat noise in x1:
        take another seed than made that. power: of the time grid, see `Schedule.grid`. consistency:
        weight lam of `Denoiser.consistent`, applied after each call; 0: not at all. batch_size: images at a
        time; 16 on a CPU, whose cache holds them, and 64 elsewhere unless given; each batch draws its own
        noise. Sides that the network cannot take are continued by reflection, 16 pixels at least, and
        cut back. The work is done on the model's device, in bfloat16 where it has that, and the result
        is on x1's. Raises ValueError for other input.
        """
        check_images(x1, "restore")
        if not 0 <= consistency < float("inf"):
            raise ValueError(f"expected a finite consistency of at least 0, got {consistency}")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"expected a batch_size of at least 1, got {batch_size}")
        if self.denoiser.config.process == "regression" and nfe != 1:
            raise ValueError(f"a regression restores in one network call, got nfe={nfe}")
        device = next(self.denoiser.parameters()).device
        stride: int = self.denoiser.net.stride  # type: ignore[assignment]
        native = x1.shape[-2:]
        # where a side does not fit, go on by reflection: so far that the network's border does not matter
        padded = [n if n % stride == 0 else n + 16 + -(n + 16) % stride for n in native]
        # and, for the guess, on to the next mirror, where the blur's own border is that reflection
        whole = [
            n if n == m or n == 1 else (n - 1) * -(-(m - 1) // (n - 1)) + 1
            for n, m in zip(native, padded, strict=True)
        ]
        generator = torch.Generator(device).manual_seed(seed)
        times = self.denoiser.bridge.schedule.grid(nfe, power)
        kind = auto_precision(device)
        dtype = torch.float16 if kind == "fp16" else torch.bfloat16

        def denoise(xt: Tensor, t: Tensor, y: Tensor, x1: Tensor, g: Tensor) -> Tensor:
            x0_hat = self.denoiser(xt, t, y, g)
            if not consistency:
                return x0_hat
            return _mirror(self.denoiser.consistent(_mirror(x0_hat, *native), x1, consistency), *padded)

        out = []
        size = batch_size or (16 if device.type == "cpu" else 64)
        for part in tqdm(x1.float().split(size), unit="batch", disable=None if progress else True):
            part = part.to(device)
            y = _mirror(part, *padded)
            g = _mirror(self.denoiser.guess(_mirror(part, *whole)), *padded)
            with torch.autocast(device.type, dtype, enabled=kind != "no"):
                samples = sample(
                    lambda xt, t, seen=(y, part, g): denoise(xt, t, *seen),  # type: ignore[misc]
                    self.denoiser.bridge,
                    y,
                    nfe,
                    sampler,
                    times=times,
                    generator=generator,
                )
            out.append(_mirror(samples.x, *native).clamp(-1, 1).to(x1.device))
        return torch.cat(out)


def load_pretrained(name: str | Path = DEFAULT, device: str | torch.device | None = None) -> Pretrained:
    """The model of a checkpoint, in float32 on `device` (a GPU where there is one).

    name: one that is shipped, the folder of a run or checkpoint, or a hub id.
    Raises ValueError where there is no such checkpoint or a file of it is missing or damaged.
    """
    path = next((p for p in [Path(name), *(s / name for s in SHIPPED)] if (p / "model.json").exists()), None)
    if path is None and re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) and not Path(name).exists():
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(str(name)))
        except Exception as error:  # the hub's client has no common base class for its errors
            raise ValueError(f"{name}: expected a checkpoint or a reachable hub id: {error}") from None
    if path is None:
        known = sorted({p.parent.name for s in SHIPPED for p in s.glob("*/model.json")})
        raise ValueError(f"expected one of {known} or a folder with model.json, got {str(name)!r}")
    try:
        content = json.loads((path / "model.json").read_text())
        weights = {k: v for shard in content["shards"] for k, v in load_file(path / shard).items()}
        content["model"]["moments"] = tuple(content["model"]["moments"])
        denoiser = Denoiser(ModelConfig(**content["model"]))
        denoiser.load_state_dict({k: v.float() for k, v in weights.items()})
        record = content["record"]
    except Exception as error:
        raise ValueError(f"{path}: expected a complete checkpoint, got: {error}") from error
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    denoiser = denoiser.to(device, memory_format=torch.channels_last).requires_grad_(False).eval()  # type: ignore[call-overload]
    return Pretrained(denoiser, record, path)
