"""The options of a training run, and their YAML file."""

import dataclasses
import typing
from pathlib import Path
from typing import Any, Literal

import yaml

from delta_transfer.errors import UserError, unknown


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
        for name, hint in typing.get_type_hints(TrainConfig).items():
            value = getattr(self, name)
            if not _fits(value, hint):
                raise UserError(f"{_flag(name)} must be {_words(hint)}, got {value!r}")
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value < float("inf"):
                raise UserError(f"{_flag(name)} must be at least {least}, got {value}")
        for name in ("lr", "head_lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{_flag(name)} must be above 0, got {value}")

    def save(self, path: Path) -> None:
        """Writes YAML that `train -c` takes."""
        path.write_text(yaml.safe_dump(dataclasses.asdict(self), sort_keys=False))

    @classmethod
    def load(cls, path: Path) -> "TrainConfig":
        """Reads what `save` wrote.

        Raises:
            UserError: if the file is missing, is no YAML mapping, has unknown keys or wrong values.
        """
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"{path} cannot be read as YAML: {error}") from error
        if not isinstance(values, dict) or "data" not in values:
            raise UserError(f"{path} must hold the options of a run, a line each, data among them")
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise UserError(f"{path}: {unknown('option', str(key), known)}")
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


def _fits(value: object, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, hint) or (isinstance(value, int) and isinstance(0.0, hint))


def _words(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(typing.get_args(hint))}"
    return hint.__name__ if isinstance(hint, type) else str(hint)
