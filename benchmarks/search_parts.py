"""What `search.py` tries beside the library: times drawn by the loss, averages rebuilt afterwards."""

import torch
from torch import Tensor


class Levels:
    """Times drawn by the loss so far, (0, 1] in equal parts that keep a running mean of it each.

    importance: p ~ sqrt(E loss^2), the loss divided by p: the objective that it was, with less variance.
    fall: p ~ 1 - E loss, where 1 is what the untrained network has: an objective of its own.
    A tenth of the draws stays even.  [Nichol and Dhariwal 2021, sec. 3.3; Karras et al. 2022, sec. 5]
    """

    def __init__(self, kind: str, parts: int = 16, rate: float = 0.03) -> None:
        self.kind, self.rate = kind, rate
        self.mean, self.square = torch.ones(2, parts)

    @property
    def density(self) -> Tensor:
        """Of t, on each part; its mean is 1."""
        asked = self.square.sqrt() if self.kind == "importance" else (1 - self.mean).clamp(min=0)
        return 0.1 + 0.9 * asked / asked.mean() if asked.any() else torch.ones_like(asked)

    def part(self, t: Tensor) -> Tensor:
        return (t * len(self.mean)).ceil().long().clamp(1, len(self.mean)) - 1

    def draw(self, u: Tensor) -> Tensor:
        """The times whose distribution function is u in (0, 1]."""
        p = self.density
        ends = p.cumsum(0) / p.sum()
        k = torch.searchsorted(ends, u).clamp(max=len(p) - 1)
        return ((k + 1 - (ends[k] - u) * len(p) / p[k]) / len(p)).clamp(torch.finfo(u.dtype).tiny, 1)

    def weigh(self, loss: Tensor, t: Tensor) -> Tensor:
        """The loss at t as it is to be descended; the running means follow it."""
        k, p = self.part(t), self.density
        for i, v in zip(k.tolist(), loss.detach().float(), strict=True):
            self.mean[i].lerp_(v, self.rate)
            self.square[i].lerp_(v.square(), self.rate)
        return loss / p[k] if self.kind == "importance" else loss


class Averages:
    """Averages of the weights with the profile t^gamma of two lengths, and from their snapshots any other.

    A length is sigma_rel, the profile's standard deviation as a share of the training.
    [Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", sec. 3]
    """

    def __init__(self, weights: list[Tensor], lengths: tuple[float, ...] = (0.05, 0.25)) -> None:
        self.tracks = [(self.gamma(s), [w.detach().double() for w in weights]) for s in lengths]
        self.step, self.kept = 0, list[tuple[float, int, list[Tensor]]]()

    @staticmethod
    def gamma(length: float) -> float:
        """(gamma + 1) / (gamma + 2)^2 / (gamma + 3) = length^2."""
        low, high = 0.0, 1e6
        for _ in range(200):
            middle = (low + high) / 2
            wide = (middle + 1) / (middle + 2) ** 2 / (middle + 3) > length**2
            low, high = (middle, high) if wide else (low, middle)
        return low

    @torch.no_grad()
    def follow(self, weights: list[Tensor], keep: bool) -> None:
        self.step += 1
        for gamma, mean in self.tracks:
            torch._foreach_lerp_(mean, [w.double() for w in weights], 1 - (1 - 1 / self.step) ** (gamma + 1))
            if keep:
                self.kept.append((gamma, self.step, [m.clone() for m in mean]))

    def rebuilt(self, length: float) -> list[Tensor]:
        """The average of that length at the last step: of the sums of snapshots by shares that add up to 1
        the one whose profile is nearest.
        """

        def inner(a: tuple[float, int], b: tuple[float, int]) -> float:
            (g, s), (h, t) = a, b
            low = min(s, t)
            return (g + 1) * (h + 1) / (g + h + 1) * (low / s) ** g * (low / t) ** h * low / (s * t)

        ours, wanted = [(g, t) for g, t, _ in self.kept], (self.gamma(length), self.step)
        n = len(ours)
        gram = torch.ones(n + 1, n + 1, dtype=torch.float64)  # the last row holds the sum at 1
        gram[:n, :n] = torch.tensor([[inner(a, b) for b in ours] for a in ours])
        gram[n, n] = 0
        side = torch.tensor([*(inner(a, wanted) for a in ours), 1], dtype=torch.float64)
        share = torch.linalg.lstsq(gram, side[:, None], driver="gelsd").solution.flatten()[:n]
        parts = zip(*(weights for *_, weights in self.kept), strict=True)
        return [sum(x * w for x, w in zip(share, part, strict=True)) for part in parts]
