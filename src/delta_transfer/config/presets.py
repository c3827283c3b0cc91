"""The presets: for small image data sets, for graphs, and the protocol of DELTA's authors."""

import dataclasses
from typing import Literal

from delta_transfer.errors import unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Defaults of options, and (the last two) settings that no option changes.

    Args:
        epochs: number of epochs; None to set it by `steps` or by the number of images.
        steps: training steps instead of epochs.
        batch_size: images per step.
        lr: peak learning rate.
        optimizer: `"adamw"`, or `"sgd"` with momentum 0.9.
        schedule: learning rate after the warm-up.
        batch_norm: keep the pretrained batch-norm statistics, or update them.
        method: the method.
        strength: `"auto"` to train with several; None for the method's own.
        attention_estimator: estimator of channel attention.
        grad_clip: maximum gradient norm; 0 for no limit.
        warmup_ratio: fraction of the steps with a rising learning rate.
        paper_protocol: the authors' formula, taps, head, augmentation and ten-crop test.
    """

    epochs: int | None
    steps: int | None
    batch_size: int
    lr: float
    optimizer: Literal["adamw", "sgd"]
    schedule: Literal["cosine", "step", "constant"]
    batch_norm: Literal["frozen", "train"]
    method: str
    strength: Literal["auto"] | None
    attention_estimator: str
    grad_clip: float
    warmup_ratio: float
    paper_protocol: bool


_DEFAULT = Preset(
    epochs=None,
    steps=None,
    batch_size=32,
    lr=1e-3,
    optimizer="adamw",
    schedule="cosine",
    batch_norm="frozen",
    method="delta",
    strength=None,
    attention_estimator="refined",
    grad_clip=1.0,
    warmup_ratio=0.15,
    paper_protocol=False,
)

PRESETS = {
    "default": _DEFAULT,
    "graphs": dataclasses.replace(_DEFAULT, epochs=15, strength="auto"),
    "paper": Preset(
        epochs=None,
        steps=9000,
        batch_size=64,
        lr=0.01,
        optimizer="sgd",
        schedule="step",
        batch_norm="train",
        method="delta_attention",
        strength=None,
        attention_estimator="exact",
        grad_clip=0.0,
        warmup_ratio=0.0,
        paper_protocol=True,
    ),
}
"""Name -> preset; docs/methods/delta.md and docs/graphs.md give the reasons."""

GRAPH_MODEL_PREFIXES = ("pretrain-gnns/", "pyg/")
"""Prefixes of the networks whose default is the preset graphs."""


def find_preset(name: str) -> Preset:
    """Return the preset of a name.

    Raises:
        ConfigError: if the name is unknown.
    """
    if name not in PRESETS:
        raise unknown("preset", name, list(PRESETS))
    return PRESETS[name]
