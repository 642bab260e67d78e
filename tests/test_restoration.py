"""Pictures of any size, number and kind are restored, the same alone and in company, on any device."""

import json
import re
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from PIL import Image
from skimage.data import astronaut
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from i2sb_lib import devices, operators, progress, restoration, restore_image, tiles
from i2sb_lib.baselines import Wiener, richardson_lucy
from i2sb_lib.checkpoints import SHIPPED, Pretrained, load_pretrained, save_pretrained
from i2sb_lib.data import load_images
from i2sb_lib.degradations import JPEG, Noise, create_degradation
from i2sb_lib.denoiser import Denoiser, ModelConfig
from i2sb_lib.estimation import estimate_sigma
from i2sb_lib.images import psnr, quantise, to_float, to_uint8
from i2sb_lib.samplers import generators, sample
from i2sb_lib.tiles import Windows

SHIPS_WEIGHTS = any(list(s.glob("*/model.json")) for s in SHIPPED)
LEVEL = 1 / 127.5


def build(**options) -> Pretrained:
    """A model with random weights everywhere, the zero-initialised layers included."""
    torch.manual_seed(0)
    denoiser = Denoiser(ModelConfig("unet-tiny", **options)).eval().requires_grad_(False)
    for p in denoiser.parameters():
        p += 0.05 * torch.randn(p.shape)
    return Pretrained(denoiser, {}, Path("model"))


@pytest.fixture(scope="module")
def model() -> Pretrained:
    return build(moments=(0.3, 0.25, 0.26))


@pytest.fixture
def x1():
    return torch.rand(3, 3, 16, 16) * 2 - 1


class Nearby(nn.Module):
    """A network of two small convolutions: what it says of a pixel depends on no pixel 8 away."""

    stride = 1

    def __init__(self, planes: int = 6) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(planes, 8, 9, padding=4), nn.Tanh(), nn.Conv2d(8, 3, 9, padding=4)
        )
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x, t):
        self.seen.append(tuple(x.shape))
        return self.layers(x) * (1 + t[:, None, None, None])


def local(monkeypatch) -> Pretrained:
    """A model with such a network, in float32."""
    monkeypatch.setattr(restoration, "auto_precision", lambda device: "no")
    model = build()
    torch.manual_seed(1)
    model.denoiser.net = Nearby().requires_grad_(False)
    return model


def test_an_estimate_of_the_time_left_is_of_the_calls_alone(model, x1, monkeypatch):
    """The guess of a large picture takes minutes, once: in the first call it would count for each."""
    bars, guess, made = [], model.denoiser.guess, restoration.progress_bar
    monkeypatch.setattr(model.denoiser, "guess", lambda x: time.sleep(0.5) or guess(x))
    monkeypatch.setattr(restoration, "progress_bar", lambda **how: bars.append(made(**how)) or bars[0])
    model.restore(x1[:1], nfe=2, progress=True)
    assert bars[0].n == 2
    assert bars[0].format_dict["elapsed"] < 0.4


@pytest.mark.parametrize("size", [(61, 47), (5, 5), (1, 1), (2, 30), (1, 24), (16, 16)])
@pytest.mark.parametrize("options", [{}, {"tikhonov": 1e-2}, {"wiener": True}])
def test_any_size_is_padded_and_cropped_back(size, options):
    x1 = torch.rand(2, 3, *size) * 2 - 1
    x0_hat = build(**options).restore(x1, nfe=2)
    assert x0_hat.shape == x1.shape
    assert x0_hat.abs().max() <= 1
    assert x0_hat.isfinite().all()


def test_padding_does_not_reach_far_into_the_image(model):
    """The image goes on by its reflection, and the rest is cut off."""
    x1 = torch.rand(1, 3, 61, 48) * 2 - 1
    reflected = F.pad(x1, (0, 0, 0, 19), mode="reflect")
    assert torch.allclose(model.restore(x1, 1), model.restore(reflected, 1)[:, :, :61], atol=1e-5)


@pytest.mark.skipif(not SHIPS_WEIGHTS, reason="this checkout ships no weights")
@pytest.mark.parametrize("consistency", [0.0, 1e-3])
@pytest.mark.slow
def test_sizes_that_do_not_fit_are_restored_as_well_as_those_that_do(consistency):
    """The blur has its border at the image's side, not where the padding ends."""
    model, blur = load_pretrained("celeba64-deblur", "cpu"), create_degradation("blur-gauss", quantise=True)
    x0, quality = to_float(load_images("embedded", "test", 64, progress=False))[:8], {}
    for n in (64, 60, 57):
        x1 = blur(x0[..., :n, :n])
        quality[n] = psnr(model.restore(x1, 1, consistency=consistency), x0[..., :n, :n]).mean()
    assert min(quality.values()) > quality[64] - 1


def test_seeds_matter_for_the_sde_and_not_for_the_ode(model, x1):
    torch.manual_seed(1)
    first, state = model.restore(x1, 3, "sde", seed=5), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(model.restore(x1, 3, "sde", seed=5), first)
    assert not torch.equal(model.restore(x1, 3, "sde", seed=6), first)
    assert torch.equal(model.restore(x1, 3, "ode", 5), model.restore(x1, 3, "ode", 6))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # and the caller's own generator is left alone


@pytest.mark.parametrize("sampler", ["sde", "dbim"])
def test_an_image_is_restored_alone_as_in_any_batch(model, sampler, monkeypatch):
    monkeypatch.setattr(restoration, "auto_precision", lambda device: "no")
    x1 = torch.rand(5, 3, 16, 16) * 2 - 1
    seeds = [3, 3, 2**70, -1, 0]
    whole = model.restore(x1, 4, sampler, seeds)
    alone = [model.restore(x1[i : i + 1], 4, sampler, k) for i, k in enumerate(seeds)]
    parts = [model.restore(x1, 4, sampler, seeds, batch_size=n) for n in (1, 2, 5)]
    other = model.restore(x1.flip(0), 4, sampler, seeds[::-1]).flip(0)
    for again in (torch.cat(alone), *parts, other):
        assert (again - whole).abs().max() < 1e-3 * LEVEL
    by_place = model.restore(x1, 4, sampler, 3)
    assert (by_place[0] - whole[0]).abs().max() < 1e-3 * LEVEL
    assert (model.restore(x1, 4, sampler, 3, batch_size=2) - by_place).abs().max() < 1e-3 * LEVEL
    assert (by_place[1:] - whole[1:]).abs().amax((1, 2, 3)).min() > LEVEL  # other seeds or places


def test_the_noise_of_an_image_is_its_own_to_the_last_bit(monkeypatch):
    """With a network that says nothing a walk is its noise alone."""
    model, x1 = local(monkeypatch), torch.rand(4, 3, 12, 12) * 2 - 1
    for p in model.denoiser.net.parameters():
        p.zero_()
    whole = model.restore(x1, 5, seed=[7, 8, 9, 7])
    for i, k in enumerate([7, 8, 9, 7]):
        assert torch.equal(model.restore(x1[i : i + 1], 5, seed=k), whole[i : i + 1])
    assert torch.equal(whole, model.restore(x1, 5, seed=[7, 8, 9, 7], batch_size=3))
    fine = model.restore(x1, 5, seed=7)
    assert len({float(v) for v in (fine - whole).abs().amax((1, 2, 3))}) == 4


def test_generators_differ_by_seed_and_place_and_a_list_is_the_first_place():
    draws = {
        (k, i): tuple(torch.randn(4, generator=g).tolist())
        for k in (-1, 0, 1, 2**31, 2**32)
        for i, g in enumerate(generators(k, 50))
    }
    assert len(set(draws.values())) == len(draws)
    for k, g in zip([5, 6, 5], generators([5, 6, 5], 3), strict=True):
        assert torch.equal(torch.randn(4, generator=g), torch.randn(4, generator=generators(k, 1)[0]))


def test_large_pictures_are_done_in_windows_without_a_seam(monkeypatch):
    """The same walk, noise included, as of the whole at once, wherever a window's end is out of sight."""
    model = local(monkeypatch)
    x1 = F.interpolate(torch.rand(1, 3, 20, 16) * 2 - 1, (203, 150), mode="bicubic").clamp(-1, 1)
    how = {"nfe": 3, "seed": 4}
    for sampler in ("ode", "sde"):
        whole = model.restore(x1, sampler=sampler, **how)
        with monkeypatch.context() as patch:
            patch.setattr(tiles, "WINDOW", 96)
            patch.setattr(tiles, "OVERLAP", 32)
            patch.setattr(restoration, "WINDOW", 96)
            model.denoiser.net.seen.clear()
            tiled = model.restore(x1, sampler=sampler, **how)
            assert {shape[2:] for shape in model.denoiser.net.seen} == {(96, 96)}
            assert len(model.denoiser.net.seen) == 3 * 3 * 2  # calls, rows, columns
        gap = (tiled - whole).abs()
        assert 1e-5 < gap.max() < LEVEL
        assert gap[..., :48, :38].max() < 1e-5  # a call carries 8 pixels from where other windows begin


def test_windows_cover_with_weights_that_add_up_to_one():
    sides = {512: 512, 513: 320, 30: 30, 1100: 448, 2000: 512}
    for size in ((512, 512), (513, 30), (1100, 2000)):
        windows, ones = Windows(*size), torch.ones(1, 1, *size)
        assert len(windows) == -(-max(1, size[0] - 64) // 448) * -(-max(1, size[1] - 64) // 448)
        torch.testing.assert_close(windows(lambda x: x, ones), ones)
        torch.testing.assert_close(windows(lambda x, y: x * y, ones, 3 * ones), 3 * ones)
        for side in (-2, -1):
            seen = windows(lambda x, side=side: torch.full_like(x, x.shape[side]), ones)
            torch.testing.assert_close(seen, sides[size[side]] * ones)


@pytest.mark.skipif(not SHIPS_WEIGHTS, reason="this checkout ships no weights")
@pytest.mark.slow
def test_a_shipped_model_s_windows_agree_with_the_whole(monkeypatch):
    """Its norms see all of a window: nearly all pixels agree to one grey level, and none is worse for it."""
    model, blur = load_pretrained("celeba64-deblur", "cpu"), create_degradation("blur-gauss", quantise=True)
    x0 = to_float(torch.from_numpy(astronaut()[:256, 64:320].copy()).permute(2, 0, 1))[None]
    x1 = blur(x0)
    whole = model.restore(x1, 1)
    monkeypatch.setattr(tiles, "WINDOW", 192)
    tiled = model.restore(x1, 1)
    gap = (tiled - whole).abs() / LEVEL
    assert 0 < gap.mean() < 0.25
    assert (gap < 1).float().mean() > 0.99
    assert psnr(tiled, x0) > psnr(whole, x0) - 0.05


def test_the_grid_s_power_reaches_the_sampler(model, x1):
    times = model.denoiser.bridge.schedule.grid(3, power=2)
    expected = sample(
        lambda xt, t: model.denoiser(xt, t, x1),
        model.denoiser.bridge,
        x1,
        times=times,
        generator=generators(0, 3),
    )
    restored = model.restore(x1, nfe=3, power=2)
    torch.testing.assert_close(restored, expected.x.clamp(-1, 1), rtol=0, atol=0.02)  # bfloat16
    assert (restored - model.restore(x1, nfe=3)).abs().max() > 0.02


def test_consistency_brings_a_restoration_closer_to_what_was_seen(model, x1):
    blur = model.denoiser.operator
    seen = blur.apply(x1)
    gaps = [blur.apply(model.restore(seen, nfe=2, consistency=lam)) - seen for lam in (0, 1e-2, 1e-3)]
    none, weak, strong = (float(gap.square().mean()) for gap in gaps)
    assert none > 1.2 * weak > 1.44 * strong


class Apple(torch.Tensor):
    """A tensor kept on the CPU that says it is elsewhere ("meta"), where there is no float64."""

    @staticmethod
    def __new__(cls, held):
        if held.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64")
        return cls._make_wrapper_subclass(cls, held.shape, held.stride(), dtype=held.dtype, device="meta")

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, f, types, args=(), kwargs=None):
        return Macintosh.run(f, args, kwargs or {})


class Macintosh(TorchDispatchMode):
    """While it is on, what goes to "meta" becomes an Apple, which does not mix with the CPU's tensors."""

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        return self.run(f, args, kwargs or {})

    @staticmethod
    def run(f, args, kwargs):
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        there = any(isinstance(t, Apple) for t in tensors)
        if there and "copy" not in str(f):
            assert all(isinstance(t, Apple) or t.ndim == 0 for t in tensors), f"{f} mixes devices"
        if kwargs.get("device") is not None:
            there, kwargs = torch.device(kwargs["device"]).type == "meta", {**kwargs, "device": "cpu"}
        args, kwargs = tree_map_only(Apple, lambda t: t.held, (args, kwargs))
        out = f(*args, **kwargs)
        return tree_map_only(torch.Tensor, Apple, out) if there else out


class Here(ThreadPoolExecutor):
    """Works in the thread that asks, where a mode of that thread is on."""

    def submit(self, f, *args):
        done = Future()
        done.set_result(f(*args))
        return done


def test_a_device_without_float64_does_all_the_same(tmp_path, monkeypatch):
    """An operator-aware model with consistency, as on Apple's GPUs, which `load_pretrained` takes."""
    assert "mps" in devices.WITHOUT_FLOAT64
    monkeypatch.setattr(devices, "WITHOUT_FLOAT64", ("meta",))
    monkeypatch.setattr(operators, "ThreadPoolExecutor", Here)
    monkeypatch.setattr(restoration, "auto_precision", lambda device: "no")
    save_pretrained(tmp_path, build(tikhonov=1e-3).denoiser, {})
    x1, how = torch.rand(2, 3, 18, 20) * 2 - 1, {"nfe": 3, "seed": 4, "consistency": 1e-3}
    here = load_pretrained(tmp_path, "cpu").restore(x1, **how)
    with Macintosh():
        model, away = load_pretrained(tmp_path, "meta"), x1.to("meta")
        with pytest.raises(TypeError, match="float64"):
            away.double()
        there = model.restore(x1, **how)
        blur, pictures = model.denoiser.operator, torch.rand(5, 3, 18, 20)
        others = [
            blur(away),
            blur.adjoint(away),
            blur.inverse(away, 1e-2),
            Noise(0.1)(away, generators(1, 2)),
        ]
        others += [Wiener(blur, pictures.to("meta"))(away), richardson_lucy(away, blur, 3)]
        assert all(isinstance(x, Apple) and x.dtype == torch.float32 for x in others)
        others = [x.cpu() for x in others]
    torch.testing.assert_close(there, here, rtol=0, atol=1e-4)  # in torch 2.4 not to the last bit
    want = [blur(x1), blur.adjoint(x1), blur.inverse(x1, 1e-2), Noise(0.1)(x1, generators(1, 2))]
    want += [Wiener(blur, pictures)(x1), richardson_lucy(x1, blur, 3)]
    for a, b in zip(others, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("batch", [np.zeros((2, 9, 9, 3), np.uint8), torch.zeros(1, 3, 9, 9)])
def test_a_batch_inside_a_list_is_refused_before_the_work(model, batch, monkeypatch):
    monkeypatch.setattr(Pretrained, "_walk", lambda *a, **k: pytest.fail("restored"))
    shape = re.escape(str(tuple(batch.shape)))
    for work in (model.restore, lambda x: restore_image(x[0], model)):
        with pytest.raises(ValueError, match=rf"expected a single picture, got a batch of shape {shape}, "):
            work([batch])


def test_the_device_that_is_taken_and_its_precision(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for there, kind in ((True, "mps"), (False, "cpu")):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=there: there)
        assert devices.auto_device() == torch.device(kind)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert [devices.auto_precision(torch.device(d)) for d in ("cpu", "mps")] == ["bf16", "no"]


def test_images_in_0_to_1_are_warned_of_and_bright_photographs_are_not(model):
    bright = to_float(torch.randint(140, 256, (1, 3, 16, 16), dtype=torch.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fine in (bright, torch.zeros(1, 3, 8, 8), torch.rand(1, 3, 8, 8) - 0.1):
            model.restore(fine, 1)
    for slip in (torch.rand(1, 3, 8, 8), to_uint8(bright).float() / 255):
        with pytest.warns(UserWarning, match=r"no value is below 0: .* 2 \* x1 - 1") as caught:
            model.restore(slip, 1)
        assert [w.filename for w in caught] == [__file__]


@pytest.mark.parametrize(
    "message", ["CUDA out of memory. Tried", "DefaultCPUAllocator: can't allocate memory"]
)
def test_too_little_memory_is_one_sentence_with_what_to_do(model, monkeypatch, message):
    def fail(*args):
        raise RuntimeError(message)

    monkeypatch.setattr(model.denoiser.net, "forward", fail)
    with pytest.raises(MemoryError, match=r"3 of 9 x 8 pixels at a time .*cpu: take a smaller batch_size"):
        model.restore(torch.zeros(3, 3, 9, 8))
    with pytest.raises(MemoryError, match=r"1 of 9 x 8 pixels .*: take smaller images or a device"):
        model.restore(torch.zeros(3, 3, 9, 8), batch_size=1)
    message = "something else"
    with pytest.raises(RuntimeError, match="something else"):
        model.restore(torch.zeros(3, 3, 9, 8))


def test_a_bar_counts_network_calls(model, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "DELAY", 0.0)
    model.restore(torch.zeros(4, 3, 8, 8), 3, batch_size=2, progress=True)
    assert "6/6" in capsys.readouterr().err
    model.restore(torch.zeros(4, 3, 8, 8), 3)
    assert capsys.readouterr().err == ""


def test_a_picture_with_wiener_s_guess_is_restored_alone_as_in_any_batch():
    """To the last bit of that guess, which the network's bfloat16 would make a grey level of."""
    model, generator = build(wiener=True), torch.Generator().manual_seed(0)
    x1 = F.avg_pool2d(torch.rand(16, 3, 48, 48, generator=generator) * 2 - 1, 5, 1, 2)
    whole = model.restore(x1, 2, seed=range(16))
    alone = torch.cat([model.restore(x[None], 2, seed=i) for i, x in enumerate(x1)])
    assert (whole - alone).abs().max() < 0.02 * LEVEL


def test_a_wait_before_the_first_call_is_told(model, monkeypatch, capsys):
    monkeypatch.setattr(restoration, "FACTORS", 20)
    x1 = torch.zeros(1, 3, 16, 24)
    for one, show in ((model, True), (build(), True), (build(tikhonov=1e-3), False)):
        one.restore(x1, 1, progress=show)
        assert capsys.readouterr().err == ""
    for _ in range(2):  # once
        build(tikhonov=1e-3).restore(x1, 1, progress=True)
    assert capsys.readouterr().err == "i2sb: 16 x 24: first the blur's factors, once for each size\n"
    model.restore(x1.mT, 1, consistency=0.1, progress=True)  # a blind one's, too
    assert capsys.readouterr().err == "i2sb: 24 x 16: first the blur's factors, once for each size\n"


def test_a_model_says_what_it_was_made_for():
    for name, damage in (("", "GaussianBlur(kernel_size=7, sigma=2.0)"), ("-noisy", "Noise(std=0.05)")):
        told = load_pretrained(f"celeba64-deblur{name}", "cpu")
        assert damage in told.made_for
        assert told.made_for.endswith("+ Quantise() on celeba64")
        assert f"for {told.made_for}: " in repr(told)
    own = build()
    own.record = {"training": {"degradation": "custom", "data": "memory"}}
    assert own.made_for == "damage of its own on memory"
    own.record = {}
    assert own.made_for == "damage of its own on pictures of its own"


def test_unless_told_a_model_makes_the_calls_that_it_recommends():
    own, x1 = build(), torch.rand(1, 3, 8, 8) * 2 - 1
    for record, calls in (({}, 10), ({"nfe": 2}, 2)):
        own.record = record
        assert torch.equal(own.restore(x1), own.restore(x1, calls))
    assert not torch.equal(own.restore(x1), own.restore(x1, 10))
    how = {"sampler": "dbim", "power": 2.0, "consistency": 1e-2}
    own.record = {"nfe": 3, **how}
    assert torch.equal(own.restore(x1), own.restore(x1, 3, **how))
    assert torch.equal(own.restore(x1, 3), own.restore(x1, 3, "sde"))  # nothing where the calls are given
    assert torch.equal(own.restore(x1, power=1.0), own.restore(x1, 3, **how | {"power": 1.0}))
    alone = build(process="regression")
    assert torch.equal(alone.restore(x1), alone.restore(x1, 1))
    own.record = {"nfe": "many"}
    with pytest.raises(ValueError, match="many"):
        own.restore(x1)
    with pytest.raises(ValueError, match="expected sampler in"):  # before a picture is read
        alone.recommended(sampler="foo")


def test_what_would_hardly_change_is_left_alone():
    own = build()
    x1 = torch.stack([torch.zeros(3, 8, 8), torch.rand(3, 8, 8) * 2 - 1])
    found = own.restore(x1, 1)
    moved = 127.5 * (found - x1).square().mean((1, 2, 3)).sqrt()
    assert moved[0] != moved[1]
    own.record = {"least_change": float(moved.mean())}
    kept = own.restore(x1, 1)
    less = int(moved.argmin())
    assert torch.equal(kept[less], x1[less])
    assert torch.equal(kept[1 - less], found[1 - less])


def test_what_has_no_colour_stays_so_where_the_record_says_it():
    own = build()
    grey = (torch.rand(1, 1, 16, 16) * 2 - 1).expand(1, 3, 16, 16)
    x1 = torch.cat([grey, grey + torch.tensor([0.1, 0, 0])[:, None, None]])
    found = own.restore(x1, 1)
    assert float((found[0] - found[0].mean(0)).abs().max()) > 0.01
    own.record = {"grey_stays": True}
    kept = own.restore(x1, 1)
    torch.testing.assert_close(kept[0], found[0].mean(0).expand(3, 16, 16))
    assert torch.equal(kept[1], found[1])  # nearly grey is not grey


def test_a_model_in_one_line(model):
    for part in (model, model.denoiser, build(tikhonov=1e-3), build(cond_x1=False).denoiser):
        assert len(repr(part)) <= 240
        assert "\n" not in repr(part)
    weights = sum(p.numel() for p in model.denoiser.parameters())
    assert f"blind, unet-tiny of {weights:,} weights) on cpu" in repr(model)
    kept = sample(lambda xt, t: xt, model.denoiser.bridge, torch.zeros(2, 3), 5, keep=True)
    assert repr(kept) == "Samples(x of shape (2, 3), nfe=5, 6 states kept)"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.zeros(3, 16, 16), r"\(3, 16, 16\)"),
        (torch.zeros(1, 1, 16, 16), r"\(1, 1, 16, 16\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "uint8"),
        (torch.full((1, 3, 16, 16), 255.0), r"\[-1, 1\], got \[255, 255\]"),
        (torch.full((1, 3, 16, 16), float("nan")), "nan"),
        (Image.new("RGB", (0, 4)), "expected a picture with pixels, got 0 x 4"),
    ],
)
def test_other_input_is_refused_with_what_it_was(model, bad, words):
    with pytest.raises(ValueError, match=words):
        model.restore(bad)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "euler"}, "sampler in"),
        ({"nfe": 2.5}, r"whole number of steps, at least one, .*got n=2\.5"),
        ({"nfe": 0}, "got n=0"),
        ({"power": float("nan")}, "power=nan"),
        ({"power": "2"}, "power='2'"),
        ({"power": 10**400}, "power=1000"),
        ({"nfe": 10**400}, "got n=1000"),
        ({"consistency": 10**400}, "consistency of at least 0, got 1000"),
        ({"consistency": "0"}, "consistency of at least 0, got '0'"),
        ({"seed": None}, "a whole number as seed or one for each image, got None"),
        ({"seed": 1.5}, r"got 1\.5"),
        ({"seed": "0"}, "got '0'"),
        ({"seed": [1, 2.0]}, r"got \[1, 2\.0\]"),
        ({"seed": {1, 2}}, r"got \{1, 2\}"),  # of which image is which?
        ({"seed": {0: 1, 1: 2}}, r"got \{0: 1"),
        ({"seed": b"ab"}, "got b'ab'"),
        ({"seed": [1]}, "expected 2 seeds, one for each image, got 1"),
        ({"batch_size": 0}, "batch_size of at least 1, got 0"),
        ({"batch_size": 2.5}, r"whole batch_size of at least 1, got 2\.5"),
        ({"consistency": -1}, "consistency of at least 0, got -1"),
    ],
)
def test_other_options_are_refused_with_what_they_were(model, options, words):
    with pytest.raises(ValueError, match=words):
        model.restore(torch.zeros(2, 3, 8, 8), **options)


class TestFit:
    """Whether a picture can be of the model's kind, on the embedded photographs."""

    @pytest.fixture(scope="class")
    @classmethod
    def told(cls) -> Pretrained:
        model = build()
        model.record = {"training": {"noise": 0.0, "quantise": True}}
        return model

    @pytest.fixture(scope="class")
    @classmethod
    def x0(cls):
        return to_float(load_images("embedded", "test", 64, progress=False))

    def test_its_own_blur_fits_and_no_other_does(self, told, x0):
        def share(*parts):
            x1 = x0
            for name, options in parts:
                x1 = create_degradation(name, quantise=True, **options)(x1, torch.Generator().manual_seed(0))
            return float((told.fit(x1) > restoration.POSSIBLE).double().mean())

        own = ("blur-gauss", {})
        assert share(own) == 0
        assert share(("blur-gauss", {"sigma": 1.5})) > 0.8  # in plain crops no blur can be seen
        assert share(("blur-gauss", {"sigma": 1.75})) > 0.7
        assert share(own, ("jpeg", {"quality": 95})) == share(own, ("noise", {"std": 0.01})) == 1
        assert share(("none", {})) == 1

    def test_it_is_the_noise_of_the_weak_components_in_a_basis_made_here(self, told, x0):
        blur = create_degradation("blur-gauss")
        x1 = quantise(blur(x0[:3, :, :40]))
        (u_h, s_h, _), (u_w, s_w, _) = (torch.linalg.svd(blur.matrix(n)) for n in (40, 64))
        variance = (2 / 255) ** 2 / 12
        weak = ((s := s_h[:, None] * s_w) >= variance**0.5) & (s < 3.2 * variance**0.5)
        wanted = (u_h.T @ x1.double() @ u_w)[..., weak].square().flatten(1).mean(1) / variance
        torch.testing.assert_close(told.fit(x1), wanted, rtol=1e-9, atol=0)
        pictures = [to_uint8(one).permute(1, 2, 0).numpy() for one in x1]
        torch.testing.assert_close(told.fit(pictures), wanted, rtol=1e-4, atol=0)

    def test_its_rates_are_on_record(self):
        """On 977 photographs: benchmarks/fit.py."""
        record = json.loads((ROOT / "data" / "runs" / "fit" / "metrics.json").read_text())
        assert record["above"] == restoration.POSSIBLE
        warned = {row["row"]: row["warned"] for row in record["results"]}
        assert warned.pop("its own") <= 0.01
        near = {warned.pop(f"sigma {s}") for s in (1.9, 2.1)}  # a tenth of a pixel is not seen
        assert min(warned.values()) >= 0.99 > max(near)

    def test_nothing_is_said_of_pictures_too_small_to_tell(self, told, x0):
        x1 = create_degradation("blur-gauss", quantise=True)(x0[..., 28:36, 28:36])
        assert float((told.fit(x1) > restoration.POSSIBLE).double().mean()) > 0.1  # of its own blur
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            told.restore(x1, 1)

    def test_restore_says_so_once_and_only_then(self, told, x0):
        x1 = create_degradation("blur-gauss", quantise=True)(x0[:3])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            told.restore(x1, 1)
        other = create_degradation("blur-gauss", sigma=1.5, quantise=True)(x0[2:3])
        with pytest.warns(
            UserWarning,
            match=r"1 of 3 images .* the GaussianBlur.* \(the first is more like sigma 1\.[45], or a JPEG\)",
        ) as found:
            told.restore(torch.cat([x1[:2], other]), 1)
        assert found[0].filename == __file__  # where the caller's line is
        x1 = create_degradation("blur-gauss", noise=0.005)(x0[2:3], torch.Generator().manual_seed(0))
        assert f"{float(estimate_sigma(x1)):.1f}" == "2.0"  # the blur is its own, the noise is not
        coded = JPEG(75).apply(create_degradation("blur-gauss", quantise=True)(x0[2:3]), None)
        assert f"{float(estimate_sigma(coded)):.1f}" != "2.0"  # nearly, to the eye of the formula
        for x in (x1, coded):
            with pytest.warns(
                UserWarning, match=r"\(it is as wide, with other taps, borders, noise, or a JPEG"
            ):
                told.restore(x, 1)
        with pytest.raises(ValueError, match="expected a model of a separable blur and of noise"):
            build().fit(x1)
