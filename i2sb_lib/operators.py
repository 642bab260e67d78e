"""What a degradation is, and the linear ones that act on rows and columns apart, with their exact inverse."""

import numbers
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, get_type_hints

import torch
from torch import Tensor

from i2sb_lib.devices import to_float64
from i2sb_lib.faults import floats
from i2sb_lib.images import check_images

PIXELS = 2**22  # inverted at a time, so that a large photograph needs little memory beside itself
SIDE = 2**13  # pixels a side whose matrix is held whole, 512 MB
DENSE, ROWS = 128, 32  # above so many pixels a side a matrix is applied so many of its rows at a time
LIMITS: dict[str, tuple[float, float]] = {
    "kernel_size": (1, 255), "sigma": (1e-2, 1e3), "factor": (1, 1024), "fraction": (0, 1), "std": (0, 10),
    "strokes": (1, 100), "corners": (1, 100), "width": (0, 1), "quality": (1, 100), "clean": (0, 1),
}  # fmt: skip


class Degradation:
    """An operator H. Call it as H(x, generator=None); `linear` says whether `adjoint` exists.

    What is random is drawn on the generator's device and moved; a sequence of generators, one for each
    image, gives an image the same result in every batch. Raises ValueError for an option outside the range
    that its kind tells, and for an even kernel_size, whose blur would move the image by half a pixel.
    """

    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in vars(self).keys() & LIMITS:
            (low, high), value = LIMITS[name], getattr(self, name)
            if not (isinstance(value, numbers.Real) and low <= float(value) <= high):
                raise ValueError(f"expected {name} from {low:g} to {high:g}, got {value!r}")
            if get_type_hints(type(self)).get(name) is int:
                if value % 1:
                    raise ValueError(f"expected {name} to be a whole number, got {value}")
                object.__setattr__(self, name, round(value))  # a command line's are floats
        if (size := getattr(self, "kernel_size", 1)) % 2 == 0:
            raise ValueError(f"expected an odd kernel_size, got {size}")

    def apply(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """The operator itself, on input that is not checked: call the degradation instead."""
        raise NotImplementedError

    def __call__(
        self, x: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """Degrade a batch; ValueError unless x is float (B, C, H, W) in [-1, 1], and generators are B."""
        check_images(x, "degradation")
        each = generator if isinstance(generator, Sequence) else [generator] * len(x)
        if len(each) != len(x):
            raise ValueError(f"expected {len(x)} generators, one for each image, got {len(each)}")
        if not all(g is None or isinstance(g, torch.Generator) for g in each):
            raise ValueError(f"expected generators of torch's, not seeds, got {generator!r:.80}")
        if each is not generator:
            return self.apply(x, each[0])
        return torch.cat([self.apply(one[None], g) for one, g in zip(x, each, strict=True)])

    def adjoint(self, y: Tensor) -> Tensor:
        """H^T y, for floats y (B, C, H, W) of any range; TypeError where H is not linear."""
        raise TypeError(f"{self} is not linear and has no adjoint")


class Separable(Degradation):
    """A linear operator that treats each row, then each column: H(X) = A_h X A_w^T."""

    linear = True

    def matrix(self, n: int) -> Tensor:
        """The operator on one side of n pixels, (n, n) float64, rows summing to one."""
        raise NotImplementedError

    def band(self, n: int, start: int, stop: int) -> tuple[int, Tensor]:
        """Rows `start` to `stop` of the matrix, and the column from which on they are given."""
        return 0, _whole(self, n)[0][start:stop]

    def apply(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self._product(x, adjoint=False)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._product(floats(y, "floats (B, C, H, W)", 4), adjoint=True)

    def _product(self, x: Tensor, adjoint: bool) -> Tensor:
        """A_h x A_w^T, or A_h^T x A_w; on a CPU large sides go by the parts of A that are not zero."""
        if x.device.type == "cpu" and max(x.shape[-2:]) > DENSE and not torch.compiler.is_compiling():
            for _ in range(2):  # along the height, then along the width
                starts, *blocks = _bands(self, x.shape[-2], x.dtype, adjoint)
                places = zip(starts.tolist(), blocks, strict=True)
                x = torch.cat([b @ x[..., i : i + b.shape[1], :] for i, b in places], -2).mT
            return x.contiguous()
        a_h, a_w = (_on_device(self, n, x.device, x.dtype)[0] for n in x.shape[-2:])
        return a_h.T @ x @ a_w if adjoint else a_h @ x @ a_w.T

    def inverse(self, y: Tensor, lam: float = 0.0) -> Tensor:
        """Tikhonov's argmin_x |Hx - y|^2 + lam |x|^2, in float64 by the SVD A = U S V^T of each side.

        The singular values of H are the products s_ij = s_i s_j and each component of y is
        multiplied by s_ij / (s_ij^2 + lam). lam = 0 is the exact inverse, and refused where H has none. Even
        and odd parts go apart where A lets them: half of the work. y: floats (B, C, H, W) of any range, whose
        dtype the result has. ValueError for other y, and unless lam is finite and not negative.
        """
        if not 0 <= lam < float("inf"):
            raise ValueError(f"expected a finite weight of at least 0, got {lam}")
        z = to_float64(floats(y, "floats (B, C, H, W)", 4)).flatten(0, 1)
        h, w = (_svd(self, n, z.device) for n in y.shape[-2:])
        if not lam and min(float(s.min()) for _, s, _ in (*h, *w)) < 1e-14:  # which float64 takes for zero
            raise ValueError(f"expected a weight above 0, got {lam}: on such sides {self} has no inverse")

        def inverted(x: Tensor) -> Tensor:
            for dim, side in ((-2, h), (-1, w)):
                x = _fold(x, dim) if len(side) > 1 else x
            strips = []
            for strip, (u_h, s_h, v_h) in zip(x.split([len(s) for _, s, _ in h], -2), h, strict=True):
                blocks = []
                for block, (u_w, s_w, v_w) in zip(strip.split([len(s) for _, s, _ in w], -1), w, strict=True):
                    s = s_h[:, None] * s_w
                    blocks.append(v_h.T @ (u_h.T @ block @ u_w * (s / (s**2 + lam))) @ v_w)
                strips.append(torch.cat(blocks, -1))
            x = torch.cat(strips, -2)
            for dim, side in ((-2, h), (-1, w)):
                x = _unfold(x, dim) if len(side) > 1 else x
            return x.to(y)

        exported = torch.compiler.is_compiling()  # with any number of images
        few = [z] if exported else z.split(max(1, PIXELS // (y.shape[-2] * y.shape[-1])))
        return torch.cat([inverted(x) for x in few]).reshape(y.shape)

    def weak(self, y: Tensor, low: float, high: float) -> Tensor:
        """Mean square (B,) of y's components whose singular values are from `low` to below `high`.

        In the basis of U of each side's SVD. nan where there is no such component.
        """
        z, values = to_float64(floats(y, "floats (B, C, H, W)", 4)), []
        for dim, n in ((-2, y.shape[-2]), (-1, y.shape[-1])):
            parts = _svd(self, n, z.device)
            z, at = (_fold(z, dim) if len(parts) > 1 else z).movedim(dim, -1), 0
            turned = []
            for u, s, _ in parts:
                turned.append(z[..., at : at + len(s)] @ u)
                at += len(s)
            z = torch.cat(turned, -1).movedim(-1, dim)
            values.append(torch.cat([s for _, s, _ in parts]))
        s = values[0][:, None] * values[1]
        return z[..., (s >= low) & (s < high)].square().flatten(1).mean(1)


KEPT_BYTES = 2**29  # of matrices that are remembered: four sides of 4,000 pixels
_store: OrderedDict[Any, tuple[Tensor, ...]] = OrderedDict()
_lock = threading.Lock()


def kept(make: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """Remember what `make` gives, the least recently used going first where it is over KEPT_BYTES in all."""

    def recall(*key: Any) -> tuple[Tensor, ...]:
        with _lock:
            value = _store.pop((make, key), None)
        if value is None:  # in a thread, where no mode is on: to an export and to inference it is a constant
            with ThreadPoolExecutor(1) as aside:
                value = aside.submit(make, *key).result()
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


@kept
def _whole(op: Separable, n: int) -> tuple[Tensor, ...]:
    """The matrix itself; ValueError where it is too large to be held."""
    if n > SIDE:
        raise ValueError(f"expected at most {SIDE:,} pixels a side for the matrix of {op}, got {n:,}")
    return (op.matrix(n),)


@kept
def _on_device(op: Separable, n: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (op.matrix(n).to(dtype).to(device),)


@kept
def _bands(op: Separable, n: int, dtype: torch.dtype, adjoint: bool) -> tuple[Tensor, ...]:
    """ROWS of A or A^T at a time without the zeros at both sides, after the places where the blocks begin."""
    starts, blocks = [], list[Tensor]()
    for k in range(0, n, ROWS):
        stop = min(k + ROWS, n)
        first, rows = (0, _whole(op, n)[0].T[k:stop]) if adjoint else op.band(n, k, stop)
        seen = rows.any(0).nonzero().flatten().tolist() or [0]
        starts.append(first + seen[0])
        blocks.append(rows[:, seen[0] : seen[-1] + 1].to(dtype, copy=True))
    return torch.tensor(starts), *blocks


def _fold(x: Tensor, dim: int) -> Tensor:
    """The even part of x along dim, then the odd one: orthogonal, as many numbers as before."""
    half, middle = x.shape[dim] // 2, x.shape[dim] % 2
    first, last = x.narrow(dim, 0, half), x.flip(dim).narrow(dim, 0, half)
    return torch.cat([(first + last) * 0.5**0.5, x.narrow(dim, half, middle), (first - last) * 0.5**0.5], dim)


def _unfold(x: Tensor, dim: int) -> Tensor:
    """What `_fold` made x of."""
    half = x.shape[dim] // 2
    even, middle, odd = x.split([half, x.shape[dim] % 2, half], dim)
    return torch.cat([(even + odd) * 0.5**0.5, middle, ((even - odd) * 0.5**0.5).flip(dim)], dim)


@kept
def _factors(op: Separable, n: int, device: torch.device) -> tuple[Tensor, ...]:
    """U, S and V^T of A = U S V^T, or of its even and then its odd part.

    Where A treats left as right, as a symmetric kernel with reflection does, even and odd vectors are two
    problems of half the size: a quarter of the work and half of the memory.
    """
    a, parts = _whole(op, n)[0], []
    if torch.allclose(a, a.flip(0, 1), rtol=0, atol=1e-12):
        even, a = (n + 1) // 2, _fold(_fold(a, 0), 1)
        parts = [a[:even, :even], a[even:, even:]]
    return tuple(f.to(device) for part in parts or [a] if len(part) for f in torch.linalg.svd(part))


def _svd(op: Separable, n: int, device: torch.device) -> list[tuple[Tensor, ...]]:
    """One (U, S, V^T), or two: see `_factors`."""
    flat = _factors(op, n, device)
    return [flat[i : i + 3] for i in range(0, len(flat), 3)]
