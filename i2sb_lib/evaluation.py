"""Metrics."""
import torch
from torch import Tensor


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Per-image peak signal-to-noise ratio (B,) in dB, peak 2 (the width of [-1, 1])."""
    return -10 * torch.log10((x - y).square().flatten(1).mean(1) / 4)
