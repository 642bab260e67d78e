"""Training with one CUDA graph a step, and several trainings side by side on one card.

A host can be slower at starting kernels than a card is at running them: on the one of
`data/runs/benchmarks/captured-h100` a step of `unet-small` with 16 images took 39 ms eagerly and 9 as a
graph, and twelve of them in turn, each on a stream of its own, 57 ms. On a CPU the work is the same,
without graph and streams, so that what the tests see is what the card does.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2sb_lib.config import learning_rate
from i2sb_lib.training import Trainer


class Norm(nn.GroupNorm):
    """GroupNorm in the precision of what it is given, where autocast would widen that to float32."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.group_norm(x, self.num_groups, weight, bias, self.eps)


class Captured:
    """A Trainer whose step is recorded once and then replayed: passes, clipping, AdamW and average.

    `step` takes the place of `Trainer.optimise`; what else is asked of the Trainer is asked within `still`.
    The next batch is made on a stream of its own, while the card still works at the last. For one process,
    parts of one, no dropout and no fp16.
    """

    side: torch.cuda.Stream | None = None  # where batches are made, of all trainings

    def __init__(self, run: Trainer) -> None:
        assert (run.host.count, run.host.parts, run.config.dropout) == (1, 1, 0)
        assert run.host.precision != "fp16"
        self.run, self.cuda = run, run.device.type == "cuda"
        for module in run.model.modules():
            if type(module) is nn.GroupNorm:
                module.__class__ = Norm
        self.weights, self.slow = list(run.model.parameters()), list(run.ema.parameters())
        self.rate, self.decay = torch.zeros(2, device=run.device).unbind()
        self.batch = run.batch()
        self.seen = [part.clone() for part in self.batch]
        if self.cuda:
            Captured.side = Captured.side or torch.cuda.Stream(priority=-1)
            self.stream = torch.cuda.Stream()
            self._capture()

    def _work(self) -> Tensor:
        """One step on `seen`, at the rate and with the decay that stand in their tensors; its loss."""
        run = self.run
        run.optimizer.zero_grad()  # gone, not zero: in a graph the backward pass writes them anew
        with run.host.autocast():
            loss = run.wrapped(*self.seen)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, run.config.clip)
        run.optimizer.step()
        with torch.no_grad():
            torch._foreach_mul_(self.slow, self.decay)
            torch._foreach_add_(self.slow, torch._foreach_mul(self.weights, 1 - self.decay))
        return loss.detach()

    def _capture(self) -> None:
        """Record `_work`, and leave weights, moments and average as they were."""
        optimizer = self.run.optimizer
        for group in optimizer.param_groups:
            group.update(fused=True, foreach=False, capturable=True, lr=self.rate)
        average = [weight.clone() for weight in self.slow]
        before = {w: {k: v.clone() for k, v in optimizer.state[w].items()} for w in self.weights}
        self.rate.zero_()  # and with it the weights' decay
        self.decay.fill_(1)
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):  # compiles, chooses convolutions, makes the moments
            for _ in range(3):
                self._work()
        torch.cuda.synchronize()
        for weight in self.weights:
            for name, value in optimizer.state[weight].items():
                value.copy_(before[weight].get(name, torch.zeros_like(value)))
        torch._foreach_copy_(self.slow, average)
        optimizer.zero_grad()
        torch.cuda.synchronize()
        self.graph, self.used = torch.cuda.CUDAGraph(), torch.cuda.Event()
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.loss = self._work()
        torch.cuda.synchronize()
        self.used.record(self.stream)

    def step(self) -> None:
        """One step of Algorithm 1, as `Trainer.optimise` takes it."""
        run = self.run
        rate = learning_rate(run.config, run.step)
        decay = min(run.config.ema, (1 + run.step) / (10 + run.step))
        if not self.cuda:
            for group in run.optimizer.param_groups:
                group["lr"] = rate
            self.decay.fill_(decay)
            self.seen = list(run.batch())
            run.pending.append(self._work())
        else:
            assert self.side is not None
            with torch.cuda.stream(self.side):
                self.side.wait_event(self.used)  # then the last batch's memory is free
                self.batch = run.batch()
                made = self.side.record_event()
            with torch.cuda.stream(self.stream):
                self.stream.wait_event(made)
                torch._foreach_copy_(self.seen, list(self.batch))
                self.used.record(self.stream)
                self.rate.fill_(rate)
                self.decay.fill_(decay)
                self.graph.replay()
                run.pending.append(self.loss.clone())
        run.step += 1

    @contextlib.contextmanager
    def still(self) -> Iterator[Trainer]:
        """The Trainer with the card's work done, as it is without a graph: to log, to monitor, to save."""
        groups, plain = self.run.optimizer.param_groups, {"fused": True, "foreach": None, "capturable": False}
        if self.cuda:
            torch.cuda.synchronize()
            now = [{k: group[k] for k in (*plain, "lr")} for group in groups]
            for group in groups:
                group.update(plain, lr=learning_rate(self.run.config, self.run.step))
        yield self.run
        if self.cuda:
            torch.cuda.synchronize()
            for group, then in zip(groups, now, strict=True):
                group.update(then)


def side_by_side(runs: list[Trainer], every: int, say: Callable[[Trainer, dict[str, float]], None]) -> None:
    """Train all to their ends in turns, a step each; what is logged `every` steps is said, and then saved."""
    lanes = {run: Captured(run) for run in runs if run.step < run.config.steps}
    began = {run: time.monotonic() - run.seconds for run in lanes}
    while lanes:
        for run, lane in list(lanes.items()):
            lane.step()
            done = run.step == run.config.steps
            if run.step % every == 0 or done:
                with lane.still():
                    run.seconds = time.monotonic() - began[run]
                    say(run, run.log())
                    run.save()
            if done:
                del lanes[run]
