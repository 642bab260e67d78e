"""The model that restores: a denoiser, walked from a degraded picture to a clean estimate."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from i2sb_lib.denoiser import Denoiser
from i2sb_lib.devices import auto_precision
from i2sb_lib.images import check_images
from i2sb_lib.samplers import Sampler, sample


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
