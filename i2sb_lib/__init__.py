"""Image-to-image Schrödinger bridges: the mathematics, the training and the restoration.

>>> model = i2sb_lib.load_pretrained()
>>> x0_hat = model.restore(x1, nfe=10, seed=0)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from i2sb_lib.bridge import Bridge
    from i2sb_lib.checkpoints import load_pretrained
    from i2sb_lib.checks import check
    from i2sb_lib.data import load_images
    from i2sb_lib.degradations import create_degradation
    from i2sb_lib.evaluation import evaluate
    from i2sb_lib.networks import create_network
    from i2sb_lib.samplers import sample
    from i2sb_lib.schedule import Schedule
    from i2sb_lib.training import TrainConfig, train

__version__ = "0.1.0"
_HOME = {
    "Bridge": "bridge",
    "Schedule": "schedule",
    "TrainConfig": "training",
    "check": "checks",
    "create_degradation": "degradations",
    "create_network": "networks",
    "evaluate": "evaluation",
    "load_images": "data",
    "load_pretrained": "checkpoints",
    "sample": "samplers",
    "train": "training",
}
__all__ = [
    "Bridge",
    "Schedule",
    "TrainConfig",
    "check",
    "create_degradation",
    "create_network",
    "evaluate",
    "load_images",
    "load_pretrained",
    "sample",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import i2sb_lib` stays quick."""
    if name not in _HOME:
        raise AttributeError(f"module 'i2sb_lib' has no attribute {name!r}")
    return getattr(import_module(f"i2sb_lib.{_HOME[name]}"), name)
