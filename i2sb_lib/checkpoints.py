r"""Weights on disk, and the model that restores with them.

A checkpoint is a folder with model.json (configuration, shards, the run's record), safetensors
shards of the averaged weights in float16, with buffers as they are, and, where it is shipped, a
README.md: its model card.
"""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from i2sb_lib.config import TrainConfig
from i2sb_lib.denoiser import CUSTOM, Denoiser, ModelConfig
from i2sb_lib.devices import auto_device
from i2sb_lib.faults import first_line, warn
from i2sb_lib.files import atomic_write
from i2sb_lib.restoration import Restorer

SHARD_BYTES = 45_000_000
CARD_BYTES = 10_000_000  # a model.json that is larger is none
_KINDS = {"training": dict, "nfe": int, "sampler": str, "grey_stays": bool}  # of what a record may hold
_LIMITS: list[tuple[str, float, float]] = [  # and numbers in it; start is of a student's one call
    ("least_change", 0, 255), ("nfe", 1, 10**6), ("power", 0.01, 100), ("consistency", 0, 10**6),
    ("start", 0.001, 0.999),
]  # fmt: skip
DEFAULT = "photos-robust"  # for any picture
_PACKAGE = Path(__file__).parent
SHIPPED = [_PACKAGE / "pretrained", _PACKAGE.parent / "data" / "checkpoints"]  # installed, or a clone


class Pretrained(Restorer, ModelHubMixin, library_name="i2sb-lib", tags=["image-to-image"]):
    """What `load_pretrained` returns: restores, and is saved to and loaded from folders and the hub.

    A module like any other (`.to`, `.half`, `.parameters`); `save_pretrained`, `push_to_hub` and
    `from_pretrained` are huggingface_hub's, with the files of this module.
    """

    def __init__(self, denoiser: Denoiser, record: dict[str, Any], folder: Path) -> None:
        super().__init__(denoiser, record, folder)
        self._hub_mixin_config = None  # model.json says it

    def _save_pretrained(self, save_directory: Path) -> None:
        save_pretrained(save_directory, self.denoiser, self.record)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **how: Any) -> "Pretrained":
        return load_pretrained(model_id, how.get("map_location"), net=how.get("net"))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that lies beside the weights, or what the run's record says."""
        card, record = self.folder / "README.md", json.dumps(self.record, indent=1)
        own = ", given its module as `net`" * (self.denoiser.config.network == CUSTOM)
        said = f"{self.denoiser!r}\n\nRestores with `i2sb_lib.load_pretrained`{own}. Its training:"
        text = f"{said}\n\n```json\n{record}\n```\n"
        if card.exists():
            text = card.read_text(encoding="utf-8", errors="replace")
        data = ModelCardData(library_name="i2sb-lib", tags=["image-to-image"], pipeline_tag="image-to-image")
        return ModelCard(text if text.startswith("---\n") else f"---\n{data.to_yaml()}\n---\n\n{text}")


def _parameters(model: nn.Module) -> set[str]:
    """What of a state is a weight; the rest are buffers: indices, masks, counts, statistics."""
    return {name for name, _ in model.named_parameters(remove_duplicate=False)}


def save_pretrained(folder: str | Path, model: Denoiser, record: dict[str, Any]) -> None:
    """Write shards of at most 45 MB each (or of one weight that is larger), then model.json, to `folder`.

    Weights are float16, but for those that would not be the same to a thousandth; buffers are as they are.
    record: what JSON can hold, as `load_pretrained` reads it; else nothing is written, and TypeError raised.
    """
    folder, content = Path(folder), {"model": dataclasses.asdict(model.config), "record": record}
    json.dumps(content)
    shards: list[dict[str, Tensor]] = [{}]
    size, parameters = 0, _parameters(model)
    for name, weight in model.state_dict().items():
        value = weight.detach().cpu().clone(memory_format=torch.contiguous_format)
        if name in parameters and value.is_floating_point():
            half, exact = value.half(), value.double()
            value = half if (half - exact).norm() <= 1e-3 * exact.norm() else value
        if shards[-1] and size + value.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += value.nbytes
    names = [f"model-{i + 1}-of-{len(shards)}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        atomic_write(folder / name, lambda p, shard=shard: p.write_bytes(save(shard)))  # type: ignore[misc]
    text = json.dumps(content | {"shards": names}, indent=2) + "\n"
    atomic_write(folder / "model.json", lambda p: p.write_text(text, encoding="utf-8"))


def _read(file: Path) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """The model's configuration, its shards and the run's record, as model.json has them; else ValueError."""
    if file.stat().st_size > CARD_BYTES:
        raise ValueError(f"expected a model.json of at most {CARD_BYTES:,} bytes")
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"model", "shards"} <= content.keys():
        raise ValueError("expected model and shards in model.json")
    model, shards, record = content["model"], content["shards"], content.get("record") or {}
    if not isinstance(model, dict) or not isinstance(record, dict) or not isinstance(shards, list):
        raise ValueError("expected model and record as objects and shards as an array in model.json")
    names = {n for n in map(str, shards) if re.fullmatch(r"[\w-][\w.-]*\.safetensors", n)}
    if len(names) < len(shards):
        raise ValueError(f"expected safetensors files of its own folder, each once, got {shards!s:.80}")
    for name, kind in _KINDS.items():
        if not isinstance(record.get(name, kind()), kind):
            raise ValueError(f"expected {name} in the record as {kind.__name__}, got {record[name]!r:.80}")
    for name, low, high in _LIMITS:
        value = record.get(name, low)
        if not (type(value) in (int, float) and low <= value <= high):
            raise ValueError(f"expected {name} in the record from {low} to {high}, got {value!r:.80}")
    names = {f.name for f in dataclasses.fields(TrainConfig)}
    for part in (model, record.get("training", {})):
        TrainConfig(**{k: v for k, v in part.items() if k in names})
    return model, shards, record


def _weights(files: list[Path], model: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers in safetensors files, each read once its shape is known to be the model's."""
    found, wanted, parameters = {}, model.state_dict(), _parameters(model)
    for file in files:
        with safe_open(file, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118
                shape = shard.get_slice(name).get_shape()
                if name not in wanted or list(wanted[name].shape) != shape:
                    raise ValueError(f"{file.name}: weights {name} of shape {shape} are not this model's")
                found[name] = shard.get_tensor(name)
                if name in parameters and not found[name].isfinite().all():
                    raise ValueError(f"{file.name}: weights {name} are not all numbers")
    if missing := wanted.keys() - found.keys():
        raise ValueError(f"{len(missing)} weights are missing, {min(missing)} among them")
    return found


def _download(name: str) -> Path:
    """The folder into which the hub's client puts model.json and the shards that it names, no more."""
    try:
        file = Path(huggingface_hub.hf_hub_download(name, "model.json"))
        for shard in _read(file)[1]:  # of the same commit, whose folder this is
            huggingface_hub.hf_hub_download(name, shard, revision=file.parent.name)
    except Exception as error:  # the client has no common base class for its errors
        told = f"expected a shipped model, a folder or a hub id with model.json, got: {first_line(error)}"
        raise ValueError(f"{name}: {told}") from error
    return file.parent


def _find(name: str) -> Path:
    """The folder of a checkpoint: here, among those that are shipped, or from the hub; ValueError if none."""
    here = Path(os.path.expanduser(name))  # which stays as it is where there is no home
    shipped = [s / name for s in SHIPPED if os.path.basename(name) == name]
    found = [folder for folder in (*shipped, here) if name and os.path.isfile(folder / "model.json")]
    if found:
        if found[-1].resolve() != found[0].resolve() and found[-1] == here:
            warn(f"{name}: the shipped model is taken, not the folder, which is ./{name}")
        return found[0]
    if re.fullmatch(r"(?!runs/)\w[\w.-]{0,95}/[\w.-]{1,96}", name) and not here.parent.exists():
        return _download(name)
    known = sorted({p.parent.name for s in SHIPPED for p in s.glob("*/model.json")})
    asked = os.path.abspath(here) if "/" in name else name  # a run may be resumed from elsewhere
    got = f"a folder without one, {name!r}" if name and os.path.isdir(here) else f"{asked!r:.160}"
    raise ValueError(f"expected one of {known}, a folder with model.json or a hub id, got {got}")


def describe(name: str | Path) -> tuple[Path, dict[str, Any], list[str], dict[str, Any]]:
    """A checkpoint's folder, and its model, shards and record as model.json has them; else ValueError."""
    path = Path(name) if isinstance(name, Path) and (name / "model.json").is_file() else _find(str(name))
    try:
        return path, *_read(path / "model.json")
    except Exception as error:
        raise ValueError(f"{path}: expected a complete checkpoint, got: {first_line(error)}") from error


def load_pretrained(
    name: str | Path = DEFAULT, device: str | torch.device | None = None, *, net: nn.Module | None = None
) -> Pretrained:
    """The model of a checkpoint, in float32 on `device` (a GPU, CUDA or Apple's, where there is one).

    name: one that is shipped, else the folder of a run or checkpoint, or a hub id, of which model.json and
    its shards are downloaded. What begins with ".", "/", "~" or "runs/" or lies in a folder that exists is
    a folder.
    net: a module of one's own, for the checkpoint of a run that was given one; it gets the weights, is frozen
    and set to evaluate.
    Nothing but JSON and safetensors is read, from that folder alone. Raises ValueError where there is
    no such checkpoint or device, or a file of it is missing or damaged.
    """
    try:
        device = torch.device(device) if device else auto_device()
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = first_line(error).split(". ")[0]  # what torch supposes and advises goes on
        raise ValueError(f"expected a device that is here, got {device} ({why})") from None
    path, model, shards, record = describe(name)
    if model.get("network") == CUSTOM and net is None:
        said = "expected net, a module of one's own, as the run was given: load_pretrained(…, net=…)"
        raise ValueError(f"{path}: {said}")
    try:
        config = ModelConfig(**model)
        moments: Any = tuple(config.moments)  # JSON has lists
        denoiser = Denoiser(dataclasses.replace(config, moments=moments), net)
        denoiser.load_state_dict(_weights([path / n for n in shards], denoiser))
        found = Pretrained(denoiser.requires_grad_(False).eval(), record, path)
        found.recommended()  # which it can make
    except Exception as error:
        raise ValueError(f"{path}: expected a complete checkpoint, got: {first_line(error)}") from error
    for p in denoiser.parameters():  # and no buffer
        p.data = p.data.float()
    denoiser.place(device)
    return found
