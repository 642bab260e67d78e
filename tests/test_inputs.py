"""A run on images, pairs, a degradation, a network and weights of one's own."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from torch import nn

import i2sb_lib
from i2sb_lib import training as loop
from i2sb_lib.batches import Own
from i2sb_lib.checkpoints import Pretrained
from i2sb_lib.cli import main
from i2sb_lib.config import TrainConfig
from i2sb_lib.denoiser import Denoiser, Design, ModelConfig
from i2sb_lib.faults import Notice, TrainingError
from i2sb_lib.images import to_float, to_image
from i2sb_lib.inputs import inputs, start_from
from i2sb_lib.training import Trainer, train

BLIND = "expected a blind model for pairs .*, such as celeba64-deblur-blind, got one that is told its blur"
SMALL = {"network": "unet-tiny", "steps": 4, "batch_size": 4, "holdout": 4, "progress": False}


def images(channels=1, height=8, width=12, n=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


def config(tmp_path, **changes):
    return TrainConfig(**SMALL | {"out": str(tmp_path / "run")} | changes)


class Net(nn.Module):
    """A network of one's own, as small as can be."""

    def __init__(self, planes=2, out=1):
        super().__init__()
        self.conv = nn.Conv2d(planes, out, 3, padding=1)

    def forward(self, planes, t):
        return self.conv(planes) * (1 + t[:, None, None, None])


def halve(x0):
    return x0 / 2


def test_own_images_degradation_and_network_from_training_to_restoring(tmp_path):
    """One channel, 8 x 12, in a few lines: trained, saved, loaded, restored."""
    net = Net()
    before = net.conv.weight.clone()
    record = i2sb_lib.train(config(tmp_path), images=images(), degrade=halve, net=net)
    assert record["finished"]
    assert not torch.equal(net.conv.weight, before)  # trained in place
    said = record["training"]
    assert [said[k] for k in ("network", "degradation", "channels", "size")] == [
        "custom",
        "custom",
        1,
        (8, 12),
    ]
    model = i2sb_lib.load_pretrained(tmp_path / "run", net=Net())
    x1 = to_float(images()) / 2
    assert model.restore(x1, 2).shape == x1.shape
    pictures = [to_image(x) for x in x1]
    restored = model.restore(pictures[:2], 2)
    assert [(p.mode, p.size) for p in restored] == [("L", (12, 8))] * 2
    with pytest.raises(ValueError, match="expected net, a module of one's own"):
        i2sb_lib.load_pretrained(tmp_path / "run")
    with pytest.raises(ValueError, match=r"expected float images \(B, 1, H, W\)"):
        model.restore(torch.zeros(1, 3, 8, 12))


class Kind(Net):
    """The same, with a weight more, or with what is done to what it gives."""

    def __init__(self, more=None, then=lambda x: x):
        super().__init__()
        self.more, self.then = more, then

    def forward(self, planes, t):
        return self.then(super().forward(planes, t) * (1 if self.more is None else 1 + self.more.sum()))


FROZEN = "expected a network whose result depends on weights to train .requires_grad., got none"


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            Kind(nn.Parameter(torch.ones(2, dtype=torch.cfloat))),
            "to train in torch.float32, got net.more in torch.complex64$",
        ),
        (
            Kind(nn.Parameter(torch.ones(2).to(torch.int8), False)),
            "frozen .* floats, got net.more in torch.int8$",
        ),
        (Kind().double(), "got net.conv.weight in torch.float64$"),
        (Kind().half(), "got net.conv.weight in torch.float16$"),
        (nn.LazyConv2d(1, 3), "that have a shape, got net.weight: call the net once before"),
        (Kind().requires_grad_(False), FROZEN),
        (Kind(then=lambda y: y.detach()), FROZEN),
        (nn.Identity(), FROZEN),
        (lambda planes, t: planes[:, :1], FROZEN),
        (Kind(then=lambda y: (y, y)), r"to give \(1, 1, 8, 12\) from planes \(1, 2, 8, 12\), got tuple$"),
        (Kind(then=lambda y: y[..., 1:]), r"to give \(1, 1, 8, 12\) from .*, got \(1, 1, 8, 11\)$"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused_before_images_are_read(
    net, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "load", lambda *a: pytest.fail("images were read"))
    with pytest.raises((TrainingError, ValueError), match=message) as error:
        train(config(tmp_path, channels=1, size=(8, 12)), degrade=halve, net=net)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


class Odd(Net):
    """Frozen parts of another type, a buffer that grows, one that comes late, and a length of zero."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(1, 1, 1).to(torch.bfloat16).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(0))

    def __len__(self):
        return 0

    def forward(self, planes, t):
        if self.training:
            self.seen = torch.cat([self.seen, t.detach().mean().reshape(1)])
        elif not hasattr(self, "late"):
            self.register_buffer("late", torch.ones(1))
        y = super().forward(planes, t)
        return y + self.wide(y.detach().to(self.wide.weight.dtype)).float()


def test_a_network_with_frozen_parts_and_buffers_that_come_and_grow_trains_and_resumes(tmp_path):
    how = {"images": images(), "degrade": halve, "net": Odd()}
    base = config(tmp_path, channels=1, size=(8, 12))
    some = dataclasses.replace(base, steps=6, eval_every=2, save_every=2)
    assert train(some, **how)["finished"]
    assert len(how["net"].seen) == 6


def test_dropout_of_a_network_of_one_s_own_is_seeded_by_the_step(tmp_path):
    found = []
    for seed in (5, 6):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.Dropout(0.5), nn.Conv2d(8, 1, 3, padding=1))
        net.forward = lambda planes, t, net=net: nn.Sequential.forward(net, planes)
        torch.manual_seed(seed)
        train(config(tmp_path / str(seed), channels=1, size=(8, 12)), images=images(), degrade=halve, net=net)
        found.append(net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(found[0].values(), found[1].values(), strict=True))


def test_a_network_may_have_weights_of_any_rank_and_is_tried_on_a_copy(tmp_path):
    class Counting(Kind):
        calls = 0

        def forward(self, planes, t):
            self.calls += 1
            return super().forward(planes, t)

    net, again = (Counting(nn.Parameter(torch.full((1, 2, 1, 1, 1), x))) for x in (0.25, 0.0))
    run = Trainer(config(tmp_path), images=images(), degrade=halve, net=net)
    assert net.calls == 0
    run.optimise()
    run.save()
    i2sb_lib.load_pretrained(tmp_path / "run", "cpu", net=again)
    assert (net.more - 0.25).abs().min() > 0
    torch.testing.assert_close(again.more, net.more.detach(), rtol=1e-3, atol=0)


def test_a_run_with_a_network_of_one_s_own_is_a_start_by_its_folder(tmp_path):
    """And a refusal leaves the module that was given as it was: to be trained, with its own weights."""
    first = config(tmp_path)
    train(first, images=images(), degrade=halve, net=Net())
    net = Net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    own = {"images": images(), "degrade": halve, "net": net, "init": first.out}
    with pytest.raises(TrainingError, match="expected a run of its own kind of network: give"):
        train(config(tmp_path, out=str(tmp_path / "other"), prediction="eps"), **own)
    assert all([net.training, *(p.requires_grad for p in net.parameters())])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    run = Trainer(config(tmp_path, out=str(tmp_path / "second")), **own)
    learnt = i2sb_lib.load_pretrained(first.out, net=Net()).denoiser.state_dict()
    assert all(torch.equal(v, learnt[k]) for k, v in run.model.state_dict().items())
    assert train(config(tmp_path, out=str(tmp_path / "third")), **own)["finished"]
    assert not torch.equal(net.conv.weight, learnt["net.conv.weight"])
    given = i2sb_lib.load_pretrained(first.out, net=Net())
    other = config(tmp_path, out=str(tmp_path / "fourth"))
    with pytest.raises(TrainingError, match=r"run: expected the weights of this network, got: .*net\.more"):
        train(other, **own | {"net": Kind(nn.Parameter(torch.ones(2))), "init": given})
    with pytest.raises(ValueError, match=r"^init: expected one of .*, a folder with model.json"):
        train(other, **own | {"init": str(tmp_path / "nowhere")})
    nowhere = {"data": str(tmp_path / "nowhere"), "init": str(tmp_path / "nowhere")}
    with pytest.raises(ValueError, match=r"^init: expected one of"):  # before an image is looked for
        train(dataclasses.replace(other, **nowhere))


def test_what_the_command_line_says_of_a_run_that_was_made_in_python(tmp_path, capsys):
    train(config(tmp_path, minutes=1e-9), images=images())
    with pytest.raises(SystemExit) as stop:
        main(["train", "--resume", "--out", str(tmp_path / "run")])
    assert "a run's images as they were given in Python: train(…, resume=True)" in stop.value.code
    for name, own, said in (
        (
            "degraded",
            {"degrade": halve},
            "expected pairs, or in Python degrade=…, for a degradation of one's own",
        ),
        (
            "net",
            {"net": Net(6, 3)},
            "expected net=…, a module in Python, with network custom alone, got none",
        ),
    ):
        run = config(tmp_path, minutes=1e-9, data="embedded", channels=3, out=str(tmp_path / name))
        train(run, **own)
        with pytest.raises(SystemExit) as stop:
            main(["train", "--resume", "--out", run.out])
        assert said in stop.value.code
    train(config(tmp_path, out=str(tmp_path / "own")), images=images(), degrade=halve, net=Net())
    capsys.readouterr()
    main(["info", str(tmp_path / "own")])
    assert '"network": "custom"' in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["restore", "x.png", "y.png", "--checkpoint", str(tmp_path / "own")])
    assert "expected net, a module of one's own, as the run was given: load_pretrained(…, net=…)" in str(
        stop.value
    )


def test_wiener_s_guess_is_shown_to_a_network_of_one_s_own(tmp_path):
    """Three images in, a fourth plane of trust out; where nothing can be guessed it is refused."""
    own = {"images": images(height=16, width=20), "degrade": halve}
    assert train(config(tmp_path, wiener=True), net=Net(3, 2), **own)["finished"]
    model = i2sb_lib.load_pretrained(tmp_path / "run", "cpu", net=Net(3, 2))
    assert model.denoiser.config.wiener
    assert model.restore(torch.zeros(1, 1, 16, 20)).isfinite().all()
    other = config(tmp_path, wiener=True, out=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"give \(1, 2, 16, 20\) from planes \(1, 3, 16, 20\), got \(1, 1, "):
        train(other, net=Net(3), **own)
    with pytest.raises(TrainingError, match="wiener: expected sides of at least 16 pixels, got 8 x 20"):
        train(other, net=Net(3, 2), **own | {"images": images(height=8, width=20)})


class Normed(Net):
    """With what BatchNorm and spectral_norm learn beside weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.spectral_norm(self.conv)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, planes, t):
        return self.norm(super().forward(planes, t))


def test_what_a_network_learns_beside_its_weights_is_in_the_average_and_on_disk(tmp_path):
    """Its running statistics and singular vectors, also where it is resumed."""
    own = {"images": images(), "degrade": halve}
    train(config(tmp_path, minutes=1e-9), net=Normed(), **own)
    net = Normed()
    assert train(config(tmp_path), resume=True, net=net, **own)["finished"]
    saved = i2sb_lib.load_pretrained(tmp_path / "run", "cpu", net=Normed()).denoiser.net
    buffers, fresh = dict(saved.named_buffers()), dict(Normed().named_buffers())
    assert buffers["norm.num_batches_tracked"] == 4
    for name, buffer in net.named_buffers():
        assert torch.equal(buffers[name], buffer)
        assert not torch.allclose(buffer, fresh[name], rtol=0.01)


def test_what_a_network_gives_and_a_degradation_gives_is_checked(tmp_path):
    with pytest.raises(ValueError, match=r"network to give \(1, 1, 8, 12\) from .*, got \(1, 2, 8"):
        train(config(tmp_path), images=images(), degrade=halve, net=Net(out=2))
    with pytest.raises(ValueError, match=r"<lambda>: expected x1 of x0's shape"):
        Own(lambda x: x[..., :4])(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"expected values in \[-1, 1\], got"):
        Own(lambda x: 255 * x)(torch.ones(1, 1, 8, 8))


def test_a_degradation_s_randomness_is_the_run_s():
    """With a generator or with global random numbers: the same twice, and the host's are left alone."""
    x = torch.zeros(2, 3, 8, 8)

    def drawn():
        return torch.Generator().manual_seed(3)

    for own in (
        Own(lambda x, generator: x + 0.1 * torch.randn(x.shape, generator=generator)),
        Own(lambda x: x + 0.1 * torch.randn_like(x)),
    ):
        state = torch.get_rng_state()
        first = own(x, drawn())
        assert torch.equal(torch.get_rng_state(), state)
        assert first.std() > 0.05
        torch.manual_seed(9)
        assert torch.equal(own(x, drawn()), first)


class Layer(nn.Module):
    """What a module has as its forward, of which its call says nothing."""

    def __init__(self, forward):
        super().__init__()
        self.forward = forward


@pytest.mark.parametrize("kind", [lambda f: f, Layer])
def test_a_generator_goes_to_who_asks_for_one(kind):
    x, drawn = torch.zeros(1, 3, 8, 8), torch.Generator()

    def found(call) -> list:
        seen = []
        Own(kind(call(seen)))(x, drawn)
        return seen

    with_one = [
        lambda seen: lambda x, g: seen.append(g) or x,
        lambda seen: lambda x, g, /: seen.append(g) or x,
        lambda seen: lambda x, g, hard=False: seen.append(g) or x,
        lambda seen: lambda x, generator=None: seen.append(generator) or x,
        lambda seen: lambda x, strength=1, *, generator: seen.append(generator) or x,
        lambda seen: lambda x, strength=0, generator=None: seen.append(generator) or x,
    ]
    assert [found(call) for call in with_one] == [[drawn]] * 6
    without = [
        lambda seen: lambda x: seen.append(0) or x,
        lambda seen: lambda x, hard=0: seen.append(hard) or x,
        lambda seen: lambda x, strength=0, *, hard=0: seen.append(strength + hard) or x,
        lambda seen: lambda *x: seen.append(len(x) - 1) or x[0],  # torchvision's transforms
        lambda seen: lambda x, **more: seen.append(len(more)) or x,
    ]
    assert [found(call) for call in without] == [[0]] * 5
    for call in (lambda: x, lambda x, g, strength: x, lambda x, strength, *, generator: x, lambda x, *, s: x):
        with pytest.raises(ValueError, match=r"expected degrade \(x0\) or \(x0, generator\), got "):
            Own(kind(call))
    assert torch.equal(Own(torch.sin)(x, drawn), x)


@pytest.mark.parametrize("kind", [lambda f: f, lambda f: lambda x: f(x).clamp(-1, 1)])
def test_a_degradation_that_has_weights_gathers_no_gradients(kind, tmp_path):
    blur = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.constant_(blur.weight, 1 / 9)
    own = {"images": images(), "degrade": kind(blur)}
    assert train(config(tmp_path, accumulate=2, quantise=False), **own)["finished"]
    assert blur.weight.grad is None
    assert blur.weight.requires_grad


def test_noise_and_rounding_follow_an_own_degradation_of_either_kind(tmp_path):
    """A function and one of the library's operators: the config's noise is behind both."""
    blur, x0 = i2sb_lib.create_degradation("blur-gauss"), images(3, 8, 8)
    for own in (blur, lambda x: blur(x)):
        run = Trainer(config(tmp_path, noise=0.1), images=x0, degrade=own)
        clean, x1, _, _ = run.batches(0)
        assert 0.1 < float((x1 - blur(clean)).std()) < 0.25
        assert torch.equal(x1, to_float(((x1 + 1) * 127.5).round().to(torch.uint8)))


def test_pairs_are_flipped_together_and_seen_as_they_are(tmp_path):
    x0 = images(3, 8, 8)
    run = Trainer(config(tmp_path, size=8), images=x0, targets=255 - x0)
    for step in range(6):
        a, b, _, _ = run.batches(step)
        torch.testing.assert_close(b, -a, rtol=0, atol=1e-6)
    flipped = {bool((to_float(x0) == one).all((1, 2, 3)).any()) for one in a}
    assert flipped == {True, False}  # some are as they were, some mirrored
    assert run.model.config.moments[2] < 0


def test_a_data_set_of_pairs_is_pairs(tmp_path):
    x0 = images(3, 8, 8)
    pairs = Trainer(config(tmp_path), images=[(x, 255 - x) for x in x0])
    whole = Trainer(config(tmp_path), images=x0, targets=255 - x0)
    assert pairs.fingerprint == whole.fingerprint
    assert torch.equal(pairs.batches(0)[1], whole.batches(0)[1])


@pytest.mark.slow
def test_a_run_on_images_of_one_s_own_resumes_to_the_same_bits(tmp_path):
    own = {"images": images(3, 8, 8), "degrade": lambda x: x + 0.1 * torch.randn_like(x)}
    train(config(tmp_path / "a"), **own)
    # the learning rate falls to zero at `steps`: stop by time, not by another number of them
    train(config(tmp_path / "b", minutes=1e-9), **own)
    record = train(config(tmp_path / "b"), resume=True, **own)
    assert record["step"] == 4
    first, second = (i2sb_lib.load_pretrained(tmp_path / n / "run").denoiser.state_dict() for n in "ab")
    assert all(torch.equal(first[k], second[k]) for k in first)
    with pytest.raises(TrainingError, match="was made with other images"):
        train(config(tmp_path / "b"), resume=True, images=images(3, 8, 8, seed=1), degrade=own["degrade"])


@pytest.mark.parametrize(
    ("changes", "own", "message"),
    [
        ({"channels": 4, "degradation": "jpeg"}, {}, "expected 1 or 3 channels for JPEG"),
        ({"channels": 1, "degradation": "grey"}, {}, "expected 3 channels for Grey"),
        ({"degradation": "sr4x-pool", "size": 18}, {}, "a size divisible by 4, got 18"),
        ({}, {"degrade": "blur"}, "degrade as a function of images, got 'blur'"),
    ],
)
def test_what_a_degradation_cannot_do_is_refused_before_an_image_is_read(
    changes, own, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "load", lambda *a: pytest.fail("images were read"))
    with pytest.raises(ValueError, match=message):
        train(config(tmp_path, **changes), **own)
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_depend_on_what_its_host_has_set(tmp_path):
    own = {"images": images(3), "degrade": halve}
    train(config(tmp_path / "a"), **own)
    with torch.no_grad():
        train(config(tmp_path / "b"), **own)
    with torch.inference_mode():
        train(config(tmp_path / "c"), **own)
    found = [i2sb_lib.load_pretrained(tmp_path / n / "run").denoiser.state_dict() for n in "abc"]
    assert all(torch.equal(found[0][k], other[k]) for k in found[0] for other in found)
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(TrainingError, match=r"default type, float32, got torch\.float64"):
            train(config(tmp_path / "d"), **own)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_layer_s_stride_is_not_a_network_s():
    class Layer(nn.Conv2d):
        def forward(self, planes, t):
            return super().forward(planes)

    design = {"network": "custom", "degradation": "custom"}
    assert Denoiser(ModelConfig(**design), Layer(6, 3, 3, padding=1)).stride == 1


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"images": images(3), "targets": images(3, n=15)}, "expected targets of the images'"),
        ({"targets": images(3)}, "expected images in memory beside targets"),
        ({"images": images(3), "targets": images(3, seed=1), "degrade": halve}, "expected pairs as they are"),
        ({"images": images(3), "net": Net(6, 3), "degrade": halve, "tikhonov": 1e-3}, BLIND),
        ({"images": images(3), "targets": images(3, seed=1), "tikhonov": 1e-3}, BLIND),
        (
            {"images": images(3, n=7)},
            "at least 8 images .*, got 7: give less --holdout or --batch-size, or --",
        ),
    ],
)
def test_what_does_not_go_together_is_said(own, message, tmp_path):
    changes = {k: own.pop(k) for k in ("tikhonov",) if k in own}
    with pytest.raises((TrainingError, ValueError), match=message):
        Trainer(config(tmp_path, **changes), **own)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("own", [{"targets": images(3, 8, 8, seed=1)}, {"degrade": halve}])
def test_a_degradation_that_is_left_out_is_said(own, tmp_path, recwarn):
    """As a preset has one: its network is then trained on pairs, or for a degradation of one's own."""
    for changes in ({}, {"degradation": "custom"}):
        inputs(config(tmp_path, **changes), images=images(3, 8, 8), **own)
    assert not recwarn.list
    for changes, name in (
        ({"degradation": "jpeg"}, "jpeg"),
        ({"degradation_options": {"sigma": 3}}, "blur-gauss"),
    ):
        with pytest.warns(
            Notice, match=f"^{name} is left out: pairs, or a degradation of one's own, take its"
        ):
            made, _, _ = inputs(config(tmp_path, **changes), images=images(3, 8, 8), **own)
        assert (made.degradation, made.degradation_options) == ("custom", {})


def test_pairs_in_memory_that_are_all_equal_are_said(tmp_path, recwarn):
    x0 = images(3)
    inputs(config(tmp_path), images=x0, targets=torch.cat([x0[:-1], x0[:1]]))
    assert not recwarn.list
    with pytest.warns(Notice, match="all equal to the clean ones"):
        inputs(config(tmp_path), images=x0, targets=x0.clone())


class TestInit:
    @pytest.fixture
    def first(self, tmp_path):
        train(config(tmp_path / "first"), images=images(3, 8, 8), degrade=halve)
        return tmp_path / "first" / "run"

    def test_weights_and_moments_are_where_the_run_starts(self, first, tmp_path, capsys):
        """Moments scale what the network sees and says: with others the same weights are another function."""
        other = images(3, 8, 8, seed=5) // 2
        run = Trainer(config(tmp_path, beta_max=0.4), images=other, degrade=halve, init=str(first))
        start = i2sb_lib.load_pretrained(first, "cpu").denoiser
        assert run.model.config.moments == start.config.moments
        assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), start.parameters(), strict=True))
        assert "with other settings: beta_max 0.3 -> 0.4" in capsys.readouterr().err
        held = Trainer(config(tmp_path), images=other, degrade=halve, init=i2sb_lib.load_pretrained(first))
        assert held.model.config.moments == start.config.moments

    def test_weights_of_another_network_are_refused_with_the_flags_to_give(self, first, tmp_path):
        with pytest.raises(TrainingError, match="--network unet-tiny"):
            Trainer(config(tmp_path, network="unet-small"), images=images(3, 8, 8), degrade=halve, init=first)
        other = {"cond_x1": False, "prediction": "x0", "process": "regression"}
        train(config(tmp_path / "other", **other), images=images(3, 8, 8), degrade=halve)
        for start, differs in ((tmp_path / "other" / "run", {}), (first, other)):
            with pytest.raises(TrainingError) as error:
                Trainer(config(tmp_path, **differs), images=images(3, 8, 8), degrade=halve, init=start)
            said = str(error.value).split("give ")[1].split()
            taken = tyro.cli(TrainConfig, args=said)  # what it advises is what the command line takes
            wanted = {k: getattr(TrainConfig(), k) for k in other} if differs else other
            assert {k: getattr(taken, k) for k in other} == wanted
            assert ("--cond-x1" if differs else "--no-cond-x1") in said
        with pytest.raises(TrainingError, match="--channels 3"):
            Trainer(config(tmp_path), images=images(1, 8, 8), degrade=halve, init=first)

    @pytest.mark.parametrize(
        "theirs",
        [
            {
                "network": "unet-tiny",
                "wiener": True,
                "beta_min": 0.7,
                "beta_max": 2.1,
                "degradation": "mixture",
            },
            {"tikhonov": 2e-4, "beta_max": 2.1, "ot_ode": True},
            {"tikhonov": 2e-4, "degradation_options": {"kernel_size": 5, "sigma": 1.5}},
            {"tikhonov": 2e-4, "dropout": 0.1},
            {"wiener": True, "network": "unet-tiny"},
        ],
    )
    def test_one_command_that_follows_the_hint_goes_on_from_the_weights_as_they_are(
        self, theirs, tmp_path, capsys
    ):
        def design(config):
            return ModelConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(Design)})

        start = Pretrained(Denoiser(ModelConfig(**theirs)), {}, tmp_path / "first")
        with pytest.raises(TrainingError, match=r"^first: .* give --") as error:
            start_from(start, design(TrainConfig(degradation_options={"sigma": 3.0})), None, True)
        taken = tyro.cli(TrainConfig, args=str(error.value).split("give ")[1].split())
        assert start_from(start, design(taken), None, True).config.beta_max == theirs.get("beta_max", 0.3)
        said = capsys.readouterr().err.replace(" degradation mixture -> blur-gauss", "")
        assert said.split(":")[-1].strip() in ("", "dropout 0.1 -> 0.0")

    def test_a_model_that_is_told_its_blur_does_not_go_on_with_pairs(self, tmp_path):
        start = Pretrained(Denoiser(ModelConfig("unet-tiny", tikhonov=2e-4)), {}, tmp_path / "first")
        for own in ({"degrade": halve}, {"targets": images(3, 8, 8, seed=1)}):
            with pytest.raises(TrainingError, match=f"^first: {BLIND}") as error:
                Trainer(config(tmp_path), images=images(3, 8, 8), init=start, **own)
            assert "give" not in str(error.value)


class TestCommandLine:
    """Ten photographs of odd sizes and modes in two folders, one unpaired, names with spaces and umlauts."""

    @pytest.fixture
    def folders(self, tmp_path, monkeypatch):
        monkeypatch.setenv("I2SB_CACHE", str(tmp_path / "cache"))
        draw = np.random.default_rng(0)
        for i, mode in enumerate(["RGB", "L", "RGBA", "P", "CMYK", "1", "LA", "RGB", "RGB", "L"]):
            size = (40 + 3 * i, 33 + 5 * i)
            image = Image.fromarray(draw.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).convert(mode)
            for folder, one in (("clean", image), ("dark", image.convert("RGB").point(lambda v: v // 2))):
                suffix = "tif" if mode in ("CMYK",) and folder == "clean" else "png"
                file = tmp_path / folder / f"ein Bild Nr. {i} über x.{suffix}"
                file.parent.mkdir(exist_ok=True)
                one.save(file)
        return tmp_path

    def test_a_degradation_beside_pairs_is_refused_where_it_was_asked_for(self, folders, monkeypatch):
        seen = []
        monkeypatch.setattr(
            i2sb_lib, "train", lambda config, resume: seen.append(config) or {"finished": 1, "step": 1}
        )
        data = ["--clean", str(folders / "clean"), f"--degraded={folders / 'dark'}"]
        for flags in (
            ["--degradation", "jpeg", "--degradation-options", "quality", "5"],
            ["--degradation=blur-gauss"],
            ["--degradation-options", "sigma", "3"],
            ["--preset", "photos-robust", "--degradation", "jpeg"],
        ):
            with pytest.raises(SystemExit, match="expected pairs as they are, got a degradation"):
                main(["train", *data, *flags])
        assert not seen
        main(["train", *data, "--preset", "photos-robust"])  # whose own is not the user's wish
        assert (seen[0].network, seen[0].degraded) == ("unet-full", str(folders / "dark"))

    def test_clean_images_are_asked_for_beside_degraded_ones(self, folders):
        model = Pretrained(Denoiser(ModelConfig("unet-tiny")), {"training": {}}, folders)
        model.record["training"] = dataclasses.asdict(TrainConfig(size=32))
        model.save_pretrained(folders / "model")
        small = ["--network", "unet-tiny", "--size", "32", "--out", str(folders / "run")]
        for command in (["train", *small], ["evaluate", "--checkpoint", str(folders / "model")]):
            with pytest.raises(
                SystemExit, match=r"expected clean images \(--clean FOLDER\) beside --degraded /"
            ):
                main([*command, "--degraded", str(folders / "dark")])

    @pytest.mark.parametrize("pairs", ["dark", ""])
    def test_a_model_of_pairs_says_how_it_is_used(self, pairs, folders):
        training = dataclasses.asdict(TrainConfig(size=32, degradation="custom", degraded=pairs))
        model = Pretrained(Denoiser(ModelConfig("unet-tiny")), {"training": training}, folders)
        model.save_pretrained(folders / "model")
        at, clean = ["--checkpoint", str(folders / "model")], str(folders / "clean")
        for command in (["evaluate", "--data", clean], ["restore", clean, str(folders / "out"), "--degrade"]):
            with pytest.raises(SystemExit, match=r"got one of pairs or .* evaluate with --degraded FOLDER"):
                main([*command, *at])

    @pytest.mark.slow
    def test_trains_evaluates_restores_and_reloads(self, folders, capsys):
        at = str(folders / "run")
        small = [
            "--steps",
            "3",
            "--batch-size",
            "2",
            "--holdout",
            "2",
            "--network",
            "unet-tiny",
            "--size",
            "32",
        ]
        data = ["--clean", str(folders / "clean"), "--degraded", str(folders / "dark")]
        main(["train", *data, "--out", at, *small])
        main(["evaluate", "--checkpoint", at, *data, "--nfe", "1", "--out", str(folders / "ev")])
        rows = json.loads((folders / "ev" / "metrics.json").read_text())["results"]
        assert [r["nfe"] for r in rows] == [0, 1]
        assert capsys.readouterr().err.count("these are the images that the model was trained on") == 1
        main(["restore", str(folders / "dark"), str(folders / "restored"), "--checkpoint", at, "--nfe", "1"])
        assert len(list((folders / "restored").iterdir())) == 10
        main(["train", *data, "--out", str(folders / "again"), *small, "--init", at])
        with pytest.raises(SystemExit, match="evaluate with --degraded FOLDER"):
            main(["evaluate", "--checkpoint", at, "--data", str(folders / "clean"), "--nfe", "1"])
        capsys.readouterr()
        (folders / "dark" / "ein Bild Nr. 0 über x.png").unlink()
        with pytest.raises(SystemExit, match="without a partner"):
            main(["train", *data, "--out", str(folders / "third"), *small])


class TestPictures:
    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        denoiser = i2sb_lib.Denoiser(i2sb_lib.ModelConfig("unet-tiny")).requires_grad_(False).eval()
        return Pretrained(denoiser, {"training": {"seed": 1}}, Path("m"))

    def test_the_kind_that_goes_in_comes_out(self, model, tmp_path):
        draw = np.random.default_rng(0)
        array = draw.integers(0, 256, (24, 16, 3), dtype=np.uint8)
        image = Image.fromarray(array)
        image.save(tmp_path / "a.png")
        restored = model.restore(array, 1)
        assert (restored.dtype, restored.shape) == (np.uint8, (24, 16, 3))
        for x in (image, tmp_path / "a.png", str(tmp_path / "a.png")):
            assert np.array_equal(np.array(model.restore(x, 1)), restored)
        assert np.array_equal(model.restore(np.stack([array, array]), 1)[1], restored)
        grey = model.restore(image.convert("L"), 1)
        assert grey.mode == "RGB"
        plane = np.array(image.convert("L"))
        assert np.array_equal(model.restore(plane, 1), np.array(grey))
        assert np.array_equal(np.array(i2sb_lib.restore_image(array, model, nfe=1)), restored)

    def test_a_list_may_hold_several_sizes_and_each_has_its_own_noise(self, model):
        draw = np.random.default_rng(1)
        some = [draw.integers(0, 256, (h, 16, 3), dtype=np.uint8) for h in (24, 16, 24)]
        together = model.restore(some, 3, seed=[5, 6, 7])
        assert [y.shape for y in together] == [x.shape for x in some]
        for x, y, seed in zip(some, together, (5, 6, 7), strict=True):
            assert np.abs(model.restore([x], 3, seed=[seed])[0].astype(int) - y).max() <= 1

    @pytest.mark.parametrize(
        ("x", "got"),
        [
            (7, "int"),
            ([], "list"),
            (np.zeros((8, 8, 3)), r"ndarray of float64 of shape \(8, 8, 3\)"),
            (np.zeros((1, 3, 8, 8), np.float32), r"ndarray of float32 of shape \(1, 3, 8, 8\)"),
            (np.zeros((8, 8, 2), np.uint8), r"ndarray of uint8 of shape \(8, 8, 2\)"),
            ([torch.zeros(3, 8, 8)], r"torch.float32 of shape \(3, 8, 8\)"),
        ],
    )
    def test_other_things_are_refused_in_a_sentence(self, model, x, got):
        with pytest.raises(ValueError, match=rf"or a tensor of floats \(B, 3, H, W\) in .*, got {got}$"):
            model.restore(x)

    @pytest.mark.parametrize("batch_size", [True, 1.5, 0])
    def test_a_batch_size_is_a_whole_number(self, model, batch_size):
        with pytest.raises(ValueError, match="expected a whole batch_size"):
            model.restore(torch.zeros(1, 3, 8, 8), 1, batch_size=batch_size)

    def test_a_batch_size_may_be_numpy_s(self, model):
        x = torch.rand(3, 3, 8, 8) * 2 - 1
        assert torch.equal(*(model.restore(x, 1, batch_size=size) for size in (np.int64(2), 2)))

    @pytest.mark.parametrize("kind", [torch.float16, torch.float64, torch.bfloat16])
    def test_it_restores_whatever_type_its_weights_are_kept_in(self, model, kind):
        x = torch.rand(2, 3, 8, 8) * 2 - 1
        wanted = model.restore(x, 2)
        model.to(kind)
        found = model.restore(x, 2)
        assert found.dtype == torch.float32
        assert {p.dtype for p in model.parameters()} == {kind}
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-2 if kind == torch.bfloat16 else 2e-3)

    def test_it_is_a_module_with_the_hub_s_methods(self, model, tmp_path):
        assert sum(p.numel() for p in model.parameters()) > 1e5
        model.save_pretrained(tmp_path / "m")
        assert {f.name for f in (tmp_path / "m").iterdir()} == {
            "README.md",
            "model.json",
            "model-1-of-1.safetensors",
        }
        assert (tmp_path / "m" / "README.md").read_text().startswith("---\n")
        (tmp_path / "m" / "README.md").write_bytes("# modèle\n".encode("latin-1"))  # a card of one's own
        i2sb_lib.load_pretrained(tmp_path / "m", "cpu").save_pretrained(tmp_path / "n")
        card = (tmp_path / "n" / "README.md").read_text(encoding="utf-8")
        assert card.startswith("---\nlibrary_name: i2sb-lib\n")
        assert card.endswith("---\n\n# mod\ufffdle\n")
        again = Pretrained.from_pretrained(tmp_path / "m")
        assert again.record == model.record
        x = torch.zeros(1, 3, 8, 8)
        torch.testing.assert_close(again.restore(x, 1), model.restore(x, 1), rtol=0, atol=2e-3)
        assert again.to(torch.float64).denoiser.net.last.weight.dtype == torch.float64
