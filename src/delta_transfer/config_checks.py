"""Whether the options of a training run are as they must be, and go together."""

import dataclasses
import typing
from typing import TYPE_CHECKING

from delta_transfer.errors import UserError, unknown
from delta_transfer.presets import PRESETS
from delta_transfer.utils.type_hints import fits, in_words

if TYPE_CHECKING:  # which checks itself by this
    from delta_transfer.config import TrainConfig

LOGGERS = ("csv", "tensorboard", "wandb", "mlflow", "trackio")
MAX_SEED = 2**64 - 1  # the largest one that torch takes

_AT_LEAST = {
    "strength": 0,
    "attention_samples": 1,
    "epochs": 1,
    "steps": 1,
    "patience": 1,
    "folds": 0,
    "batch_size": 1,
    "accumulate": 1,
    "clip": 0,
    "image_size": 16,
    "samples_per_class": 1,
    "seed": 0,
    "mixup": 0,
    "cutmix": 0,
    "devices": 1,
    "num_nodes": 1,
    "workers": 0,
    "picture_cache": 0,
    "checkpoint_steps": 1,
}

_ABOVE_ZERO = (
    "lr",
    "head_lr",
    "attention_temperature",
    "attention_clip",
    "attention_tolerance",
    "checkpoint_minutes",
)


def check(config: "TrainConfig") -> None:
    """Checks the options of a training run.

    Raises:
        UserError: if one is not as it must be, or two exclude each other.
    """
    _check_values(config)
    _check_ranges(config)
    _check_exclusions(config)
    _check_no_mixture(config)


def _check_values(config: "TrainConfig") -> None:
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not fits(value, hint):
            raise UserError(f"{_flag(name)} must be {in_words(hint)}, got {value!r}")
    for name, least in _AT_LEAST.items():
        value = getattr(config, name)
        if value not in (None, "auto") and not least <= value < float("inf"):
            raise UserError(f"{_flag(name)} must be at least {least}, got {value}")
    for name in _ABOVE_ZERO:
        value = getattr(config, name)
        if value not in (None, "find") and not 0 < value < float("inf"):
            raise UserError(f"{_flag(name)} must be above 0, got {value}")


def _check_ranges(config: "TrainConfig") -> None:
    if config.seed > MAX_SEED:
        raise UserError(f"--seed must be at most {MAX_SEED}, got {config.seed}")
    if not 0 < config.val_fraction < 1:
        raise UserError(
            f"--val-fraction {config.val_fraction:g}: must be above 0 and below 1, for example 0.15"
        )
    if not 0 <= config.label_smoothing < 1:
        raise UserError(
            f"--label-smoothing {config.label_smoothing:g}: must be at least 0 and below 1, for "
            "example 0.1"
        )
    for name in config.logger_names:
        if name not in LOGGERS:
            raise UserError(f"--loggers {config.loggers}: {unknown('logger', name, LOGGERS)}")
    if config.ema is not None and not 0 < config.ema < 1:
        raise UserError(
            f"--ema {config.ema:g}: must be above 0 and below 1, for example 0.99, an average "
            "over about 100 steps"
        )
    if not 0 < config.layer_decay <= 1:
        raise UserError(
            f"--layer-decay {config.layer_decay:g}: must be above 0 and at most 1, for example 0.75"
        )
    if config.accumulate > config.batch_size:
        raise UserError(
            f"--accumulate {config.accumulate}: must be at most {config.batch_size}, the pictures "
            "of a step (--batch-size)"
        )
    if config.folds == 1:
        raise UserError("--folds 1: give 2 or more, or 0 for none")


def _check_exclusions(config: "TrainConfig") -> None:
    if config.resume and config.overwrite:
        raise UserError(
            "--resume and --overwrite exclude each other: the one goes on with what is in the "
            "folder, the other deletes it"
        )
    if config.folds and config.refit == "never":
        raise UserError(
            "--folds and --refit never exclude each other: folds choose the epoch count that "
            "the model is then trained for on all pictures; leave one of them out"
        )
    if config.epochs is not None and config.steps is not None:
        raise UserError("--epochs and --steps exclude each other: give one of them")
    if config.samples_per_class is not None and (config.folds or config.refit == "always"):
        option = f"--folds {config.folds}" if config.folds else "--refit always"
        raise UserError(
            f"--samples-per-class and {option} exclude each other: the latter learns from "
            "validation pictures too, so that there would be more of a class; leave one out"
        )
    if config.patience is not None and (config.folds or config.official):
        option, why = (
            (f"--folds {config.folds}", "compares the same epochs of all folds")
            if config.folds
            else (f"--preset {config.preset}", "keeps the last epoch, whatever validation says")
        )
        raise UserError(
            f"--patience and {option} exclude each other: the latter {why}; leave one out"
        )


def _check_no_mixture(config: "TrainConfig") -> None:
    """Refuses a preset whose every option is another preset's: a whole configuration's."""
    options = {field.name for field in dataclasses.fields(config)}
    for name, preset in PRESETS.items():
        fields, own = dataclasses.fields(preset), PRESETS[config.preset]
        if preset.official == own.official:
            continue
        named = [field.name for field in fields if field.name in options]
        names = [n for n in named if getattr(preset, n) not in (None, getattr(own, n))]
        if names and all(getattr(config, n) == getattr(preset, n) for n in names):
            raise UserError(
                f"--preset {config.preset}, but all that it decides is as in preset {name}, as "
                f"from the config.yaml of a run: leave these options out ({', '.join(names)})"
            )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
