"""One process of a run among the others: its device, its precision, its share, what all agree on.

It is found through Accelerate's `PartialState`, which knows how torchrun, `accelerate launch` and MPI
start processes; a host's own Accelerator is neither used nor changed.
"""

import contextlib
import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from i2sb_lib.devices import auto_precision
from i2sb_lib.faults import TrainingError, extra

with extra("train", "training"):
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env, reduce

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class MeanLoss(nn.Module):
    """A denoiser's mean loss as a module's forward, so that data parallelism and compilation see it."""

    def __init__(self, model: Any, floor: float) -> None:
        super().__init__()
        self.model, self.floor = model, floor

    def forward(self, x0: Tensor, x1: Tensor, t: Tensor, noise: Tensor, g: Tensor) -> Tensor:
        return torch.mean(self.model.loss(x0, x1, t, noise, self.floor, g))


class Processes:
    """The processes of a run as one of them sees them; batches of `batch_size` are shared out evenly.

    precision: "auto", "no" (float32), "bf16" or "fp16". accumulate: parts of a share. device: "auto", "cpu",
    "cuda" or "mps". Raises TrainingError for fp16 without a CUDA GPU, a device that is not there, a batch
    that cannot be shared, and where `accelerate launch` started fewer than it was asked for.
    """

    def __init__(self, precision: str, batch_size: int, accumulate: int = 1, device: str = "auto") -> None:
        gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
        # without a GPU, too: else several CPU processes stay apart
        cpu = device == "cpu" or not gpu or parse_flag_from_env("ACCELERATE_USE_CPU")
        self.state = PartialState(cpu=cpu)
        self.device, self.main = self.state.device, self.state.is_main_process
        if device not in ("auto", self.device.type):
            raise TrainingError(f"expected a device that is here, got {device}, not {self.device.type}")
        rank, self.count = self.state.process_index, self.state.num_processes
        # On CPUs `accelerate launch` starts one, whatever --num_processes says: an address, and no rank.
        launched = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys()
        if launched and self.count == 1 and not {"RANK", "WORLD_SIZE"} & os.environ.keys():
            command = "torchrun --nproc-per-node N -m i2sb_lib train …"
            raise TrainingError(f"accelerate launch starts a single process on CPUs; for N give: {command}")
        if batch_size % (self.count * accumulate):
            parts = f"{self.count * accumulate} (processes times accumulate)"
            raise TrainingError(f"expected batch_size divisible by {parts}, got {batch_size}")
        self.parts = accumulate
        part = batch_size // self.count
        self.share = slice(rank * part, (rank + 1) * part)
        self.precision = auto_precision(self.device) if precision == "auto" else precision
        if self.precision == "fp16" and self.device.type != "cuda":
            raise TrainingError(f"expected precision fp16 on a CUDA GPU only, got it on {self.device.type}")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def wrap(self, loss: Any) -> Any:
        """The module whose gradients are the mean over all processes."""
        if self.count == 1:
            return loss
        self._words: Any = dist.new_group(backend="gloo")  # what is agreed on waits for no GPU
        device = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(loss, device_ids=device)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """In which networks compute in the run's precision."""
        dtype = DTYPES.get(self.precision)
        return torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext()

    def descend(
        self, loss: Any, batch: Iterable[Tensor], optimizer: torch.optim.Optimizer, clip: float
    ) -> Tensor:
        """One step of the optimizer along the gradient of loss(*batch), its norm clipped; that loss.

        loss: what `wrap` gave, a mean over images. batch: of all processes; this one takes its share.
        """
        total = torch.zeros((), device=self.device)
        parts = list(zip(*(v[self.share].chunk(self.parts) for v in batch), strict=True))
        for k, part in enumerate(parts):
            alone = self.count > 1 and k + 1 < len(parts)  # gradients are exchanged once a step
            with loss.no_sync() if alone else contextlib.nullcontext():
                with self.autocast():
                    value = loss(*part) / len(parts)
                self.scaler.scale(value).backward()
            total += value.detach()
        self.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip)
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad()
        return total

    def mean(self, value: Tensor) -> Tensor:
        """A tensor's mean over the processes."""
        return reduce(value, "mean")

    def largest(self, value: int) -> int:
        """A number's maximum over the processes."""
        word = torch.tensor(value)
        if self.count > 1:
            dist.all_reduce(word, dist.ReduceOp.MAX, self._words)
        return int(word)
