"""What several chapters share: running examples, tests of samples, and the grading of exercises.

In a notebook: from toolbox import ks, two_humps
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from i2sb_lib import Bridge, Schedule
from i2sb_lib.checks import check
from i2sb_lib.gaussian_mixtures import Mixture, MixtureBridge


def seeded(seed: int) -> torch.Generator:
    """A generator of random numbers on the CPU that starts from `seed`."""
    return torch.Generator().manual_seed(seed)


def normal(x: Any, mean: Any, var: Any) -> Any:
    """Density N(x; mean, var) of numbers; arrays or tensors broadcast."""
    return math.e ** (-((x - mean) ** 2) / (2 * var)) / (2 * math.pi * var) ** 0.5


def half_moons(variance: float = 0.02) -> Mixture:
    """Two interleaved half-moons of twelve Gaussians each: first the upper moon, then the lower."""
    arc = torch.linspace(0, torch.pi, 12, dtype=torch.float64)
    upper = torch.stack([1.4 * arc.cos() - 0.7, 1.4 * arc.sin() - 0.35], 1)
    return Mixture([1 / 24] * 24, torch.cat([upper, -upper]), [variance] * 24)


def two_humps() -> MixtureBridge:
    """The bridge of Chapters 4 to 6: from two humps to three, its potentials known."""
    return MixtureBridge(
        Bridge(Schedule.symmetric(beta_max=3.0, beta_min=0.5)),
        psi_hat0=Mixture([0.6, 0.4], [-1.2, 1.0], [0.10, 0.06]),
        psi1=Mixture([0.3, 0.3, 0.4], [-1.9, 0.1, 1.7], [0.06, 0.03, 0.08]),
    )


def ring_to_moons() -> MixtureBridge:
    """The same in the plane: from eight Gaussians on a ring to two half-moons."""
    angle = torch.arange(8, dtype=torch.float64) * torch.pi / 4
    ring = 2.2 * torch.stack([angle.cos(), angle.sin()], 1)
    schedule = two_humps().bridge
    return MixtureBridge(schedule, psi_hat0=Mixture([1 / 8] * 8, ring, [0.04] * 8), psi1=half_moons())


def ks(sample: Any, law: Any) -> float:
    """p-value of the Kolmogorov-Smirnov test of numbers (N,) against a law: a Mixture or its cdf."""
    from scipy import stats  # a second, which not every chapter needs

    cdf = getattr(law, "cdf", law)
    return float(stats.kstest(np.asarray(sample), lambda z: np.asarray(cdf(z))).pvalue)


def cdf_on(nodes: Any, density: Any) -> Callable[[Any], np.ndarray]:
    """Distribution function of a density that is given on uniform nodes, normalised."""
    nodes, density = np.asarray(nodes), np.asarray(density)
    half = (nodes[1] - nodes[0]) / 2
    edges = np.append(nodes - half, nodes[-1] + half)
    mass = np.append(0, np.cumsum(density))
    return lambda z: np.interp(z, edges, mass / mass[-1])


def chi_square(counts: Any, expected: Any, least: float = 10) -> float:
    """p-value of Pearson's test of counts against what is expected, up to scale.

    Cells in which fewer than `least` are expected are pooled into one.
    """
    from scipy import stats

    counts, expected = np.asarray(counts).ravel(), np.asarray(expected).ravel()
    expected = expected / expected.sum() * counts.sum()
    small = expected < least
    pooled = [np.append(v[~small], v[small].sum()) if small.any() else v for v in (counts, expected)]
    return float(stats.chisquare(*pooled).pvalue)


def grade(claim: str, answer: Any, truth: Any, at_most: float, what: str) -> None:
    """`check` an exercise's answer by its root mean square distance from the truth; None is no answer yet."""
    if answer is None:
        print(f"{claim}: write your answer above, and run this cell again")
        return
    gap = np.asarray(answer, dtype=float) - np.asarray(truth, dtype=float)
    check(claim, np.sqrt(np.mean(gap**2)), at_most=at_most, what=what)
