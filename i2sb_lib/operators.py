"""What a degradation is, and the linear ones that act on rows and columns apart, with their exact inverse."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from i2sb_lib.devices import to_float64
from i2sb_lib.images import check_images

PIXELS = 2**22  # inverted at a time, so that a large photograph needs little memory beside itself
LIMITS: dict[str, tuple[float, float]] = {
    "kernel_size": (1, 255), "sigma": (1e-2, 1e3), "factor": (1, 1024), "fraction": (0, 1), "std": (0, 10),
    "strokes": (1, 100), "corners": (1, 100), "width": (0, 1), "quality": (1, 100),
}  # fmt: skip


class Degradation:
    """An operator H. Call it as H(x, generator=None); `linear` says whether `adjoint` exists.

    What is random is drawn on the generator's device and moved; a sequence of generators, one for each
    image, gives an image the same result in every batch. Raises ValueError for an option outside LIMITS
    and for an even kernel_size, whose blur would move the image by half a pixel.
    """

    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in vars(self).keys() & LIMITS:
            (low, high), value = LIMITS[name], getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"expected {name} from {low:g} to {high:g}, got {value}")
        if (size := getattr(self, "kernel_size", 1)) % 2 == 0:
            raise ValueError(f"expected an odd kernel_size, got {size}")

    def apply(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """The operator itself, on checked input."""
        raise NotImplementedError

    def __call__(
        self, x: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """Degrade a batch; ValueError unless x is float (B, C, H, W) in [-1, 1], and generators are B."""
        check_images(x, "degradation")
        if not isinstance(generator, Sequence):
            return self.apply(x, generator)
        if len(generator) != len(x):
            raise ValueError(f"expected {len(x)} generators, one for each image, got {len(generator)}")
        return torch.cat([self.apply(one[None], g) for one, g in zip(x, generator, strict=True)])

    def adjoint(self, y: Tensor) -> Tensor:
        """H^T y, for y (B, C, H, W) of any range; TypeError where H is not linear."""
        raise TypeError(f"{self} is not linear and has no adjoint")


class Separable(Degradation):
    """A linear operator that treats each row, then each column: H(X) = A_h X A_w^T."""

    linear = True

    def matrix(self, n: int) -> Tensor:
        """The operator on one side of n pixels, (n, n) float64, rows summing to one."""
        raise NotImplementedError

    def _sides(self, x: Tensor) -> tuple[Tensor, Tensor]:
        (h,), (w,) = (_on_device(self, n, x.device, x.dtype) for n in x.shape[-2:])
        return h, w

    def apply(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        a_h, a_w = self._sides(x)
        return a_h @ x @ a_w.T

    def adjoint(self, y: Tensor) -> Tensor:
        a_h, a_w = self._sides(y)
        return a_h.T @ y @ a_w

    def inverse(self, y: Tensor, lam: float = 0.0) -> Tensor:
        """Tikhonov's argmin_x |Hx - y|^2 + lam |x|^2, in float64 by the SVD A = U S V^T of each side.

        The singular values of H are the products s_ij = s_i s_j and each component of y is
        multiplied by s_ij / (s_ij^2 + lam). lam = 0 is the exact inverse where H has one. ValueError
        unless lam is finite and not negative.
        """
        if not 0 <= lam < float("inf"):
            raise ValueError(f"expected a finite weight of at least 0, got {lam}")
        z = to_float64(y)
        (u_h, s_h, v_h), (u_w, s_w, v_w) = (_svd(self, n, z.device) for n in y.shape[-2:])
        s = s_h[:, None] * s_w
        gain = s / (s**2 + lam)
        few = z.flatten(0, 1).split(max(1, PIXELS // s.numel()))
        return torch.cat([(v_h.T @ (u_h.T @ p @ u_w * gain) @ v_w).to(y) for p in few]).reshape(y.shape)


KEPT_BYTES = 2**29  # of matrices that are remembered: two sides of 4,000 pixels
_store: OrderedDict[Any, tuple[Tensor, ...]] = OrderedDict()
_lock = threading.Lock()


def _kept(make: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """Remember what `make` gives, the least recently used going first where it is over KEPT_BYTES in all."""

    @torch.inference_mode(False)
    def recall(*key: Any) -> tuple[Tensor, ...]:
        with _lock:
            value = _store.pop((make, key), None)
        value = make(*key) if value is None else value
        with _lock:
            _store[make, key] = value
            while sum(part.nbytes for parts in _store.values() for part in parts) > KEPT_BYTES:
                _store.popitem(last=False)
        return value

    def remembered(*key: Any) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling():  # nothing to trace; said here, since to say it imports the compiler
            return torch.compiler.disable(recall)(*key)
        return recall(*key)

    return remembered


@_kept
def _on_device(op: Separable, n: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (op.matrix(n).to(dtype).to(device),)


@_kept
def _svd(op: Separable, n: int, device: torch.device) -> tuple[Tensor, ...]:
    """U, S (in no order) and V^T of A = U S V^T.

    Where A treats left as right, as a symmetric kernel with reflection does, even and odd vectors are two
    problems of half the size: a quarter of the work.
    """
    a, eye = op.matrix(n), torch.eye(n, dtype=torch.float64)
    bases = [eye]
    if torch.allclose(a, a.flip(0, 1), rtol=0, atol=1e-12):
        even, odd = (eye + eye.flip(0))[: (n + 1) // 2], (eye - eye.flip(0))[: n // 2]
        bases = [F.normalize(even, dim=1), F.normalize(odd, dim=1)]
    parts = []
    for basis in bases:
        u, s, v = torch.linalg.svd(basis @ a @ basis.T)
        parts.append((basis.T @ u, s, v @ basis))
    u, s, v = zip(*parts, strict=True)
    return torch.cat(u, 1).to(device), torch.cat(s).to(device), torch.cat(v).to(device)
