"""Separable operators that are nobody's blur, and the memory of their matrices; more in test_degradations."""

from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch

from i2sb_lib import operators
from i2sb_lib.degradations import JPEG, CentreMask, Downsample, GaussianBlur, Noise, UniformBlur

F64 = torch.float64


@dataclass(frozen=True)
class Lopsided(operators.Separable):
    """A share of each pixel's left neighbour is added to it."""

    share: float

    def matrix(self, n):
        shift = torch.diag(torch.ones(n - 1, dtype=F64), -1)
        return (1 - self.share) * torch.eye(n, dtype=F64) + self.share * shift


@pytest.mark.parametrize("share", [0.2, 1e-6])
def test_what_is_hardly_lopsided_is_not_taken_for_symmetric(share):
    op, x = Lopsided(share), torch.rand(1, 3, 12, 9, dtype=F64)
    torch.testing.assert_close(op.inverse(op(x)), x, rtol=0, atol=1e-9)
    h = torch.kron(op.matrix(12), op.matrix(9))
    y = (x.flatten(2) @ h).reshape(x.shape)
    torch.testing.assert_close(op.adjoint(x), y, rtol=0, atol=1e-12)


@dataclass(frozen=True)
class Sampled(operators.Separable):
    """Every 50th pixel, as often as it was left out: most pixels are not seen at all."""

    def matrix(self, n):
        return torch.eye(n, dtype=F64)[torch.arange(n) // 50 * 50]


@pytest.mark.parametrize(
    "op", [GaussianBlur(), UniformBlur(9), Downsample(4, True), Lopsided(0.3), Sampled()], ids=repr
)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (F64, 1e-12)])
def test_a_large_side_s_bands_are_its_matrix(op, dtype, atol, monkeypatch):
    x = torch.rand(2, 3, 200, 136, dtype=dtype) * 2 - 1
    a_h, a_w = (op.matrix(n).to(dtype) for n in x.shape[-2:])
    used = []
    monkeypatch.setattr(operators, "_bands", lambda *key, f=operators._bands: used.append(key) or f(*key))
    for got, expected in ((op(x), a_h @ x @ a_w.T), (op.adjoint(x), a_h.T @ x @ a_w)):
        torch.testing.assert_close(got, expected, rtol=0, atol=atol)
        assert got.is_contiguous()
    assert len(used) == 4
    op(x[..., :128, :128])
    assert len(used) == 4


def test_a_side_of_any_length_is_blurred_and_its_matrix_is_never_held(monkeypatch):
    monkeypatch.setattr(GaussianBlur, "matrix", lambda self, n: pytest.fail("a matrix") if n > 200 else None)
    x = torch.rand(1, 3, 30_000, 5, dtype=F64) * 2 - 1  # 7 GB of matrix
    y = GaussianBlur(9, 1.5)(x)
    monkeypatch.undo()
    for top in (0, 12_345, 29_800):  # the two borders, and somewhere
        part = GaussianBlur(9, 1.5)(x[:, :, top : top + 200])
        inside = slice(0 if top == 0 else 4, 200 if top == 29_800 else 196)
        torch.testing.assert_close(y[:, :, top : top + 200][:, :, inside], part[:, :, inside])
    for refused in (GaussianBlur().inverse, GaussianBlur().adjoint):
        with pytest.raises(ValueError, match=r"at most 8,192 pixels a side .* got 30,000"):
            refused(x)


def test_an_inverse_needs_a_finite_weight_that_is_not_negative():
    for lam in (-1e-9, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"expected a finite weight of at least 0, got {lam}"):
            GaussianBlur().inverse(torch.zeros(1, 3, 8, 8), lam)


def test_the_matrix_that_was_used_last_is_kept_longest(monkeypatch):
    """Room for three of four; 20 is used again before the fourth comes, so that 21 goes."""
    monkeypatch.setattr(operators, "_store", OrderedDict())
    monkeypatch.setattr(operators, "KEPT_BYTES", 8 * (20**2 + 22**2 + 23**2))
    op, made, matrix = GaussianBlur(3, 0.8), [], GaussianBlur.matrix
    monkeypatch.setattr(GaussianBlur, "matrix", lambda self, n: made.append(n) or matrix(self, n))
    for n in (20, 21, 22, 20, 23, 20, 22, 21):
        op(torch.zeros(1, 3, n, n, dtype=F64))
    assert made == [20, 21, 22, 23, 21]


def test_an_option_may_have_the_value_of_a_limit_and_none_beyond():
    for make, low, high in ((GaussianBlur, 1, 255), (JPEG, 1, 100), (CentreMask, 0, 1), (Noise, 0, 10)):
        make(low), make(high)
        for beyond in (low - 1, high + 1):
            with pytest.raises(ValueError, match=f"from {low} to {high}, got {beyond}"):
                make(beyond)


@pytest.mark.parametrize("op", [Downsample(), Downsample(2, True), Sampled()], ids=repr)
def test_what_has_no_inverse_is_not_inverted_without_a_weight(op):
    y = torch.rand(1, 3, 64, 100, dtype=F64)
    with pytest.raises(
        ValueError, match=r"^expected a weight above 0, got 0: on such sides .* has no inverse$"
    ):
        op.inverse(y, 0)
    assert op.inverse(y, 1e-3).isfinite().all()


@pytest.mark.parametrize("do", ["adjoint", "inverse", "weak"])
@pytest.mark.parametrize(
    ("y", "got"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "torch.uint8 of shape (2, 3, 8, 8)"),
        (torch.zeros(3, 8, 8), "torch.float32 of shape (3, 8, 8)"),
        (torch.zeros(2, 3, 8, 8).numpy(), "ndarray of float32 of shape (2, 3, 8, 8)"),
        ([1.0], "list"),
    ],
)
def test_adjoint_inverse_and_weak_take_batches_of_floats(do, y, got):
    with pytest.raises(ValueError, match="got ") as caught:
        getattr(GaussianBlur(), do)(y, *{"adjoint": (), "inverse": (0.1,), "weak": (0.1, 0.2)}[do])
    assert str(caught.value) == f"expected floats (B, C, H, W), got {got}"


def test_no_images_are_no_fault():
    y, op = torch.zeros(0, 3, 8, 8), GaussianBlur()
    assert op.adjoint(y).shape == op.inverse(y, 0.1).shape == y.shape
    assert op.weak(y, 0.1, 0.2).shape == (0,)
