"""The options of a training run, and their YAML file."""

import dataclasses
from pathlib import Path
from typing import Literal

import yaml

from delta_transfer.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The options of a training run. The defaults are the recipe for small data sets.

    Args:
        data: folder of pictures (root/{train,val,test}/CLASS/* or root/CLASS/*), or a named data
            set: skimage/patches, sklearn/digits.
        model: pretrained network: a timm name such as resnet50.a1_in1k, or
            pypi/efficientnet_lite0|1|2 (no download).
        out: folder of the run; runs/DATA-METHOD-TIME if not given.
        overwrite: replace what is in the folder of the run.
        method: probe, l2, lp_ft, l2sp, delta_no_attention or delta (see: delta-transfer methods).
        strength: strength of the method's penalty (l2, lp_ft: weight decay); the method's own if
            not given.
        taps: modules whose features are compared: auto, or names and glob patterns with commas
            between (see: delta-transfer layers MODEL).
        attention: channel attention of delta: gradient (one pass), exact (each channel switched
            off, slow), none, or the attention.safetensors of another run.
        attention_samples: training pictures that attention is averaged over, drawn at random; all
            if not given (exact: 64).
        batch_norm: frozen keeps the pretrained batch-norm statistics; train updates them.
        epochs: passes over the training pictures.
        batch_size: pictures a step.
        lr: peak learning rate.
        head_lr: peak learning rate of the head; lr if the head starts as the linear probe, 10 lr if
            it starts at random.
        optimizer: adamw, or sgd (momentum 0.9).
        schedule: after a warm-up over 15% of the steps, cosine to zero, step (times 0.1 at 67%) or
            constant.
        image_size: side of the pictures in pixels; the network's own if not given.
        samples_per_class: training pictures of each class, drawn at random; all if not given.
        seed: draws splits, subsets, batch order, augmentation and the head's start.
        val_fraction: share of the training pictures held out where there is no validation split.
        test_split: name of the test split's folder, or a fraction of the training pictures to
            hold out for a test.
        device: auto, cpu, cuda or mps.
        workers: processes that load pictures; chosen by the number of cores if not given.
    """

    data: str
    model: str = "pypi/efficientnet_lite0"
    out: str | None = None
    overwrite: bool = False
    method: str = "delta"
    strength: float | None = None
    taps: str = "auto"
    attention: str = "gradient"
    attention_samples: int | None = None
    batch_norm: Literal["frozen", "train"] = "frozen"
    epochs: int = 10
    batch_size: int = 32
    lr: float = 3e-4
    head_lr: float | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    image_size: int | None = None
    samples_per_class: int | None = None
    seed: int = 0
    val_fraction: float = 0.15
    test_split: str = "test"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    workers: int | None = None

    def __post_init__(self) -> None:
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{_flag(name)} must be at least {least}, got {value}")
        for name in ("lr", "head_lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{_flag(name)} must be above 0, got {value}")
        for name in ("batch_norm", "optimizer", "schedule", "device"):
            allowed = TrainConfig.__dataclass_fields__[name].type.__args__  # type: ignore[union-attr]
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"{_flag(name)} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )

    def save(self, path: Path) -> None:
        """Writes YAML that `train -c` takes."""
        path.write_text(yaml.safe_dump(dataclasses.asdict(self), sort_keys=False))

    @classmethod
    def load(cls, path: Path) -> "TrainConfig":
        """Reads what `save` wrote.

        Raises:
            UserError: if the file is missing, is no YAML mapping or has unknown keys.
        """
        try:
            values = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"{path} cannot be read as YAML: {error}") from error
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, dict) or not set(values) <= set(known):
            raise UserError(f"{path} must hold options of a run: {', '.join(known)}")
        return cls(**values)


_AT_LEAST = {
    "strength": 0,
    "attention_samples": 1,
    "epochs": 1,
    "batch_size": 1,
    "image_size": 16,
    "samples_per_class": 1,
    "seed": 0,
    "workers": 0,
}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
