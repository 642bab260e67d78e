"""Parameter counts, the published function; time, precision, memory format and gradients go through."""

import math

import pytest
import torch
from torch import nn

from i2sb_lib import networks
from i2sb_lib.networks import CUNet, UNet, create_network, time_features

NAMES = ["cunet", "unet-tiny", "unet-small", "unet-full"]
every_network = pytest.mark.parametrize(
    "name", [*NAMES[:3], pytest.param("unet-full", marks=pytest.mark.slow)]
)


def awake(name, planes=3):
    """A network whose zero layers are given weights, so that every path matters."""
    torch.manual_seed(1)
    net = create_network(name, planes).eval()
    for p in net.parameters():
        if not p.detach().any():
            nn.init.normal_(p, std=0.05)
    return net


def by_formula(net):
    with torch.no_grad():
        for k, p in enumerate(net.parameters()):
            wave = torch.sin(torch.arange(p.numel(), dtype=torch.float64) ** 2 + k).reshape(p.shape)
            p.copy_(wave * (3 / p[0].numel()) ** 0.5 if p.ndim > 1 else (1 + wave) / 2)
    return net


def waves(height, width):
    return torch.sin(torch.arange(6 * height * width, dtype=torch.float64) ** 2).reshape(2, 3, height, width)


def size(net):
    return sum(p.numel() for p in net.parameters())


def test_the_report_s_network_to_the_parameter():
    net = create_network("cunet")
    assert size(net) == 27_318_387
    assert size(create_network("cunet", 6)) == 27_318_387 + 3 * 80 * 9


# The published code's outputs at pixel (5, 7) of both images, run in float64: the network of Gushchin
# et al. 2023 with the report's time layers, weights, images and labels 20 and 250 as in the test below.
# Labels of floats, then of integers, to whose type the report's program casts the frequencies.
PUBLISHED = {
    "float": [
        [-0.0959306796, 0.9206679712, -0.1018983805],
        [-0.1355921892, 0.8506051611, -0.1587292825],
    ],
    "integer": [
        [-0.0290011611, 0.8771472925, -0.0445336958],
        [-0.1979513976, 0.8265824544, -0.1853502406],
    ],
}


def of_integers(t, dim, last):
    """The report's time features: all frequencies below 1 become 0."""
    rate = (10000 ** (-torch.arange(dim // 2) / (dim // 2 - last))).long()
    angle = (t * 1000).round().long()[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


@pytest.mark.parametrize("labels", PUBLISHED)
def test_cunet_is_the_published_function(labels, monkeypatch):
    if labels == "integer":
        monkeypatch.setattr(networks, "time_features", of_integers)
    net = by_formula(CUNet(base=4, noise_channels=8).double())
    with torch.no_grad():
        found = net(waves(32, 48), torch.tensor([0.02, 0.25]))[:, :, 5, 7]
    want = torch.tensor(PUBLISHED[labels], dtype=torch.float64)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-6)


def test_the_residual_u_net_is_the_function_that_the_shipped_weights_are_for():
    """Its outputs at pixel (5, 7) as of version 0.1, weights and images from a formula."""
    net = by_formula(UNet(channels=(8, 64), blocks=2, attention=(1,)).double())  # of two heads
    with torch.no_grad():
        found = net(waves(8, 12), torch.tensor([0.02, 0.25]))[:, :, 5, 7]
    want = [[0.3043662629, 0.7683304905, 0.5038254589], [-0.8659687722, -0.0976330014, 0.5609404669]]
    torch.testing.assert_close(found, torch.tensor(want, dtype=torch.float64), rtol=0, atol=1e-6)


def test_attention_is_torch_s_over_the_pixels():
    block, heads = networks.Attention(64), nn.MultiheadAttention(64, 2, batch_first=True)
    x = torch.randn(2, 64, 3, 5)
    assert torch.equal(block(x), x)  # at the start
    for p in block.parameters():
        nn.init.normal_(p, std=0.3)
    values = {"in_proj_weight": block.qkv.weight, "in_proj_bias": block.qkv.bias}
    values |= {"out_proj.weight": block.out.weight, "out_proj.bias": block.out.bias}
    heads.load_state_dict({name: v.flatten(1) if v.ndim == 4 else v for name, v in values.items()})
    pixels = block.norm(x).flatten(2).mT
    want = x + heads(pixels, pixels, pixels)[0].mT.reshape(x.shape)
    torch.testing.assert_close(block(x), want, rtol=0, atol=1e-4)


def test_a_residual_block_starts_as_its_shortcut():
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 5)
    assert torch.equal(networks.ResBlock(8, 8, 5, 0.0)(x, emb), x)
    wider = networks.ResBlock(8, 16, 5, 0.0)
    assert torch.equal(wider(x, emb), wider.skip(x))


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("unet-tiny", 0.2e6, 0.4e6), ("unet-small", 2.5e6, 3.5e6), ("unet-full", 11e6, 13.5e6)],
)
def test_sizes(name, low, high):
    assert low < size(create_network(name)) < high
    assert size(create_network(name, 9)) > size(create_network(name))


@pytest.mark.parametrize("name", NAMES[1:])
def test_the_recommended_networks_start_at_zero(name):
    out = create_network(name)(torch.randn(2, 3, 16, 16), torch.rand(2))
    assert out.shape == (2, 3, 16, 16)
    assert not out.any()


def test_time_features_are_sines_and_cosines():
    t = torch.tensor([0.0, 0.25])
    f = time_features(t, 8).double()
    rates = 1000 * 10000 ** (-torch.arange(0, 8, 2) / 8).double()
    angle = 0.25 * rates
    torch.testing.assert_close(f[1], torch.cat([angle.sin(), angle.cos()]), rtol=0, atol=1e-4)
    assert f[0].tolist() == [0.0] * 4 + [1.0] * 4
    assert time_features(t.double(), 8).dtype == torch.float32
    slowest = 0.25 * 1000 / 10000  # with last = 1 the lowest frequency is 1 / 10000
    assert time_features(t, 8, last=1)[1, 3].item() == pytest.approx(math.sin(slowest), rel=1e-5)


@every_network
def test_time_and_image_enter_and_samples_do_not_mix(name):
    net, x = awake(name), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        base = net(x, torch.tensor([0.2, 0.2]))
        later = net(x, torch.tensor([0.2, 0.8]))
        other = net(torch.stack([x[0], -x[1]]), torch.tensor([0.2, 0.2]))
    scale = base[1].std()
    assert (later[1] - base[1]).std() > 1e-3 * scale
    assert (other[1] - base[1]).std() > 1e-3 * scale
    for changed in (later, other):
        torch.testing.assert_close(changed[0], base[0], rtol=1e-4, atol=1e-5)


@every_network
def test_memory_format_and_half_precision_agree_with_float32(name):
    net, x, t = awake(name), torch.randn(1, 3, 32, 48), torch.tensor([0.3])
    with torch.no_grad():
        base = net(x, t)
        last = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), t)
        with torch.autocast("cpu", torch.bfloat16):
            half = net(x, t).float()
    assert base.shape == x.shape
    torch.testing.assert_close(last, base, rtol=1e-3, atol=1e-4)
    assert (half - base).norm() < 0.05 * base.norm()  # eight bits of mantissa, some tens of layers


@every_network
def test_gradient_reaches_every_parameter(name):
    net = awake(name, 6).train()
    x = torch.randn(2, 6, 32, 32, requires_grad=True)
    (net(x, torch.tensor([0.1, 0.9])) * torch.randn(2, 3, 32, 32)).sum().backward()
    dead = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []
    assert x.grad.flatten(2).any(2).all()  # every plane is used


def test_dropout_acts_in_training_alone():
    net = create_network("unet-tiny", dropout=0.5)
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([0.5])
    assert not torch.equal(net(x, t), net(x, t))
    net.eval()
    assert torch.equal(net(x, t), net(x, t))


@pytest.mark.parametrize(("name", "stride"), [("cunet", 16), ("unet-tiny", 4), ("unet-small", 8)])
def test_errors(name, stride):
    net = create_network(name)
    assert net.stride == stride
    for h, w in ((32, 32 + stride // 2), (32 + stride // 2, 32)):
        with pytest.raises(ValueError, match=rf"multiples of {stride}, got \({h}, {w}\)"):
            net(torch.zeros(1, 3, h, w), torch.zeros(1))
    with pytest.raises(ValueError, match=r"among \['cunet', 'unet-tiny', .*, got 'unet'"):
        create_network("unet")
    with pytest.raises(ValueError, match=r"cunet has no dropout, got dropout=0\.1"):
        create_network("cunet", dropout=0.1)
    for wrong in ({"planes": 0}, {"planes": -1}, {"out": 0}, {"dropout": 1.0}, {"dropout": float("nan")}):
        ((what, value),) = wrong.items()
        with pytest.raises(ValueError, match=rf"planes and out of at least 1, dropout from .*{what}={value}"):
            create_network(name, **wrong)


@pytest.mark.parametrize("name", ["cunet", "unet-tiny", "unet-small"])
def test_what_a_network_is_called_with(name):
    net, x, t = create_network(name, 3), torch.rand(2, 3, 32, 48), torch.tensor([0.3, 0.7])
    wrong = (
        (x[:, :1], t),
        (x[0], t),
        (x.byte(), t),
        (x, t[0]),
        (x, 0.3),
        (x, torch.rand(3)),
        (x, t[:, None]),
    )
    for planes, times in wrong:
        with pytest.raises(ValueError, match=r"expected floats x \(B, 3, H, W\), t \(B,\), got torch\."):
            net(planes, times)
    assert net(x[:0], t[:0]).shape == (0, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(net(x.double(), t.double()), net(x, t), rtol=0, atol=1e-6)
        torch.testing.assert_close(net(x, t[:1])[0], net(x, t)[0], rtol=0, atol=1e-5)


def test_cunet_needs_pixels_for_its_variance():
    net = CUNet(base=4, noise_channels=8)
    with pytest.raises(ValueError, match=r"cunet needs at least 512 pixels, got \(16, 16\)"):
        net(torch.zeros(1, 3, 16, 16), torch.zeros(1))
    assert net(torch.rand(1, 3, 16, 32), torch.zeros(1)).isfinite().all()
