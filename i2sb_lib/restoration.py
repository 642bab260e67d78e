"""The model that restores: a denoiser, walked from a degraded picture to a clean estimate."""

import contextlib
import copy
import sys
from collections.abc import Sequence
from functools import cache, partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from i2sb_lib.blurs import GaussianBlur
from i2sb_lib.config import create_pair_maker
from i2sb_lib.denoiser import Denoiser
from i2sb_lib.devices import auto_precision
from i2sb_lib.estimation import LEAST, estimate_sigma
from i2sb_lib.faults import is_out_of_memory, warn
from i2sb_lib.images import check_images, quantise, taken
from i2sb_lib.operators import Separable
from i2sb_lib.progress import progress as progress_bar
from i2sb_lib.samplers import Sampler, check_sampler, generators, sample
from i2sb_lib.tiles import WINDOW, Windows

LEAST_SIDE = 32  # pixels of a side, below which `fit` takes many a picture for another kind
FACTORS = 1024  # pixels of a side above which those of a blur take more than a moment
POSSIBLE = 1.4  # of `Restorer.fit`: what hardly any image of the model's kind is above


def _mirror(x: Tensor, height: int, width: int) -> Tensor:
    """Continue x (B, C, H, W) below and to the right by reflection, as often as needed, or cut it."""
    for dim, size in ((-2, height), (-1, width)):
        n = x.shape[dim]
        if n == size:
            continue
        period = max(1, 2 * (n - 1))
        i = torch.arange(size, device=x.device) % period
        x = x.index_select(dim, torch.minimum(i, period - i) if n > 1 else i)
    return x


@cache
def _announce(height: int, width: int) -> None:
    """Say once what comes before the first call; the factors are remembered, too."""
    said = f"i2sb: {height} x {width}: first the blur's factors, once for each size"
    print(said, file=sys.stderr, flush=True)


class Restorer(nn.Module):
    """A denoiser ready to restore. record: the account of the run that trained it."""

    def __init__(self, denoiser: Denoiser, record: dict[str, Any], folder: Path) -> None:
        super().__init__()
        self.denoiser, self.record, self.folder = denoiser, record, folder

    def __repr__(self) -> str:
        name = f"{self.folder.name}, for {self.made_for}"
        return f"{type(self).__name__}({name}: {self.denoiser} on {self.device})"

    @property
    def made_for(self) -> str:
        """The damage that its training undid, and on which pictures: what it restores, and no other."""
        how = self.record.get("training") or {}
        try:
            damage = create_pair_maker(how)
        except (KeyError, ValueError):  # of one's own, or not on record
            return f"damage of its own on {how.get('data', 'pictures of its own')}"
        return f"{damage} on {how['data']}"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.denoiser.parameters()).device

    @torch.no_grad()
    def fit(self, x1: Any) -> Tensor:
        """How far each image is from what the model's blur can make (N,): about 1 where it can be such a one.

        x1: as `restore` takes it. Singular components of H x0 + n as weak as the noise n hold that and little
        else: this is the mean square of those from 1 to 3.2 times its deviation, over its variance, which
        rounding to 8 bits and the noise of the training make. (Weaker ones show no blur, the right or the
        wrong.) Above 1.4 a photograph is sharper, of another blur, noisier, or was a JPEG; small or plain
        ones of another blur may stay below, and what is no photograph (text, pixel art) or has a side below
        32 pixels may be above; one too small to have such a component has nan. Raises ValueError for other
        input, and where the model was trained with no such blur or no noise.
        """
        how, operator = self.record.get("training") or {}, self.denoiser.operator
        variance = (2 / 255) ** 2 / 12 * bool(how.get("quantise")) + (2 * how.get("noise", 0.0)) ** 2
        if not isinstance(operator, Separable) or not variance:
            raise ValueError(f"{self.folder.name}: expected a model of a separable blur and of noise")
        high, channels = min(0.1, 3.2 * variance**0.5), self.denoiser.config.channels
        some = [check_images(x1, "fit", channels)] if isinstance(x1, Tensor) else taken(x1, channels)[0]
        images = [x if x.ndim == 4 else x[None] for x in some]
        return torch.cat([operator.weak(x, high / 3.2, high) for x in images]) / variance

    def _warn_of_misfits(self, x1: Tensor) -> None:
        """One sentence where images cannot be of the model's kind; none where that is not known cheaply."""
        if max(x1.shape[-2:]) > WINDOW and not self.denoiser.config.tikhonov:
            return  # the blur's factors, which the model does without, would take long
        if min(x1.shape[-2:]) < LEAST_SIDE:
            return
        with contextlib.suppress(ValueError):
            misfits, operator = self.fit(x1) > POSSIBLE, self.denoiser.operator
            if count := int(misfits.sum()):
                kind = "the image does not look like a photograph under the"
                if len(x1) > 1:
                    kind = f"{count} of {len(x1)} images do not look like photographs under the"
                kind += f" {operator} that this model was made for"
                if isinstance(operator, GaussianBlur) and min(x1.shape[-2:]) >= LEAST:
                    sigma = float(estimate_sigma(x1[misfits][:1], operator.kernel_size))
                    how = f"more like sigma {sigma:.1f}"
                    if abs(sigma - operator.sigma) < 0.25:
                        how = "as wide, with other taps, borders, noise"
                    kind += f" ({'it is' if len(x1) == 1 else 'the first is'} {how}, or a JPEG)"
                warn(f"restore: {kind}: what comes out may be worse than what went in; try the default model")

    @property
    def alone(self) -> bool:
        """Whether it restores in one network call, and in no other number: a regression, or a student."""
        return self.denoiser.config.process == "regression" or "start" in self.record

    def walk(
        self, nfe: int | None = None, sampler: Sampler | None = None, **more: float | None
    ) -> dict[str, Any]:
        """A walk's nfe, sampler, power and consistency: unless nfe is given, as the record recommends."""
        how = dict[str, Any](nfe=1 if self.alone else 10, sampler="sde", power=1.0, consistency=0.0)
        how |= {k: self.record[k] for k in how if nfe is None and k in self.record}
        given: dict[str, Any] = {"nfe": nfe, "sampler": sampler, **more}
        return how | {k: v for k, v in given.items() if v is not None}

    def recommended(
        self,
        nfe: int | None = None,
        sampler: Sampler | None = None,
        power: float | None = None,
        consistency: float | None = None,
    ) -> tuple[Tensor, Sampler, float]:
        """The times (nfe + 1,) of a walk, see `Schedule.grid`, its sampler and its consistency.

        What is not given is as in `walk`. A student's walk has one time more, 1, start, 0: it takes the
        guess for its first answer, and its one call is at `start`. ValueError for what cannot be.
        """
        how = self.walk(nfe, sampler, power=power, consistency=consistency)
        lam = how["consistency"]
        if not (isinstance(lam, Real) and 0 <= lam < 10**9):  # type: ignore[operator]
            raise ValueError(f"expected a finite consistency of at least 0, got {lam!r:.40}")
        if lam and not isinstance(self.denoiser.operator, Separable):
            raise ValueError(f"consistency needs a separable blur, got {self.made_for}")
        check_sampler(how["sampler"], self.denoiser.bridge)
        start, process = self.record.get("start"), self.denoiser.config.process
        if start and process != "bridge":
            raise ValueError(f"expected start of a bridge's student, got a {process}")
        if self.alone and (how["nfe"], how["power"]) != (1, 1.0):
            kind, got = "student" if start else process, f"nfe={how['nfe']!r:.40}, power={how['power']!r:.40}"
            raise ValueError(f"a {kind} restores in one network call (nfe 1, power 1), got {got}")
        if start:
            return torch.tensor([1.0, start, 0.0], dtype=torch.float64), how["sampler"], float(lam)
        return self.denoiser.bridge.schedule.grid(how["nfe"], how["power"]), how["sampler"], float(lam)

    @torch.no_grad()
    def restore(
        self,
        x1: Any,
        nfe: int | None = None,
        sampler: Sampler | None = None,
        seed: int | Sequence[int] = 0,
        *,
        power: float | None = None,
        consistency: float | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Any:
        """Clean estimates x0_hat of degraded images x1, in the form that x1 has.

        x1: floats (B, C, H, W) in [-1, 1]; or a picture: one of Pillow's, uint8 (H, W[, C]), or the path of
        its file, which comes back as Pillow's, grey as the model's C channels; or a list of pictures of any
        sizes, or uint8 (B, H, W, C). nfe: network calls; unless given, the walk is what the model's record
        recommends, or ten steps of the sampler "sde", one of a regression or student. sampler: see
        `samplers.sample`; "sde", which it is where nfe alone is given, for sharpness, one step or "ode" for
        the smallest error.
        seed: of the sampler's noise, a whole number or one for each image; an image's noise is that of its
        seed and position, alone or in any batch, on any device. power: of the time grid, see `Schedule.grid`.
        consistency: weight lam of `Denoiser.consistent`, applied after each call; 0: not at all. batch_size:
        images at a time; unless given as many as have the pixels of 16 of 64 x 64 on a CPU, whose cache holds
        them, and of 64 elsewhere. progress: show how far the work is. Sides that the network cannot take are
        continued by reflection, 16 pixels at least, and cut back. Above 512 pixels the network sees
        overlapping windows, whose estimates are blended at each step. The work is done on the model's device,
        in bfloat16 where it has that, whatever type the weights are kept in (`.half`), and the result is on
        x1's, in float32 where x1 is floats. What would change by less than the record's least_change (grey
        levels, root mean square) comes back as it is; with its grey_stays, what has no colour comes back with
        none. Raises ValueError for other input, and MemoryError.
        """
        if batch_size is not None and not (isinstance(batch_size, Integral) and 1 <= batch_size is not True):
            raise ValueError(f"expected a whole batch_size of at least 1, got {batch_size}")
        times, sampler, consistency = self.recommended(nfe, sampler, power, consistency)
        walk = partial(self._walk, sampler=sampler, times=times, consistency=consistency)
        walk = partial(walk, batch_size=batch_size, progress=progress)
        if isinstance(x1, Tensor):
            check_images(x1, "restore", self.denoiser.config.channels)
            if float(x1.min()) >= 0 and float(x1.max()) > 0 and not torch.allclose(x1, quantise(x1).to(x1)):
                warn("restore: no value is below 0: give images in [0, 1] as 2 * x1 - 1, in [-1, 1]")
            return walk(x1, generators(seed, len(x1)))
        pictures, back = taken(x1, self.denoiser.config.channels)
        drawn = generators(seed, len(pictures))
        for size in {picture.shape for picture in pictures}:
            some = [i for i, picture in enumerate(pictures) if picture.shape == size]
            restored = walk(torch.stack([pictures[i] for i in some]), [drawn[i] for i in some])
            for i, picture in zip(some, restored, strict=True):
                pictures[i] = picture
        return back(pictures)

    def _walk(
        self,
        x1: Tensor,
        drawn: list[torch.Generator],
        sampler: Sampler,
        times: Tensor,
        consistency: float,
        batch_size: int | None,
        progress: bool,
    ) -> Tensor:
        """x0_hat of a batch, each image with the noise of its generator, on the grid `times`."""
        self._warn_of_misfits(x1)
        device, stride, native = self.device, self.denoiser.stride, x1.shape[-2:]
        # where a side does not fit, go on by reflection: so far that the network's border does not matter
        padded = [n if n % stride == 0 or n > WINDOW else n + 16 + -(n + 16) % stride for n in native]
        # and, for the guess, on to the next mirror, where the blur's own border is that reflection
        whole = [
            m if m == n or n == 1 else (n - 1) * -(-(m - 1) // (n - 1)) + 1
            for n, m in zip(native, padded, strict=True)
        ]
        whole = list(native) if self.denoiser.config.wiener else whole  # which looks at its borders
        windows, guessed = Windows(padded[0], padded[1], stride), "start" in self.record
        nfe = len(times) - 1 - guessed
        size = batch_size or max(1, (16 if device.type == "cpu" else 64) * 64**2 // (padded[0] * padded[1]))
        kind = auto_precision(device)
        dtype = torch.float16 if kind == "fp16" else torch.bfloat16
        autocast = torch.autocast(device.type, dtype) if kind != "no" else contextlib.nullcontext()
        least, stays = self.record.get("least_change", 0.0), self.record.get("grey_stays", False)
        calls = nfe * len(windows) * -(-len(x1) // size)
        exact = all(p.dtype == torch.float32 for p in self.denoiser.parameters())
        denoiser = self.denoiser if exact else copy.deepcopy(self.denoiser).float()  # after .half
        if progress and max(native) > FACTORS and (self.denoiser.config.tikhonov or consistency):
            _announce(*native)

        def restored(part: Tensor, drawn: list[torch.Generator]) -> Tensor:
            # on a CPU one at a time: Wiener's last bit depends on the batch, and bfloat16 makes a level of it
            few = 1 if self.denoiser.config.wiener and device.type == "cpu" else len(part)
            guesses = [self.denoiser.guess(x) for x in _mirror(part, *whole).split(few)]
            y, g = _mirror(part, *padded), _mirror(torch.cat(guesses), *padded)
            if not bar.n:
                bar.unpause()  # the estimate is of the calls, and the first guess may take minutes

            def denoise(xt: Tensor, t: Tensor) -> Tensor:
                if guessed and xt is y:  # a student's first answer
                    return g

                def call(*seen: Tensor) -> Tensor:
                    bar.update()
                    return denoiser(seen[0], t, *seen[1:])

                x0_hat = windows(call, xt, y, g)
                if not consistency:
                    return x0_hat
                return _mirror(self.denoiser.consistent(_mirror(x0_hat, *native), part, consistency), *padded)

            walk = sample(denoise, self.denoiser.bridge, y, nfe, sampler, times=times, generator=drawn)
            return _mirror(walk.x, *native).clamp(-1, 1)

        out = torch.empty(x1.shape, device=x1.device)
        try:
            with autocast, progress_bar(total=calls, desc="restoring", unit="calls", show=progress) as bar:
                for i in range(0, len(x1), size):
                    part = x1[i : i + size].float().to(device)
                    out[i : i + size] = restored(part, drawn[i : i + size])
                    for y, x in zip(out[i : i + size], x1[i : i + size], strict=True):
                        if stays and torch.equal(x, x[:1].expand_as(x)):
                            y.copy_(y.mean(0).expand_as(y))
                        if least and 127.5 * (y - x).square().mean().sqrt() < least:
                            y.copy_(x)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            shape = f"{min(size, len(x1))} of {native[0]} x {native[1]}"
            advice = "a smaller batch_size" if size > 1 else "smaller images or a device with more memory"
            raise MemoryError(f"{shape} pixels at a time are too many for {device}: take {advice}") from None
        return out
