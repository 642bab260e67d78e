"""Operators against torchvision, torch and Pillow; adjoints and inverses in float64."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from i2sb_lib import degradations as ops
from i2sb_lib import operators
from i2sb_lib.images import to_float, to_uint8
from i2sb_lib.samplers import generators

F64 = torch.float64
BLURS = [ops.GaussianBlur(), ops.GaussianBlur(5, 0.7), ops.UniformBlur(3)]
SHRINK = [ops.Downsample(), ops.Downsample(2, bicubic=True), ops.Downsample(4, bicubic=True)]
LINEAR = [*BLURS, *SHRINK, ops.CentreMask(), ops.CentreMask(0.3), ops.Grey()]


def smooth(h=32, w=24, b=2):
    """A batch with edges and gradients, inside [-1, 1]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, h), torch.linspace(0, 1, w), indexing="ij")
    planes = [(7 * x + k).sin() * (5 * y - k).cos() * 0.8 + 0.2 * (x > y) for k in range(3 * b)]
    return torch.stack(planes).reshape(b, 3, h, w).clamp(-1, 1)


@pytest.mark.parametrize(("kernel", "sigma"), [(7, 2.0), (3, 0.5), (15, 4.0)])
@pytest.mark.parametrize(("h", "w"), [(64, 64), (17, 40)])
def test_gaussian_blur_is_torchvision_s(kernel, sigma, h, w):
    from torchvision.transforms.functional import gaussian_blur  # two seconds: with torch._dynamo

    x = torch.rand(2, 3, h, w) * 2 - 1
    want = gaussian_blur(x, kernel, sigma)
    torch.testing.assert_close(ops.GaussianBlur(kernel, sigma)(x), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 4])
def test_uniform_blur_and_downsample_are_torch_s(factor):
    x = torch.rand(2, 3, 20, 26, dtype=F64)
    want = F.avg_pool2d(F.pad(x, (4, 4, 4, 4), mode="reflect"), 9, 1)
    torch.testing.assert_close(ops.UniformBlur(9)(x), want, rtol=0, atol=1e-14)
    x = torch.rand(2, 3, 32, 48) * 2 - 1
    repeat = torch.ones(factor, factor)
    pooled = torch.kron(F.avg_pool2d(x, factor), repeat)
    torch.testing.assert_close(ops.Downsample(factor)(x), pooled, rtol=0, atol=1e-6)
    cubic = F.interpolate(x, scale_factor=1 / factor, mode="bicubic", antialias=True)
    torch.testing.assert_close(ops.Downsample(factor, True)(x), torch.kron(cubic, repeat), rtol=0, atol=2e-6)


@pytest.mark.parametrize("op", BLURS + SHRINK, ids=str)
def test_unit_gain_and_no_shift(op):
    flat = torch.full((1, 3, 24, 32), 0.7, dtype=F64)
    torch.testing.assert_close(op(flat), flat, rtol=0, atol=1e-12)
    if op in SHRINK:
        return
    impulse = torch.zeros(1, 3, 24, 32, dtype=F64)
    impulse[..., 11, 17] = 1
    spot = op(impulse)
    assert spot.sum().item() == pytest.approx(3)
    for side, centre in ((3, 11), (2, 17)):
        places = torch.arange(spot.shape[5 - side], dtype=F64)
        assert float((spot.sum(side) @ places).mean()) == pytest.approx(centre, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(op=st.sampled_from(LINEAR), h=st.integers(2, 8), w=st.integers(2, 8), seed=st.integers(0, 999))
def test_linear_and_adjoint(op, h, w, seed):
    x, y, z = torch.rand(3, 2, 3, 4 * h, 4 * w, generator=torch.Generator().manual_seed(seed), dtype=F64)
    assert float((op(x) * y).sum()) == pytest.approx(float((x * op.adjoint(y)).sum()), rel=1e-12)
    torch.testing.assert_close(op(0.3 * x - 0.5 * z), 0.3 * op(x) - 0.5 * op(z), rtol=0, atol=1e-12)
    assert op.adjoint(1e3 * y).shape == y.shape  # of any range


@pytest.mark.parametrize("op", [ops.GaussianBlur(), ops.UniformBlur(5)], ids=str)
def test_inverse(op):
    """lam = 0 undoes the blur; lam > 0 solves H^T (H x - y) + lam x = 0."""
    x = smooth(32, 24).double()
    torch.testing.assert_close(op.inverse(op(x), 0.0), x, rtol=0, atol=1e-9)
    y = x.flip(1)
    for lam in (1e-3, 0.5):
        found = op.inverse(y, lam)
        residual = op.adjoint(op.apply(found) - y) + lam * found
        assert residual.abs().max() < 1e-12
        assert found.norm() > 0.1
    assert op.inverse(y.float(), 1e-3).dtype == torch.float32


@pytest.mark.parametrize("op", [*BLURS, ops.UniformBlur(5), *SHRINK, ops.GaussianBlur(9, 3.0)], ids=str)
@pytest.mark.parametrize(("h", "w"), [(32, 24), (12, 60), (33, 17)])
def test_the_halved_inverse_is_that_of_the_whole_svd(op, h, w):
    """To 1e-10, down to weights that hardly matter; sides that are odd as well."""
    if op in SHRINK and h % 4:
        return
    y = torch.rand(2, 3, h, w, dtype=F64) * 2 - 1
    (u, s, v), (p, r, q) = (torch.linalg.svd(op.matrix(n)) for n in (h, w))
    for lam in (1e-1, 2e-4, 1e-5):
        gain = (s[:, None] * r) / ((s[:, None] * r) ** 2 + lam)
        torch.testing.assert_close(op.inverse(y, lam), v.T @ (u.T @ y @ p * gain) @ q, rtol=0, atol=1e-10)


class Shift(operators.Separable):
    """A blur with more to its left than to its right."""

    def matrix(self, n):
        return torch.eye(n, dtype=F64) * 0.8 + torch.diag(torch.full((n - 1,), 0.2, dtype=F64), -1)


def test_an_operator_that_is_not_symmetric_is_inverted_too():
    x = smooth(20, 16).double()
    assert not torch.equal(Shift().matrix(5), Shift().matrix(5).flip(0, 1))
    torch.testing.assert_close(Shift().inverse(Shift()(x)), x, rtol=0, atol=1e-9)


def test_a_large_side_costs_half_an_svd(monkeypatch):
    """Only matrices of half the size are decomposed, and photographs plane by plane."""
    sizes, svd = [], torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda a: sizes.append(a.shape[0]) or svd(a))
    x = torch.rand(1, 3, 91, 70, dtype=F64)
    op = ops.GaussianBlur(5, 1.1)  # not used elsewhere
    want = op.inverse(x, 1e-3)
    assert sizes == [46, 45, 35, 35]
    split, counts = torch.Tensor.split, []

    def spy(z, size, *dim):
        counts.extend([size] * isinstance(size, int))
        return split(z, size, *dim)

    monkeypatch.setattr(torch.Tensor, "split", spy)
    for pixels in (100, 2 * 91 * 70):
        monkeypatch.setattr(operators, "PIXELS", pixels)
        torch.testing.assert_close(op.inverse(x, 1e-3), want, rtol=0, atol=1e-12)
    assert counts == [1, 2]


def test_remembered_matrices_are_bounded_by_their_bytes(monkeypatch):
    """Sixty sizes of picture, and one that is larger than all that is kept."""
    monkeypatch.setattr(operators, "KEPT_BYTES", 200_000)
    op = ops.GaussianBlur(3, 0.9)
    for n in (*range(20, 80), 150):
        x = smooth(n, n + 1, 1).double()
        torch.testing.assert_close(op.inverse(op(x)), x, rtol=0, atol=1e-9)
        assert 0 < sum(t.nbytes for kept in operators._store.values() for t in kept) <= 200_000 or n == 150
    op(smooth(20, 20)), op(smooth(20, 20))
    made = []
    monkeypatch.setattr(ops.GaussianBlur, "matrix", lambda self, n: made.append(n))
    op(smooth(20, 20))
    assert made == []


def test_operators_have_one_short_line():
    full = ops.create_degradation("blur-gauss", noise=0.1, quantise=True)
    for op in (full, *LINEAR, ops.FreeformMask(), ops.JPEG()):
        op(smooth(16, 16), torch.Generator())
        assert len(repr(op)) <= 200
        assert "\n" not in repr(op)


@pytest.mark.parametrize("name", ["noise", "inpaint-freeform", "jpeg", "mixture"])
def test_an_image_is_degraded_alone_as_in_any_batch(name):
    op, x = ops.create_degradation(name, noise=0.1, quantise=True), smooth(16, 16, 4)
    whole = op(x, generators([4, 5, 6, 4], 4))
    for i, k in enumerate([4, 5, 6, 4]):
        assert torch.equal(op(x[i : i + 1], generators(k, 1)), whole[i : i + 1])
    assert not torch.equal(op(x, generators(4, 4))[1:], whole[1:])
    with pytest.raises(ValueError, match="expected 4 generators, one for each image, got 3"):
        op(x, generators(0, 3))


def test_jpeg_is_pillow_s_and_worsens_with_quality():
    x, errors = smooth(48, 64), []
    for quality in (5, 10, 30, 60, 95):
        stream = io.BytesIO()
        Image.fromarray(to_uint8(x[0]).permute(1, 2, 0).numpy()).save(stream, "jpeg", quality=quality)
        want = torch.from_numpy(np.array(Image.open(stream))).permute(2, 0, 1).float()
        found = ops.JPEG(quality)(x)
        assert (to_uint8(found[0]).float() - want).abs().mean() < 0.5  # grey levels
        errors.append(float((found - x).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 5 * errors[-1]


@pytest.mark.parametrize(
    ("fraction", "rows", "columns"), [(0.5, 16, 12), (0.3, 10, 7), (0.6, 19, 14), (0.0, 0, 0), (1.0, 32, 24)]
)
def test_centre_mask(fraction, rows, columns):
    hole = ops.CentreMask(fraction)(torch.ones(1, 3, 32, 24))[0, 0] == 0
    top, left = (32 - rows) // 2, (24 - columns) // 2
    want = torch.zeros(32, 24, dtype=torch.bool)
    want[top : top + rows, left : left + columns] = True
    assert torch.equal(hole, want)


def test_freeform_mask():
    def draw(seed, **options):
        g = torch.Generator().manual_seed(seed)
        return ops.FreeformMask(**options)(torch.ones(32, 3, 32, 48), g) == 0

    hole = draw(0)
    assert torch.equal(hole, draw(0))
    assert not torch.equal(hole, draw(1))
    assert torch.equal(hole[:, 0], hole[:, 2])
    assert not torch.equal(hole[0], hole[1])
    share = [float(draw(0, width=w).float().mean()) for w in (0.01, 0.06, 0.2)]
    assert 0 < share[0] < 0.1 < share[1] < 0.5 < share[2] < 1


def test_freeform_strokes_are_polylines_with_round_ends():
    """Against the distance to 200 points of each segment, from the same draws; coordinates in [0, 1]."""
    h, w = 24, 36
    op = ops.FreeformMask(strokes=2, corners=3, width=0.08)
    hole = op(torch.ones(3, 3, h, w, dtype=F64), torch.Generator().manual_seed(3))[:, 1] == 0
    walk = torch.rand(3, 2, 4, 2, generator=torch.Generator().manual_seed(3), dtype=F64)
    walk[:, :, 1:] = (walk[:, :, 1:] - 0.5) * 0.8  # a start anywhere, then steps
    corners, along = walk.cumsum(2)[..., None, :], torch.linspace(0, 1, 200, dtype=F64)[:, None]
    points = torch.lerp(corners[:, :, :-1], corners[:, :, 1:], along).reshape(3, -1, 2)
    y, x = (torch.arange(n, dtype=F64) / n + 0.5 / n for n in (h, w))
    gap = torch.cdist(torch.cartesian_prod(y, x), points).amin(2).reshape(3, h, w)
    clear = (gap - 0.08).abs() > 1e-4
    assert torch.equal(hole[clear], (gap <= 0.08)[clear])
    assert hole.any((1, 2)).all()


def test_noise_has_the_stated_deviation_and_the_generator_decides():
    x, op = torch.zeros(4, 3, 100, 100), ops.Noise(0.05)
    first, same = (op(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, same)
    n = x.numel()  # mean and deviation within five standard errors
    assert abs(float(first.mean())) < 5 * 0.1 / n**0.5
    assert abs(float(first.std()) / 0.1 - 1) < 5 / (2 * n) ** 0.5


def test_quantise_is_a_png_round_trip_and_idempotent():
    x, stream = torch.rand(1, 3, 9, 7) * 2.4 - 1.2, io.BytesIO()
    Image.fromarray(to_uint8(x[0]).permute(1, 2, 0).numpy()).save(stream, "png")
    want = to_float(torch.from_numpy(np.array(Image.open(stream))).permute(2, 0, 1))
    once = ops.Quantise()(x)
    assert torch.equal(once[0], want)
    assert torch.equal(ops.Quantise()(once), once)
    assert ops.Quantise()(x.double()).dtype == F64


def test_parts_apply_in_order_and_draw_from_one_generator():
    x, g = smooth(), torch.Generator().manual_seed(5)
    full = ops.create_degradation("blur-gauss", sigma=1.5, noise=0.1, quantise=True)
    assert full == ops.Compose((ops.GaussianBlur(7, 1.5), ops.Noise(0.1), ops.Quantise()))
    assert str(full) == "GaussianBlur(kernel_size=7, sigma=1.5) + Noise(std=0.1) + Quantise()"
    assert str(ops.create_degradation("none")) == "no damage"
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    want = ops.Quantise()(ops.GaussianBlur(7, 1.5)(x) + 0.2 * noise)
    torch.testing.assert_close(full(x, g), want, rtol=0, atol=1e-6)
    assert torch.equal(ops.create_degradation("none")(x), x)
    five = ops.create_degradation("blur-uniform", kernel_size=5.0).kernel_size  # a flag is a float
    assert type(five) is int
    with pytest.raises(ValueError, match=r"whole number, got 7\.9"):
        ops.create_degradation("blur-gauss", kernel_size=7.9)


def one_stage(**strengths):
    """u of a mixture in which only the named stages happen: blur, shrink, noise, jpeg or none."""
    places = {"blur": 1, "shrink": 2, "noise": 3, "jpeg": 4}
    u = torch.full((1, 14), 0.999)
    for name, values in strengths.items():
        u[0, places[name]] = 0.1
        first = {"blur": 5, "shrink": 10, "noise": 12, "jpeg": 13}[name]
        u[0, first : first + len(values)] = torch.tensor(values)
    return u


@pytest.mark.parametrize(
    ("strengths", "want"),
    [
        ({"blur": [2 / 3, 0.5, 0, 0, 0.01]}, lambda x, n: ops.GaussianBlur(7, 2.0)(x)),
        ({"blur": [0.2, 0.5, 0, 0, 0.99]}, lambda x, n: ops.GaussianBlur(17, 0.6)(x)),
        ({"blur": [0, 0.1, 1.0, 0, 0]}, lambda x, n: mean_along(x, 13, -1)),  # moved by 12 pixels
        ({"blur": [0, 0.1, 0.5, 0.5, 0]}, lambda x, n: mean_along(x, 7, -2)),
        ({"shrink": [1 / 3, 0.9]}, lambda x, n: resized(x, "area")),
        ({"shrink": [1 / 3, 0.5]}, lambda x, n: resized(x, "bicubic")),
        ({"noise": [0.5]}, lambda x, n: x + 2 * 0.1 * 0.25 * n),
        ({"jpeg": [0.5]}, lambda x, n: ops.JPEG(63)(ops.Quantise()(x))),
        ({}, lambda x, n: x),
    ],
)
def test_a_mixture_s_stages_are_the_operators(strengths, want):
    x, noise = (
        ops.Quantise()(smooth(32, 48, 1)),
        torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0)),
    )
    found = ops.Mixture().degrade(x, one_stage(**strengths), noise)
    wanted = ops.Quantise()(want(x, noise).clamp(-1, 1))
    assert (found - wanted)[..., 8:-8, 8:-8].abs().max() <= 1.01 * 2 / 255
    assert (found != x).any() == bool(strengths)


def mean_along(x, taps, dim):
    wide = F.pad(x, (8, 8, 8, 8), mode="reflect")
    moved = [wide.roll(k, dim) for k in range(-(taps // 2), taps // 2 + 1)]
    return (sum(moved) / taps)[..., 8:-8, 8:-8]


def resized(x, how):
    small = F.interpolate(x, size=(16, 24), mode=how, antialias=how != "area")
    return F.interpolate(small, size=x.shape[-2:], mode="bicubic").clamp(-1, 1)


@pytest.mark.slow
def test_a_mixture_leaves_its_share_alone_and_each_stage_has_its_chance():
    x = ops.Quantise()(smooth(16, 16, 1)).expand(2000, -1, -1, -1)
    same = (ops.Mixture()(x, torch.Generator().manual_seed(3)) == x).flatten(1).all(1).float().mean()
    # 0.12, and what no stage takes: 0.3 * 0.75 * 0.6 * 0.6 of the rest; and blurs too narrow to see
    assert 0.19 <= same <= 0.24
    always, never = (
        ops.Mixture(clean=1.0),
        ops.Mixture(clean=0.0, sigma=0.01, factor=1.0, std=0.0, quality=95),
    )
    assert torch.equal(always(x, torch.Generator().manual_seed(3)), x)
    kept = (never(x, torch.Generator().manual_seed(3)) == x).flatten(1).all(1).float().mean()
    assert abs(kept - 0.6) < 0.04  # JPEG alone is left


def test_a_mixture_s_kernels_have_unit_gain_and_the_stated_width():
    u = torch.rand(200, 5, generator=torch.Generator().manual_seed(0))
    u[:, 1], u[:, 4] = 0.5, 0.99  # Gaussian, whole
    u[:, 0] = u[:, 0] * 0.5 + 0.28
    kernels, r = ops.Mixture().kernels(u), torch.arange(-8.0, 9.0)
    assert (kernels.sum((1, 2)) - 1).abs().max() < 1e-5
    assert (kernels.sum(1) @ r).abs().max() < 1e-5
    spread = (kernels.sum(1) @ r**2).sqrt()
    assert (spread / (3 * u[:, 0]) - 1).abs().max() < 0.04


@pytest.mark.parametrize("name", ops.DEGRADATIONS)
def test_every_name_keeps_shape_dtype_and_input(name):
    op = ops.create_degradation(name)
    for dtype in (torch.float32, F64):
        x = smooth(32, 48).to(dtype)
        before, y = x.clone(), op(x, torch.Generator().manual_seed(0))
        assert (y.shape, y.dtype) == (x.shape, dtype)
        assert torch.equal(x, before)
        assert (name == "none") == torch.equal(y, x)


def test_gradients_flow_even_after_inference_mode():
    op = ops.GaussianBlur(9, 1.25)  # not used elsewhere: its matrices are made under inference mode
    with torch.inference_mode():
        op.inverse(op(smooth(20, 20)), 0.1)
    x = smooth(20, 20).requires_grad_()
    op.inverse(op(x), 0.1).sum().backward()
    assert x.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.create_degradation("blur"), "expected a degradation among ['blur-gauss',"),
        (lambda: ops.create_degradation("jpeg", level=3), "jpeg takes ['quality'], got ['level']"),
        (lambda: ops.create_degradation("sr4x-pool", bicubic=True), "sr4x-pool takes ['factor'], got"),
        (lambda: ops.create_degradation("jpeg", quality=0), "expected quality from 1 to 100, got 0"),
        (lambda: ops.GaussianBlur(sigma=0), "expected sigma from 0.01 to 1000, got 0"),
        (lambda: ops.GaussianBlur(sigma=float("nan")), "got nan"),
        (lambda: ops.CentreMask(1.5), "expected fraction from 0 to 1, got 1.5"),
        (lambda: ops.create_degradation("none", noise=-0.1), "expected std from 0 to 10, got -0.1"),
        (lambda: ops.FreeformMask(strokes=0), "expected strokes from 1 to 100, got 0"),
        (lambda: ops.Downsample(0), "expected factor from 1 to 1024, got 0"),
        (lambda: ops.Downsample(4)(smooth(32, 26)), "expected a size divisible by 4, got 26"),
        (lambda: ops.GaussianBlur(6)(smooth()), "expected an odd kernel"),
        (lambda: ops.GaussianBlur(17)(smooth(8, 32)), "sides of at least 9 pixels for 17 taps, got 8"),
        (lambda: ops.GaussianBlur()(smooth()[0]), "degradation: expected float images (B, C, H, W)"),
        (lambda: ops.GaussianBlur()(to_uint8(smooth())), "got torch.uint8"),
        (lambda: ops.GaussianBlur()(smooth() * 255), "expected values in [-1, 1], got ["),
        (lambda: ops.JPEG().adjoint(smooth()), "JPEG(quality=10) is not linear and has no adjoint"),
        (lambda: ops.create_degradation("blur-gauss", sigma="2"), "sigma from 0.01 to 1000, got '2'"),
        (lambda: ops.JPEG()(torch.zeros(1, 4, 8, 8)), "expected 1 or 3 channels for JPEG(quality=10), got 4"),
        (lambda: ops.Mixture()(torch.zeros(1, 4, 8, 8)), "expected 1 or 3 channels for Mixture(sigma=3.0"),
        (lambda: ops.Grey()(torch.zeros(1, 1, 8, 8)), "expected 3 channels for Grey(), got 1"),
    ],
)
def test_errors_are_one_clear_sentence(call, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_channel_is_encoded_as_grey():
    x = smooth(16, 24)[:1].mean(1, keepdim=True)
    file = io.BytesIO()
    Image.fromarray(to_uint8(x)[0, 0].numpy()).save(file, "JPEG", quality=30)
    assert torch.equal(to_uint8(ops.JPEG(30)(x))[0, 0], torch.from_numpy(np.array(Image.open(file))))
    mixed = ops.Mixture(clean=0.0)(x.repeat(6, 1, 1, 1), torch.Generator().manual_seed(0))
    assert mixed.shape == (6, 1, 16, 24)


def test_grey_is_pillow_s_luma_in_all_channels():
    x = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    ours = to_uint8(ops.Grey()(to_float(x)))
    for y, image in zip(ours, x, strict=True):
        luma = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")).astype(int)
        assert all(np.abs(plane.numpy().astype(int) - luma).max() <= 1 for plane in y)


@pytest.mark.parametrize("name", ops.DEGRADATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_name_takes_short_floats(name, dtype):
    x, op = smooth(32, 48).to(dtype), ops.create_degradation(name)
    y = op(x, torch.Generator().manual_seed(0))
    assert (y.shape, y.dtype) == (x.shape, dtype)
    if name == "mixture":  # as of the same numbers and draws in float32
        g = torch.Generator().manual_seed(0)
        u, noise = torch.rand(2, 14, generator=g), torch.randn(x.shape, generator=g, dtype=dtype)
        assert torch.equal(y, op.degrade(x.float(), u, noise.float()).to(dtype))


@pytest.mark.parametrize("name", ["blur-gauss", "noise", "inpaint-freeform", "mixture"])
@pytest.mark.parametrize("seeds", [3, [3, 4], "ab", (torch.Generator(), 4)])
def test_a_seed_is_no_generator(name, seeds):
    with pytest.raises(ValueError, match=r"^expected generators of torch's, not seeds, got ."):
        ops.create_degradation(name)(smooth(32, 48), seeds)


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [
        (ops.GaussianBlur, "kernel_size", 7.5),
        (ops.UniformBlur, "kernel_size", 8.9),
        (ops.Downsample, "factor", 2.5),
        (ops.JPEG, "quality", 10.5),
        (ops.FreeformMask, "strokes", 2.5),
        (ops.FreeformMask, "corners", 2.5),
        (ops.Mixture, "quality", 30.5),
    ],
)
def test_a_kind_s_whole_numbers_are_whole_also_where_it_is_made_directly(cls, field, value):
    with pytest.raises(ValueError, match=f"^expected {field} to be a whole number, got {value}$"):
        cls(**{field: value})
    made = cls(**{field: float(getattr(cls, field))})
    assert made == cls()
    assert type(getattr(made, field)) is int
    x = smooth(32, 48)
    assert torch.equal(*(op(x, torch.Generator().manual_seed(0)) for op in (made, cls())))


def test_bicubic_shrinking_alone_overshoots():
    edge = torch.ones(1, 3, 32, 32)
    edge[..., :14] = -1
    for name in set(ops.DEGRADATIONS) - {"noise"}:
        high = float(ops.create_degradation(name)(edge, torch.Generator().manual_seed(0)).abs().max())
        assert (high > 1.05) if name == "sr4x-bicubic" else (high <= 1 + 1e-6), name


def test_grey_s_adjoint_is_of_three_channels():
    for y in (torch.zeros(2, 1, 8, 8), torch.zeros(3, 8, 8)):
        with pytest.raises(ValueError, match=r"expected 3 channels for Grey\(\), got"):
            ops.Grey().adjoint(y)
