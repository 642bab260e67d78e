"""What is saved is what is loaded, and what is loaded restores images of any size."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from i2sb_lib import checkpoints, restoration
from i2sb_lib.checkpoints import SHIPPED, load_pretrained, save_pretrained
from i2sb_lib.data import load_images
from i2sb_lib.degradations import create_degradation
from i2sb_lib.denoiser import Denoiser, ModelConfig
from i2sb_lib.files import atomic_write
from i2sb_lib.images import psnr, to_float
from i2sb_lib.restoration import Pretrained
from i2sb_lib.samplers import sample

NAMES = sorted({f.parent.name for s in SHIPPED for f in s.glob("*/model.json")})


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    """Random weights everywhere, the zero-initialised layers included."""
    torch.manual_seed(0)
    model = Denoiser(ModelConfig("unet-tiny", moments=(0.3, 0.25, 0.26))).eval()
    for p in model.parameters():
        p.data += 0.05 * torch.randn(p.shape)
    return model


@pytest.fixture
def folder(denoiser, tmp_path):
    save_pretrained(tmp_path / "model", denoiser, {"step": 7})
    return tmp_path / "model"


@pytest.fixture
def model(folder) -> Pretrained:
    return load_pretrained(folder, "cpu")


@pytest.fixture
def x1():
    return torch.rand(3, 3, 16, 16) * 2 - 1


def test_a_round_trip_keeps_config_record_and_float16_weights(denoiser, model):
    assert (model.denoiser.config, model.record) == (denoiser.config, {"step": 7})
    assert not model.denoiser.training
    for name, weight in denoiser.state_dict().items():
        assert torch.equal(model.denoiser.state_dict()[name], weight.half().float())


def test_float16_weights_restore_as_float32_ones_do(denoiser, model, x1):
    exact = Pretrained(denoiser, {}, model.folder)
    for sampler in ("sde", "ode"):
        a, b = (m.restore(x1, 5, sampler) for m in (exact, model))
        assert not torch.equal(a, b)
        assert psnr(a, b).min() > 50


def test_shards_are_no_larger_than_the_limit_and_join_again(denoiser, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHARD_BYTES", 100_000)
    save_pretrained(tmp_path, denoiser, {})
    shards = [load_file(f) for f in sorted(tmp_path.glob("*.safetensors"))]
    assert len(shards) > 2
    assert all(len(s) == 1 or sum(v.nbytes for v in s.values()) <= 100_000 for s in shards)
    assert sum(len(s) for s in shards) == len(denoiser.state_dict())
    load_pretrained(tmp_path, "cpu")


def _rewrite(folder, **changes):
    content = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "model-1-of-1.safetensors").unlink(),
        lambda f: (f / "model-1-of-1.safetensors").write_bytes(b"half"),
        lambda f: (f / "model.json").write_text("{"),
        lambda f: _rewrite(f, shards=[]),
        lambda f: _rewrite(f, model={"network": "unet-huge", "moments": [1, 1, 0.5]}),
    ],
    ids=["missing shard", "damaged shard", "damaged json", "missing weights", "unknown network"],
)
def test_a_damaged_checkpoint_is_one_sentence_with_its_path(folder, damage):
    damage(folder)
    with pytest.raises(ValueError, match=f"{folder}: expected a complete checkpoint, got: "):
        load_pretrained(folder)


def test_an_unknown_name_lists_what_there_is(monkeypatch, folder):
    monkeypatch.setattr(checkpoints, "SHIPPED", [folder.parent])
    assert load_pretrained("model", "cpu").folder == folder
    with pytest.raises(ValueError, match=r"\['model'\] or a folder .*'celeba46'"):
        load_pretrained("celeba46")
    import huggingface_hub

    def fail(name):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ValueError, match=r"someone/model: .*hub id: no route"):
        load_pretrained("someone/model")


def test_an_installed_package_finds_its_weights(folder, tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "i2sb_lib"
    shutil.copytree(folder, package / "pretrained" / "some-model")
    monkeypatch.setattr(checkpoints, "SHIPPED", [package / "pretrained", tmp_path / "absent"])
    assert load_pretrained("some-model", "cpu").folder == package / "pretrained" / "some-model"


@pytest.mark.skipif(not NAMES, reason="this checkout ships no weights")
@pytest.mark.parametrize("name", NAMES)
def test_shipped_models_restore_and_have_a_card(name):
    model = load_pretrained(name, "cpu")
    out = model.restore(torch.zeros(1, 3, 16, 16), nfe=1)
    assert out.isfinite().all()
    assert (model.folder / "README.md").stat().st_size > 200


@pytest.mark.parametrize("size", [(61, 47), (5, 5), (1, 1), (2, 30), (16, 16)])
def test_any_size_is_padded_and_cropped_back(model, size):
    x1 = torch.rand(2, 3, *size) * 2 - 1
    x0_hat = model.restore(x1, nfe=2)
    assert x0_hat.shape == x1.shape
    assert x0_hat.abs().max() <= 1
    assert x0_hat.isfinite().all()


def test_padding_does_not_reach_far_into_the_image(model):
    """The image goes on by its reflection, and the rest is cut off."""
    x1 = torch.rand(1, 3, 61, 48) * 2 - 1
    reflected = torch.nn.functional.pad(x1, (0, 0, 0, 19), mode="reflect")
    assert torch.allclose(model.restore(x1, 1), model.restore(reflected, 1)[:, :, :61], atol=1e-5)


@pytest.mark.skipif(not NAMES, reason="this checkout ships no weights")
@pytest.mark.parametrize("consistency", [0.0, 1e-3])
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
    first = model.restore(x1, 3, "sde", seed=5)
    torch.manual_seed(2)
    assert torch.equal(model.restore(x1, 3, "sde", seed=5), first)
    assert not torch.equal(model.restore(x1, 3, "sde", seed=6), first)
    assert torch.equal(model.restore(x1, 3, "ode", 5), model.restore(x1, 3, "ode", 6))


def test_the_ode_does_not_depend_on_how_a_batch_is_split(model, x1, monkeypatch):
    monkeypatch.setattr(restoration, "auto_precision", lambda device: "no")
    whole, parts = (model.restore(x1, 3, "ode", batch_size=n) for n in (64, 1))
    assert torch.allclose(whole, parts, atol=1e-5)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.zeros(3, 16, 16), r"\(3, 16, 16\)"),
        (torch.zeros(1, 1, 16, 16), r"\(1, 1, 16, 16\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "uint8"),
        (torch.full((1, 3, 16, 16), 255.0), r"\[-1, 1\], got \[255, 255\]"),
        (torch.full((1, 3, 16, 16), float("nan")), "nan"),
    ],
)
def test_other_input_is_refused_with_what_it_was(model, bad, words):
    with pytest.raises(ValueError, match=words):
        model.restore(bad)
    with pytest.raises(ValueError, match="sampler in"):
        model.restore(torch.zeros(1, 3, 16, 16), sampler="euler")


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    def interrupted(partial):
        partial.write_text("half")
        raise KeyboardInterrupt

    atomic_write(tmp_path / "a.json", lambda p: p.write_text("old"))
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "a.json", interrupted)
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("a.json", "old")]


def test_the_grid_s_power_reaches_the_sampler(model, x1):
    generator = torch.Generator().manual_seed(0)
    times = model.denoiser.bridge.schedule.grid(3, power=2)
    expected = sample(
        lambda xt, t: model.denoiser(xt, t, x1), model.denoiser.bridge, x1, times=times, generator=generator
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
