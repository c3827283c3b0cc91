"""The presets: our recipe for small data sets, for graphs too, and that of the paper's authors."""

import dataclasses
from typing import Literal

from delta_transfer.errors import unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """What a preset decides. The first block are defaults of options; no option changes the rest.

    Args:
        epochs: passes over the training images, None if `steps` are set.
        steps: training steps, in place of epochs.
        batch_size: images a step.
        lr: peak learning rate.
        optimizer: `"adamw"`, or `"sgd"` with momentum 0.9.
        schedule: what follows the warm-up.
        batch_norm: whether the target's batch-norm statistics stay the pretrained ones.
        attention: the estimator of channel attention.
        grad_clip: norm to which gradients are clipped; 0 for no limit.
        warmup_ratio: share of the steps over which the learning rate rises.
        paper_protocol: the authors' formula, taps, head, augmentation and ten-crop test.
    """

    epochs: int | None
    steps: int | None
    batch_size: int
    lr: float
    optimizer: Literal["adamw", "sgd"]
    schedule: Literal["cosine", "step", "constant"]
    batch_norm: Literal["frozen", "train"]
    attention: str
    grad_clip: float
    warmup_ratio: float
    paper_protocol: bool


_DEFAULT = Preset(
    epochs=10,
    steps=None,
    batch_size=32,
    lr=3e-4,
    optimizer="adamw",
    schedule="cosine",
    batch_norm="frozen",
    attention="refined",
    grad_clip=1.0,
    warmup_ratio=0.15,
    paper_protocol=False,
)

PRESETS = {
    "default": _DEFAULT,
    "graphs": dataclasses.replace(_DEFAULT, epochs=15, lr=1e-3),
    "paper": Preset(
        epochs=None,
        steps=9000,
        batch_size=64,
        lr=0.01,
        optimizer="sgd",
        schedule="step",
        batch_norm="train",
        attention="exact",
        grad_clip=0.0,
        warmup_ratio=0.0,
        paper_protocol=True,
    ),
}
"""The presets by name; docs/methods/delta.md has the reasons, docs/graphs.md those of graphs."""

GRAPH_MODEL_PREFIXES = ("pretrain-gnns/", "pyg/")
"""How the names of networks begin whose default is the preset for graphs."""


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UserError: if there is none; the names are listed.
    """
    if name not in PRESETS:
        raise unknown("preset", name, list(PRESETS))
    return PRESETS[name]
