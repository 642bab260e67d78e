r"""How good is a restoration? Well-kept libraries measure; this module guards what they are fed.

Both batches are rounded to 8 bits, as files would be, and must have one shape: an FID between images
of two sizes, or images in [0, 1] where [-1, 1] is meant, gives a number that means nothing.
"""

import importlib.util
import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import TensorDataset

from i2sb_lib.data import cache_dir, fingerprint
from i2sb_lib.faults import told, warn
from i2sb_lib.images import check_images, psnr, quantise, to_uint8

METRICS = ("psnr", "ssim", "lpips", "fid", "kid")
_NEEDS = {"ssim": "torchmetrics", "lpips": "lpips", "fid": "torch_fidelity", "kid": "torch_fidelity"}
EXTRA = 'pip install "i2sb-lib[metrics]"'
_SIDE = {"ssim": 6, "lpips": 31}  # smallest images: half its window, and AlexNet's first layers


class Metric(NamedTuple):
    """A mean with its 95% interval (equal to it where none is known) and the values of each image."""

    value: float
    low: float
    high: float
    per_image: Tensor | None = None


class MetricUnavailable(RuntimeError):
    """A metric's package or pretrained weights cannot be had; the message says which."""


def bootstrap(values: Tensor, n: int = 2000, seed: int = 0) -> Metric:
    """Mean of values (N,) with the 2.5% and 97.5% quantiles of the mean over n resamplings.

    Where a value is infinite or nan, the interval is the mean itself. ValueError for other shapes, for no
    values and for no resamplings.
    """
    if not isinstance(values, Tensor) or values.ndim != 1 or not len(values) or n < 1:
        raise ValueError(f"bootstrap: expected a tensor (N,) and n, N, n >= 1, got {told(values)}, n={n}")
    generator = torch.Generator().manual_seed(seed)
    values = values.detach().double().cpu()
    means = values[torch.randint(len(values), (n, len(values)), generator=generator)].mean(1)
    if not bool(values.isfinite().all()):  # a PSNR where every byte is right
        mean = float(values.mean())
        return Metric(mean, mean, mean, values)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return Metric(float(values.mean()), low, high, values)


def _batched(metric: Any, x: Tensor, y: Tensor) -> Tensor:
    parts = zip(x.split(256), y.split(256), strict=True)
    return torch.cat([metric(a, b).reshape(-1) for a, b in parts])


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    # + 1: its luminance term takes black as 0
    return _batched(partial(ssim, data_range=2.0, reduction="none"), x + 1, y + 1)


@lru_cache(1)
def _alex(device: torch.device) -> Any:
    """LPIPS's network, loaded once: `calibration` asks for it with every pair of samples."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls torchvision by an old name
        return lpips.LPIPS(net="alex", verbose=False).to(device).eval()


def _lpips(x: Tensor, y: Tensor) -> Tensor:
    return _batched(_alex(x.device), x, y)


@lru_cache(1)
def _inception() -> dict[str, Any]:
    """torch-fidelity's Inception for a CPU: channels last, normalised by its kernels, in its caches."""
    from torch_fidelity import register_feature_extractor
    from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3

    class Inception(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            for m in self.eval().to(memory_format=torch.channels_last).modules():
                if isinstance(m, BasicConv2d):
                    m.conv, m.bn = fuse_conv_bn_eval(m.conv, m.bn), torch.nn.Identity()

    register_feature_extractor(name := "inception-v3-channels-last", Inception)
    return {"cuda": False, "feature_extractor": name, "batch_size": 16}


def _fidelity(x: Tensor, y: Tensor, names: set[str]) -> dict[str, Metric]:
    """FID and KID of torch-fidelity; Inception features are kept under each set's fingerprint."""
    from torch_fidelity import calculate_metrics

    def images(z: Tensor) -> Any:
        return type("Images", (TensorDataset,), {"__getitem__": lambda s, i: s.tensors[0][i]})(z)

    first, second = (to_uint8(z).cpu() for z in (x, y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = calculate_metrics(
            input1=images(first),
            input2=images(second),
            input1_cache_name=fingerprint(first),
            input2_cache_name=fingerprint(second),
            cache_root=str(cache_dir() / "features"),
            fid="fid" in names,
            kid="kid" in names,
            kid_subset_size=min(1000, len(x)),
            **({"cuda": True} if torch.cuda.is_available() else _inception()),
            save_cpu_ram=True,  # no processes that load: the images are here
            verbose=False,
        )
    keys = {"fid": "frechet_inception_distance", "kid": "kernel_inception_distance_mean"}
    return {name: Metric(*[result[keys[name]]] * 3) for name in names}


def check_metrics(metrics: Sequence[str] | None = None, shape: Sequence[int] | None = None) -> list[str]:
    """The metrics of an evaluation: those given; else psnr, and ssim where it can be had.

    Raises ValueError for one that is unknown or that images (N, 3, H, W) of this shape cannot have, and
    MetricUnavailable, with the extra to install, for one whose package is missing.
    """
    metrics = [metrics] if isinstance(metrics, str) else metrics
    if metrics is None:
        large = not shape or min(shape[-2:]) >= _SIDE["ssim"]
        return ["psnr", *["ssim"] * (large and importlib.util.find_spec("torchmetrics") is not None)]
    if unknown := set(metrics) - set(METRICS):
        raise ValueError(f"expected metrics among {METRICS}, got {sorted(unknown)}")
    for name in metrics:
        if name in _NEEDS and importlib.util.find_spec(_NEEDS[name]) is None:
            raise MetricUnavailable(f"{name} needs {_NEEDS[name]}: {EXTRA}")
        if shape and min(shape[-2:]) < _SIDE.get(name, 1):
            sides = f"{shape[-2]} x {shape[-1]}"
            raise ValueError(f"{name}: expected images of at least {_SIDE[name]} pixels a side, got {sides}")
        if shape and name in ("lpips", "fid", "kid") and shape[1] == 4:
            raise ValueError(f"{name}: expected images of 1 or 3 channels, got 4")
        if shape and name in ("fid", "kid") and shape[0] < 2:
            raise ValueError(f"{name} compares two sets: expected at least 2 images in each, got {shape[0]}")
    return list(metrics)


def _check_pair(x0_hat: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
    """Both rounded to 8 bits; ValueError where one is no image in [-1, 1] and the other shows it.

    Bright, black or constant images are good ones: only beside their counterparts can they be told
    from images in [0, 1], which are much closer once rescaled, and from those cast to bytes.
    """
    pair = {"x0_hat": check_images(x0_hat, "x0_hat"), "x0": check_images(x0, "x0")}
    if x0_hat.shape != x0.shape:
        raise ValueError(
            f"expected images of one shape, got {tuple(x0_hat.shape)} and {tuple(x0.shape)}: "
            "metrics across sizes compare the resizing, not the restoration"
        )
    for (name, x), y in zip(pair.items(), (x0, x0_hat), strict=True):
        low, high = (float(v) for v in x.aminmax())
        if high < 4 / 255 - 1 and float(y.mean()) > -0.9:
            raise ValueError(f"{name}: expected values in [-1, 1], got black, as of [0, 1] cast to bytes")
        if low >= 0 and high > low and 4 * (2 * x - 1 - y).square().mean() < (x - y).square().mean():
            raise ValueError(f"{name}: expected values in [-1, 1], got them as in [0, 1] images")
    x, y = quantise(x0_hat), quantise(x0)
    if min(float(x0_hat.min()), float(x0.min())) >= 0 and not torch.allclose(x0, y.to(x0)):
        warn("no value is below 0: give images in [0, 1] as 2 * x - 1, in [-1, 1]")
    return x, y


@torch.no_grad()
def evaluate(x0_hat: Tensor, x0: Tensor, metrics: Sequence[str] | None = None) -> dict[str, Metric]:
    """Compare restored with clean images, both float (N, C, H, W) in [-1, 1] and of one size.

    psnr (dB, higher is better), ssim (torchmetrics, higher), lpips (AlexNet, lower) are means over
    images with a bootstrap interval; fid and kid (torch-fidelity, lower) compare the two sets, without one.
    Unless said: psnr and, from 6 pixels a side and where torchmetrics is installed, ssim. lpips needs 31
    pixels a side; it, fid and kid take C = 1 or 3, and the sets need two images. Raises ValueError for
    unknown metrics and for images of another range, of two sizes, or too small or few, and
    MetricUnavailable where a package is missing or weights cannot be loaded or downloaded.
    """
    x, y = _check_pair(x0_hat, x0)
    metrics = check_metrics(metrics, x.shape)
    per_image, out, name = {"psnr": psnr, "ssim": _ssim, "lpips": _lpips}, dict[str, Metric](), ""
    try:
        for name in (n for n in per_image if n in metrics):
            out[name] = bootstrap(per_image[name](x, y))
        if sets := {"fid", "kid"} & set(metrics):
            name = " and ".join(sorted(sets))
            out |= _fidelity(x, y, sets)
    except ImportError as error:
        raise MetricUnavailable(f"{name} cannot be loaded ({error}): {EXTRA}") from error
    except OSError as error:
        said = f"{name}: its weights are not on this machine and cannot be downloaded ({error})"
        raise MetricUnavailable(said) from error
    values = out["psnr"].per_image if "psnr" in out else None
    if values is not None and bool(values.isinf().any()):
        finite = values[values.isfinite()]
        what = f"{len(x) - len(finite)} of {len(x)} images are the clean ones to the byte"
        rest = f"; the others' is {float(finite.mean()):.2f}" if len(finite) else ""
        warn(f"psnr: {what}, and the mean is infinite{rest}")
    for name, metric in out.items():
        if name != "psnr" and not math.isfinite(metric.value):  # PSNR is infinite where every byte is right
            raise ValueError(f"{name}: expected a number, got {metric.value} from {len(x)} images")
    return {name: out[name] for name in metrics}


@torch.no_grad()
def consistency(x0_hat: Tensor, x1: Tensor, operator: Callable[[Tensor], Tensor]) -> Metric:
    """|H x0_hat - x1|, root mean square over an image in grey levels of 255, lower is better.

    x0_hat is rounded to 8 bits first. Zero says that the restoration explains what was seen, not
    that it is right; with x1 rounded, the clean image itself has 12^-1/2 = 0.29. ValueError unless x0_hat, x1
    and what the operator gives are float images in [-1, 1] of one shape.
    """
    x, _ = _check_pair(x0_hat, x1)
    if getattr(seen := operator(x), "shape", None) != x1.shape:
        raise ValueError(f"consistency: expected {tuple(x1.shape)} from the operator, got {told(seen)}")
    return bootstrap(127.5 * (seen - x1).square().flatten(1).mean(1).sqrt())


class Calibration(NamedTuple):
    """What S restorations of each image say about their own error.

    spread: standard deviation over the samples, error: of their mean, both root mean squares in
    grey levels. ratio: spread (1 + 1/S)^1/2 / error, one where the truth is as another sample,
    below one where the samples are too sure; inf, or nan, where there is no error. ranks: (S + 1,) share of
    pixels whose true value has that many samples below it, uniform where it is. diversity: mean LPIPS between
    two samples.
    """

    spread: float
    error: float
    ratio: float
    ranks: Tensor
    diversity: float | None = None


@torch.no_grad()
def calibration(samples: Tensor, x0: Tensor, lpips: bool = False) -> Calibration:
    """Compare samples (S, N, C, H, W) of p(x0 | x1), S >= 2, with the truth x0 (N, C, H, W).

    After [Gneiting et al. 2007]. Raises ValueError for other shapes or ranges, and
    MetricUnavailable where LPIPS is asked for and cannot be loaded.
    """
    if getattr(samples, "ndim", 0) != 5 or len(samples) < 2 or samples.shape[1:] != x0.shape:
        raise ValueError(f"expected samples (S >= 2, *{tuple(x0.shape)}) of x0's shape, got {told(samples)}")
    for one in samples:
        _check_pair(one, x0)
    count = len(samples)
    spread = float(127.5 * samples.double().var(0).mean().sqrt())
    error = 127.5 * (samples.double().mean(0) - x0).square().mean().sqrt()
    ranks = torch.bincount((samples < x0).sum(0).flatten(), minlength=count + 1) / x0.numel()
    diversity = None
    if lpips:
        pairs = [(i, j) for i in range(count) for j in range(i)]
        found = [evaluate(samples[i], samples[j], ["lpips"])["lpips"].value for i, j in pairs]
        diversity = sum(found) / len(found)
    return Calibration(spread, float(error), float(spread * (1 + 1 / count) ** 0.5 / error), ranks, diversity)
