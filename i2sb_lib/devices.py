"""One rule for where the work is done and in which precision."""

import torch
from torch import Tensor

WITHOUT_FLOAT64 = ("mps",)  # Apple's GPUs


def auto_device() -> torch.device:
    """A GPU where there is one (CUDA, then Apple's MPS), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def auto_precision(device: torch.device) -> str:
    """What this hardware computes in: "bf16", "fp16" on GPUs without it (T4), "no" for float32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    fast = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return "bf16" if fast else "no"


def device_name(device: torch.device) -> str:
    """What a result was made on, for its record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def to_float64(x: Tensor) -> Tensor:
    """x in float64: where it is, or on the CPU where its device has none."""
    return (x.cpu() if x.device.type in WITHOUT_FLOAT64 else x).double()
