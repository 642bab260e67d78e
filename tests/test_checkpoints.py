"""What is saved is what is loaded; nothing else is, whatever a checkpoint says."""

import json
import os
import pickle
import random
import shutil
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from i2sb_lib import checkpoints
from i2sb_lib.checkpoints import SHIPPED, Pretrained, load_pretrained, save_pretrained
from i2sb_lib.denoiser import Denoiser, ModelConfig
from i2sb_lib.faults import Notice
from i2sb_lib.images import psnr

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


def test_a_round_trip_keeps_config_record_and_float16_weights(denoiser, model):
    assert (model.denoiser.config, model.record) == (denoiser.config, {"step": 7})
    assert not model.denoiser.training
    for name, weight in denoiser.state_dict().items():
        assert torch.equal(model.denoiser.state_dict()[name], weight.half().float())


class Beside(nn.Module):
    """Weights that float16 cannot hold, one of them under two names, and what is no weight."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.conv = nn.Conv2d(6, 3, 1)
        self.again = self.conv
        self.large, self.huge, self.small, self.none = (
            nn.Parameter(torch.tensor([x, 1.5 * x])) for x in (1e6, 1e30, 1e-9, 0.0)
        )
        kept = {
            "order": torch.randperm(5000, generator=generator),
            "count": torch.tensor(100_000),
            "tiny": torch.tensor(1e-9),
            "mask": torch.full((3, 3), -torch.inf).triu(1),
            "exact": torch.rand(4, generator=generator, dtype=torch.float64),
            "shown": torch.tensor([True, False]),
        }
        for name, value in kept.items():
            self.register_buffer(name, value)
        self.register_buffer("order_again", self.order)


def test_what_float16_cannot_hold_comes_back_as_it_was(tmp_path):
    def wrapped(net):
        return Denoiser(ModelConfig("custom", degradation="custom"), net)

    model = wrapped(Beside())
    save_pretrained(tmp_path, model, {})
    assert load_file(tmp_path / SHARD)["net.conv.weight"].dtype == torch.float16
    again = load_pretrained(tmp_path, "cpu", net=Beside(seed=1)).denoiser
    ours, theirs = model.state_dict(), again.state_dict()
    for name in ours.keys() - {f"net.{n}.{k}" for n in ("conv", "again") for k in ("weight", "bias")}:
        assert theirs[name].dtype == ours[name].dtype
        assert torch.equal(theirs[name], ours[name]), name
    assert torch.equal(theirs["net.again.weight"], ours["net.conv.weight"].half().float())


def test_float16_weights_restore_as_float32_ones_do(denoiser, model):
    x1, exact = torch.rand(3, 3, 16, 16) * 2 - 1, Pretrained(denoiser, {}, model.folder)
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
    if isinstance(changes.get("model"), dict):  # some of its fields
        changes["model"] = content["model"] | changes["model"]
    (folder / "model.json").write_text(json.dumps({**content, **changes}))


def _weights(folder, change):
    """Rewrite the shard with `change` made to its tensors."""
    file = folder / "model-1-of-1.safetensors"
    held = load_file(file)
    change(held)
    save_file(held, file)


def _first(weights):
    return next(iter(sorted(weights)))


SHARD = "model-1-of-1.safetensors"
DAMAGES = {
    "missing shard": (lambda f: (f / SHARD).unlink(), "No such file"),
    "damaged shard": (lambda f: (f / SHARD).write_bytes(b"half"), "header"),
    "cut shard": (lambda f: os.truncate(f / SHARD, 30_000), "header|incomplete"),
    "damaged json": (lambda f: (f / "model.json").write_text("{"), "line 1 column 2"),
    "binary json": (lambda f: (f / "model.json").write_bytes(b"\xff\xfe\x00"), "utf-8"),
    "deep json": (lambda f: (f / "model.json").write_text("[" * 100_000), "recursion|depth"),
    "huge json": (lambda f: (f / "model.json").write_text(" " * 10_000_001), "at most 10,000,000 bytes"),
    "a list": (lambda f: (f / "model.json").write_text("[]"), "expected model and shards"),
    "no model": (lambda f: _rewrite(f, model=None), "as objects"),
    "a record in words": (lambda f: _rewrite(f, record="none"), "as objects"),
    **{
        f"a record of {record}": (lambda f, record=record: _rewrite(f, record=record), said)
        for record, said in [
            ({"training": [1]}, "training in the record as dict"),
            ({"training": {"noise": "x"}}, "noise as float"),
            ({"training": {"size": "x"}}, "size as"),
            ({"training": {"degradation_options": {"sigma": "x"}}}, "degradation_options of numbers"),
            ({"training": {"noise": 1e300}}, "noise of at most 10"),
            ({"least_change": "x"}, "least_change in the record from 0 to 255"),
            ({"least_change": 10**30}, "least_change in the record from 0 to 255"),
            ({"nfe": 10**12}, "nfe in the record from 1"),
            ({"grey_stays": 1}, "grey_stays in the record as bool"),
            ({"nfe": "10"}, "nfe in the record as int"),
        ]
    },
    "no weights": (lambda f: _rewrite(f, shards=[]), r"\d+ weights are missing, \S+ among them"),
    "unknown network": (lambda f: _rewrite(f, model={"network": "unet-huge"}), "expected a network among"),
    "unknown field": (lambda f: _rewrite(f, model={"layers": 10**9}), "layers"),
    "a kernel of any width": (
        lambda f: _rewrite(f, model={"degradation_options": {"kernel_size": 10**9}}),
        "255",
    ),
    "no dropout": (lambda f: _rewrite(f, model={"dropout": float("nan")}), "dropout from 0"),
    "infinite beta": (lambda f: _rewrite(f, model={"beta_max": float("inf")}), "beta_max above 0, got inf"),
    "a yes in words": (lambda f: _rewrite(f, model={"cond_x1": "no"}), "expected cond_x1 as bool, got 'no'"),
    "no moments": (lambda f: _rewrite(f, model={"moments": [1, float("nan"), 0]}), "moments of two"),
    "another shape": (
        lambda f: _weights(f, lambda w: w.update({_first(w): torch.zeros(3, 5)})),
        "not this model's",
    ),
    "weights too many": (
        lambda f: _weights(f, lambda w: w.update(more=torch.zeros(9))),
        "weights more of shape",
    ),
    "a weight too few": (lambda f: _weights(f, lambda w: w.pop(_first(w))), "1 weights are missing"),
    "not a number": (lambda f: _weights(f, lambda w: w[_first(w)].fill_(float("nan"))), "not all numbers"),
    "a name twice": (lambda f: _rewrite(f, shards=[SHARD] * 300_000), "each once"),
    "a name that is none": (lambda f: _rewrite(f, shards=[5]), "of its own folder"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_one_sentence_with_its_path(folder, damage):
    change, words = DAMAGES[damage]
    change(folder)
    with pytest.raises(
        ValueError, match=f"{folder}: expected a complete checkpoint, got: .*(?:{words})"
    ) as caught:
        load_pretrained(folder)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["../a.safetensors", "{}/a.safetensors", "sub/a.safetensors", "a.bin", "sub/../a.bin", "*.safetensors"],
)
def test_no_shard_outside_the_folder_and_no_pickle_is_opened(folder, name, monkeypatch):
    (folder / "sub").mkdir()
    for place in (folder.parent, folder / "sub"):
        shutil.copy(folder / SHARD, place / "a.safetensors")
    shutil.copy(folder / SHARD, folder / "a.bin")
    _rewrite(folder, shards=[name.format(folder.parent)])
    monkeypatch.setattr(checkpoints, "safe_open", lambda *args: pytest.fail(f"opened {args}"))
    with pytest.raises(ValueError, match="safetensors files of its own folder"):
        load_pretrained(folder)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


def test_a_pickle_under_a_shard_s_name_is_not_loaded(folder):
    (folder / SHARD).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="expected a complete checkpoint"):
        load_pretrained(folder)


def test_shapes_are_known_before_a_weight_takes_memory(folder, monkeypatch):
    """A shard may state any size: its file is as large as it says (a sparse one costs nothing)."""
    size = 2**30
    header = json.dumps(
        {"net.first.bias": {"dtype": "F16", "shape": [size], "data_offsets": [0, 2 * size]}}
    ).encode()
    with open(folder / SHARD, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * size)
    with pytest.raises(ValueError, match=r"net\.first\.bias of shape \[1073741824\] are not this model's"):
        load_pretrained(folder)


def test_a_flag_that_is_a_number_widens_no_network(folder):
    _rewrite(folder, model={"cond_x1": 10**9})
    with pytest.raises(ValueError, match="expected cond_x1 as bool, got 1000000000"):
        load_pretrained(folder, "cpu")


def test_a_device_that_is_none_is_refused_before_weights_are_read(folder, monkeypatch):
    monkeypatch.setattr(checkpoints, "_weights", lambda *a: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match="expected a device that is here, got gpu"):
        load_pretrained(folder, "gpu")


def test_a_device_that_is_not_here_is_told_in_one_sentence(folder, monkeypatch):
    """Of "mps" torch says much, cut in the middle of an advice to the people at Facebook."""

    def zeros(*size, device):
        raise NotImplementedError("Could not run 'aten::empty'. This could be" + " because" * 99)

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(ValueError, match=r"got mps \(Could not run 'aten::empty'\)$"):
        load_pretrained(folder, "mps")


def test_weights_are_float32_whatever_the_host_s_default_is(folder):
    torch.set_default_dtype(torch.float64)
    try:
        model = load_pretrained(folder, "cpu")
        assert model.restore(torch.zeros(1, 3, 16, 16), 2).isfinite().all()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("record", "model", "message"),
    [
        ({"sampler": "foo"}, {}, r"expected sampler in \('sde', 'ode', 'dbim'\), got 'foo'"),
        ({"sampler": "ode"}, {"process": "diffusion"}, "ode is the limit of a bridge from x1"),
        ({"nfe": True}, {}, "expected nfe in the record from 1 to 1000000, got True"),
        ({"power": True}, {}, "expected power in the record from 0.01 to 100, got True"),
        ({"consistency": 0.1}, {"degradation": "jpeg"}, "consistency needs a separable blur"),
        ({"nfe": 5}, {"process": "regression"}, r"a regression restores in one network call .*, got nfe=5"),
        ({"start": 0.5, "nfe": 5}, {}, r"a student restores in one network call .*, got nfe=5, power=1\.0"),
        ({"start": 0.5, "power": 2.0}, {}, r"\(nfe 1, power 1\), got nfe=1, power=2\.0"),
        ({"start": 0.5}, {"process": "regression"}, "expected start of a bridge's student, got a regression"),
        ({"start": 0.5}, {"process": "diffusion"}, "expected start of a bridge's student, got a diffusion"),
    ],
)
def test_a_walk_that_the_model_cannot_make_is_not_recommended(folder, record, model, message):
    how = {"cond_x1": True, "prediction": "precond", "tikhonov": 0.0}
    denoiser = Denoiser(ModelConfig(**{"network": "unet-tiny", **how, **model}))
    save_pretrained(folder, denoiser, record)
    with pytest.raises(ValueError, match="expected a complete checkpoint, got: .*" + message):
        load_pretrained(folder, "cpu")


def test_a_record_may_be_empty_or_absent(folder):
    for record in ({}, None):
        _rewrite(folder, record=record)
        assert load_pretrained(folder, "cpu").record == {}
    content = json.loads((folder / "model.json").read_text())
    del content["record"]
    (folder / "model.json").write_text(json.dumps(content))
    assert load_pretrained(folder, "cpu").record == {}


def test_mutated_checkpoints_load_or_are_refused_in_a_sentence(folder):
    """100 of them: bytes changed, cut or doubled, in model.json and at the start of the shard."""
    draw, said, loaded, began = random.Random(0), [], 0, time.process_time()
    originals = {f: f.read_bytes() for f in (folder / "model.json", folder / SHARD)}
    for _ in range(100):
        file = draw.choice(list(originals))
        data = bytearray(originals[file])
        at, cut = draw.randrange(min(len(data), 9000)), draw.randrange(1, 40)
        data[at : at + cut] = draw.choice([draw.randbytes(cut), b"", data[at : at + cut] * 2])
        file.write_bytes(data)
        try:
            load_pretrained(folder, "cpu")
            loaded += 1
        except ValueError as error:
            said.append(str(error))
        file.write_bytes(originals[file])
    assert loaded > 0
    assert len(said) > 50
    assert not [text for text in said if "\n" in text or not text.startswith(str(folder))]
    assert time.process_time() - began < 30


class Hub:
    """The hub's client: one repository in a folder, what was asked of it, and where it was put."""

    def __init__(self, source, cache, monkeypatch):
        self.source, self.cache, self.asked = source, cache / "snapshots" / "1a2b", []
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.refuse)

    def download(self, repo, name, revision="main"):
        self.asked.append((repo, name, revision))
        if not (self.source / name).exists():
            raise FileNotFoundError(f"404 Client Error\n\nno {name} at any url")
        self.cache.mkdir(parents=True, exist_ok=True)
        return str(shutil.copy(self.source / name, self.cache / name))

    def refuse(self, *args, **options):
        pytest.fail("a whole repository was asked for")


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"large")
    return Hub(folder, tmp_path / "cache", monkeypatch)


def test_from_the_hub_come_the_card_and_its_shards_of_one_commit(hub, denoiser):
    model = load_pretrained("someone/model", "cpu")
    assert model.denoiser.config == denoiser.config
    assert hub.asked == [("someone/model", "model.json", "main"), ("someone/model", SHARD, "1a2b")]
    assert model.folder == hub.cache
    _rewrite(hub.source, shards=["../../other.safetensors"])
    with pytest.raises(ValueError, match=r"someone/model: .*of its own folder"):
        load_pretrained("someone/model")
    assert len(hub.asked) == 3  # the card alone
    (hub.source / "model.json").unlink()
    with pytest.raises(
        ValueError, match=r"someone/model: expected .*hub id with model.json, got: 404 Client"
    ) as e:
        load_pretrained("someone/model")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "name",
    [
        "./a/b",
        "/a/b",
        "~/a/b",
        "../a/b",
        "runs/b",
        "runs/a/checkpoint",
        "runs",
        "a/b/c",
        "celeba46",
        "9" * 5000,
        "a/" + "9" * 5000,
        "-a/b",
        ".a/b",
        "a//b",
    ],
)
def test_what_looks_like_a_folder_is_not_asked_of_the_hub(hub, name):
    for _ in "without", "with":
        with pytest.raises(ValueError, match=r"with model\.json or a hub id, got [^\n]{1,160}$") as error:
            load_pretrained(name)
        where = os.path.abspath(os.path.expanduser(name)) if "/" in name else name  # it may be a run's --init
        assert f"{where!r}"[:99] in str(error.value)
        assert hub.asked == []
        Path("runs").mkdir(exist_ok=True)


def test_offline_a_model_comes_from_the_hub_s_cache_or_the_answer_is_short(folder, tmp_path, monkeypatch):
    """With the hub's own client, in its own layout: nothing is asked of the network."""
    cache, commit = tmp_path / "hub" / "models--someone--model", "1a2b" * 10
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    shutil.copytree(folder, cache / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert load_pretrained("someone/model", "cpu").record == {"step": 7}
    with pytest.raises(ValueError, match=r"^someone/other: expected .*connection"):
        load_pretrained("someone/other")


def test_an_unknown_name_lists_what_there_is(monkeypatch, folder):
    monkeypatch.setattr(checkpoints, "SHIPPED", [folder.parent])
    assert load_pretrained("model", "cpu").folder == folder
    with pytest.raises(ValueError, match=r"one of \['model'\], a folder .*, got 'celeba46'"):
        load_pretrained("celeba46")
    with pytest.raises(ValueError, match=r"got a folder without one, '.*'"):
        load_pretrained(folder.parent)


def test_a_folder_with_a_shipped_model_s_name_does_not_take_its_place(folder, tmp_path, monkeypatch):
    here = tmp_path / "here"
    shutil.copytree(folder, here / "model")
    monkeypatch.chdir(here)
    monkeypatch.setattr(checkpoints, "SHIPPED", [folder.parent])
    with pytest.warns(Notice, match=r"model: the shipped model is taken, not the folder, which is \./model$"):
        assert load_pretrained("model", "cpu").folder == folder
    for name in ("./model", Path("model"), here / "model"):
        assert load_pretrained(name, "cpu").folder.resolve() == here / "model"


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


def test_a_folder_may_be_a_name_and_a_record_that_is_no_json_leaves_what_is_there(tmp_path):
    denoiser = Denoiser(ModelConfig(network="unet-small"))
    save_pretrained(str(tmp_path / "a"), denoiser, {"step": 1})
    assert load_pretrained(tmp_path / "a", "cpu").record == {"step": 1}
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    with torch.no_grad():
        next(denoiser.parameters()).add_(1)
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_pretrained(tmp_path / "a", denoiser, {"step": {1}})
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before
