"""The options of a training run: as they are given, and resolved; and their YAML file."""

import dataclasses
import math
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from delta_transfer.config.presets import GRAPH_MODEL_PREFIXES, PRESETS, find_preset
from delta_transfer.errors import ConfigError, UserError, unknown
from delta_transfer.utils.files import read_yaml
from delta_transfer.utils.type_hints import Bounds, convert, describe_type, matches_type

LOGGERS = ("csv", "tensorboard", "wandb", "mlflow", "trackio")
MIN_EPOCHS, MAX_EPOCHS = 10, 30
MIN_STEPS, MAX_STEPS = 60, 1000
"""The default length of a training: `MAX_EPOCHS`, shortened and lengthened to these limits."""

MAX_SEED = 2**64 - 1  # the largest one that torch accepts

OPTION_GROUPS = {
    "data": (
        *("data_root", "samples_per_class", "val_fraction", "test_split", "folds"),
        *("smiles_column", "label_columns", "split", "class_weights"),
        *("image_size", "augment", "mixup", "cutmix", "image_cache_gb", "shifted"),
    ),
    "network and method": (
        *("model", "weights", "method", "strength", "head_init", "average", "taps"),
        *("batch_norm", "preset"),
        *("attention", "attention_samples", "attention_temperature", "attention_tolerance"),
        *("estimator", "samples", "temperature", "tolerance"),
        *("score_clip", "clamp_negative_scores"),
    ),
    "training": (
        *("epochs", "steps", "batch_size", "gradient_accumulation_steps", "precision"),
        *("lr", "head_lr", "optimizer", "schedule", "grad_clip", "ema", "layer_decay"),
        "label_smoothing",
    ),
    "machine": (
        *("device", "devices", "num_nodes", "strategy", "num_workers", "num_threads", "jobs"),
        *("ray", "deterministic", "checkpoint_minutes", "checkpoint_steps"),
    ),
}
"""Heading in `--help` -> the options below it; all others come first."""

Count = Annotated[int, Bounds(at_least=1)]
CountOrZero = Annotated[int, Bounds(at_least=0)]
Positive = Annotated[float, Bounds(above=0)]
NonNegative = Annotated[float, Bounds(at_least=0)]
Fraction = Annotated[float, Bounds(above=0, below=1)]
Pixels = Annotated[int, Bounds(at_least=16)]
Seed = Annotated[int, Bounds(at_least=0, at_most=MAX_SEED)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TrainFields:
    """The fields of `TrainOptions` and `TrainConfig`; None is "not given" or "no limit"."""

    data: str
    model: str = "pypi/efficientnet_lite0"
    weights: str | None = None
    out: str | None = None
    overwrite: bool = False
    resume: bool = False
    preset: Literal["default", "graphs", "paper"] | None = None
    method: str | None = None
    strength: NonNegative | Literal["auto"] | None = None
    head_init: Literal["auto", "probe", "random"] = "auto"
    average: Literal["all", "none"] = "all"
    taps: str = "auto"
    attention: str = "auto"
    attention_samples: Count | None = None
    attention_temperature: Positive | None = None
    score_clip: Positive | None = None
    clamp_negative_scores: bool = False
    attention_tolerance: Positive | None = None
    batch_norm: Literal["frozen", "train"] | None = None
    class_weights: Literal["none", "balanced", "sampler", "auto"] = "none"
    label_smoothing: Annotated[float, Bounds(at_least=0, below=1)] = 0.0
    epochs: Count | None = None
    steps: Count | None = None
    batch_size: Count | None = None
    gradient_accumulation_steps: Count = 1
    precision: Literal["32", "bf16", "16", "auto"] = "32"
    lr: Positive | Literal["find"] | None = None
    head_lr: Positive | None = None
    optimizer: Literal["adamw", "sgd"] | None = None
    schedule: Literal["cosine", "step", "constant"] | None = None
    augment: Literal["default", "none", "randaugment", "trivialaugment"] = "default"
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    grad_clip: NonNegative | None = None
    ema: Fraction | None = None
    layer_decay: Annotated[float, Bounds(above=0, at_most=1)] = 1.0
    image_size: Pixels | None = None
    samples_per_class: Count | None = None
    seed: Seed = 0
    val_fraction: Fraction = 0.15
    test_split: str = "test"
    folds: CountOrZero | Literal["auto"] = "auto"
    data_root: str | None = None
    smiles_column: str | None = None
    label_columns: str | None = None
    split: Literal["auto", "scaffold", "random"] = "auto"
    shifted: str | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: Count | Literal["auto"] = 1
    num_nodes: Count = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    num_workers: CountOrZero | None = None
    image_cache_gb: NonNegative | None = None
    deterministic: bool = False
    checkpoint_minutes: Positive = 1.0
    checkpoint_steps: Count | None = None
    loggers: str = "csv,tensorboard"

    def __post_init__(self) -> None:
        check_values(self)
        for name in self.logger_names:
            if name not in LOGGERS:
                raise ConfigError(f"`loggers={self.loggers}`: {unknown('logger', name, LOGGERS)}")

    @property
    def logger_names(self) -> tuple[str, ...]:
        """The names in `loggers`."""
        return tuple(name.strip() for name in self.loggers.split(","))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(_TrainFields):
    """Options of a training run as they are given; what is left out is decided by `resolve`.

    Args:
        data: folder of images (root/{train,val,test}/CLASS/* or root/CLASS/*); CSV file with
            columns path, label and optionally split, or of molecules (see --smiles-column); or a
            named data set: torchvision/NAME, hf/NAME, skimage/patches, sklearn/digits,
            moleculenet/NAME, tu/NAME, or one to download by hand: cub200, stanford_dogs, mit67,
            caltech256/30, caltech256/60.
        model: pretrained network: a timm name such as resnet50.a1_in1k, torchvision/resnet50,
            hf-hub:ORG/NAME, local-dir:FOLDER, pypi/efficientnet_lite0|1|2 (no download), or for
            graphs pretrain-gnns/NAME or pyg/NAME.
        weights: file of weights to use instead of the model's own (safetensors or a PyTorch state
            dict).
        out: output folder of the run (default runs/DATA-METHOD-TIME).
        overwrite: replace an existing run in the output folder.
        resume: resume the interrupted run in the output folder; start one if there is none.
        preset: default (small image data sets), graphs (longer training with a higher learning
            rate; the default for graph networks) or paper (the protocol of DELTA's authors, see
            docs/methods/delta.md).
        method: fine-tuning method, for example probe, l2, l2sp, delta (default) or delta_attention
            (default of preset paper; list: delta-transfer methods).
        strength: factor of the method's penalty. For l2, lp_ft and rifle it is the weight decay,
            for stochnorm a probability, for spd the projection factor (default the method's own).
            auto (default of preset graphs): delta and l2sp train with a large and a small one and
            average the weights, or use what is better on held-out images (see docs/selection.md).
        head_init: initialization of the head: probe (the linear probe), random, or auto (default;
            random for l2, rifle, bss, stochnorm, co_tuning and preset paper, else probe).
        average: all (default) averages the weights of the networks of all folds and strengths and
            of a training on all images; none keeps the training on all images alone.
        taps: modules whose features are compared: auto (default), or comma-separated names and glob
            patterns (list: delta-transfer taps MODEL).
        attention: channel attention of DELTA: none (default of delta), refined (default of
            delta_attention; one forward and backward pass, corrected on a few images), gradient
            (without the correction), exact (ablates every channel; slow; default of preset paper),
            or the attention.safetensors of another run. auto (default) is that of the method.
        attention_samples: number of random training images to estimate attention on (default all).
        attention_temperature: softmax temperature (default 5, or that of an attention file); larger
            is more uniform.
        score_clip: clip standardised scores to ± this many standard deviations (default no limit,
            or that of an attention file).
        clamp_negative_scores: set negative scores to zero; they belong to channels that increase
            the loss.
        attention_tolerance: stop the estimation (gradient, exact) when the relative standard error
            is below this at every tap, for example 0.2; refined only reports whether it is.
        batch_norm: frozen (default) keeps the pretrained batch-norm statistics, train updates them
            (default of preset paper; always used by stochnorm).
        class_weights: for imbalanced classes: balanced weights the loss by inverse class frequency;
            sampler draws every class equally often; auto is balanced if the largest class has at
            least 3 times as many training images as the smallest; none (default).
        label_smoothing: probability spread evenly over all classes in the targets, at least 0 and
            below 1 (default 0).
        epochs: number of epochs (default: 30, at most 1000 steps, but at least 10 epochs and 60
            steps; preset graphs 15).
        steps: number of training steps instead of epochs, rounded up to whole epochs (preset paper
            9000).
        batch_size: maximum images per step (default 32; preset paper 64); batches of an epoch are
            of about equal size.
        gradient_accumulation_steps: split each batch into this many micro-batches to save memory
            (default 1); results stay the same (see docs/training.md). Doubled when memory runs out.
        precision: 32 (default), bf16 or 16 (faster on GPUs; weights and penalties stay in 32 bits),
            or auto, the fastest that the device supports.
        lr: peak learning rate (default 0.001; preset paper 0.01). find runs a short
            learning rate range test first (see docs/training.md).
        head_lr: peak learning rate of the head (default lr if the head starts as the linear probe,
            else 10 lr; preset paper lr).
        optimizer: adamw (default), or sgd with momentum 0.9 (default of preset paper).
        schedule: learning rate after a warm-up over 15% of the steps (preset paper none): cosine
            (default, to zero), step (times 0.1 at 67%; default of preset paper) or constant.
        augment: augmentation of training images: default (random crop and horizontal flip), none,
            or randaugment or trivialaugment in addition to the default.
        mixup: alpha of mixup; 0 (default) disables it. With cutmix, each step uses one of the two
            at random.
        cutmix: alpha of CutMix; 0 (default) disables it.
        grad_clip: maximum gradient norm (default 1; preset paper 0, no limit).
        ema: decay of an exponential moving average of the weights, which is then validated and
            saved, for example 0.99 (default none).
        layer_decay: factor of the learning rate per layer below the head, for example 0.75 (default
            1, the same for all layers).
        image_size: image side in pixels, at least 16 (default the network's own).
        samples_per_class: number of random training images per class (default all).
        seed: seed of splits, subsets, batch order, augmentation and head initialization.
        val_fraction: fraction of the training images held out if there is no validation split.
        test_split: name of the test split's folder, or a fraction of the training images to hold
            out for testing.
        folds: number of cross-validation folds: each image is held out once, and the networks of
            all folds are averaged. auto (default) is 3 below 1000 training images, unless the data
            has a validation split; 0 holds out one validation split. Molecules with the same
            scaffold stay in one fold if they are split by scaffold.
        data_root: folder of named data sets, which are downloaded to it (default a cache folder).
        smiles_column: column of SMILES in a CSV file of molecules.
        label_columns: comma-separated target columns of that file: 0 or 1 for binary targets, or
            numbers (default all other numeric columns).
        split: split of molecules: scaffold (no two splits share a ring system), random, or auto
            (default; the standard split of a named data set, scaffold for a file).
        shifted: second folder of images of the same classes from another source (FOLDER/CLASS/* or
            FOLDER/test/CLASS/*), on which the final model and the linear probe are tested too.
        device: auto (default), cpu, cuda or mps.
        devices: number of processes on this machine, each with its own GPU or, on the CPU, its
            share of the cores (default 1); auto is all GPUs. The batch is divided among them (see
            docs/scaling.md).
        num_nodes: number of machines; start the command on each with torchrun or SLURM.
        strategy: ddp (default) keeps all of the trained network in every process; fsdp shards
            weights, gradients and optimiser state, which takes less memory and more communication
            (see docs/scaling.md).
        num_workers: number of processes that load images (default chosen by the number of cores).
        image_cache_gb: maximum size of the resized-image cache in GiB; 0 disables it (default 20,
            at most a fifth of the free disk space).
        deterministic: make GPU runs bit-reproducible (slower); CPU runs always are.
        checkpoint_minutes: save a checkpoint at least every N minutes (default 1). Ctrl-C and
            SIGTERM also save one.
        checkpoint_steps: also save a checkpoint every N training steps.
        loggers: comma-separated: csv (always on), tensorboard, wandb, mlflow, trackio; each of the
            last three needs the extra of its name.
    """

    def resolve(self) -> "TrainConfig":
        """Return the options with the defaults of the model and the preset filled in.

        Raises:
            ConfigError: if two options exclude each other.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.preset is None:
            for_graphs = self.model.startswith(GRAPH_MODEL_PREFIXES)
            values["preset"] = "graphs" if for_graphs else "default"
        defaults = dataclasses.asdict(find_preset(values["preset"]))
        if self.epochs is not None or self.steps is not None:
            del defaults["epochs"], defaults["steps"]
        for name, default in defaults.items():
            if name in values and values[name] is None:
                values[name] = default
        return TrainConfig(**values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(_TrainFields):
    """Resolved options of a training run, as `config.yaml` stores them.

    `TrainOptions` documents the fields; those that a preset decides always have a value here, but
    for `epochs` and `steps`, of which at most one has.
    """

    preset: Literal["default", "graphs", "paper"] = dataclasses.field()
    method: str = dataclasses.field()
    batch_norm: Literal["frozen", "train"] = dataclasses.field()
    batch_size: Count = dataclasses.field()
    lr: Positive | Literal["find"] = dataclasses.field()
    optimizer: Literal["adamw", "sgd"] = dataclasses.field()
    schedule: Literal["cosine", "step", "constant"] = dataclasses.field()
    grad_clip: NonNegative = dataclasses.field()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_exclusions(self)
        _check_preset_conflict(self)

    def resolve(self) -> "TrainConfig":
        """Return the options unchanged."""
        return self

    @property
    def paper_protocol(self) -> bool:
        """Whether the run follows the protocol of DELTA's authors."""
        return find_preset(self.preset).paper_protocol

    @property
    def attention_source(self) -> str:
        """The estimator or the file of channel attention, for methods that have it."""
        given = self.attention
        return find_preset(self.preset).attention_estimator if given == "auto" else given

    @property
    def micro_batch_size(self) -> int:
        """The number of images in a forward pass."""
        return math.ceil(self.batch_size / self.gradient_accumulation_steps)

    def count_epochs(self, num_samples: int) -> int:
        """Return the number of epochs on that many training images."""
        if self.epochs is not None:
            return self.epochs
        steps_per_epoch = math.ceil(num_samples / self.batch_size)
        if self.steps is not None:
            return math.ceil(self.steps / steps_per_epoch)
        # Few images need many epochs, or nothing moves; many images need few.
        most = max(MIN_EPOCHS, min(MAX_EPOCHS, math.ceil(MAX_STEPS / steps_per_epoch)))
        return max(most, math.ceil(MIN_STEPS / steps_per_epoch))

    def to_yaml(self) -> str:
        """Return the options as YAML, without `overwrite` and `resume`."""
        values = dataclasses.asdict(self)
        # `train -c` with the file of a run must not replace or resume that run.
        del values["overwrite"], values["resume"]
        return yaml.safe_dump(values, sort_keys=False)

    @classmethod
    def load(cls, path: Path) -> "TrainConfig":
        """Read a file that `to_yaml` wrote, or any YAML file of options.

        Raises:
            ConfigError: if the file is missing, is not a YAML mapping, or has unknown keys or wrong
                values.
        """
        wanted = "options, one per line, with data among them"
        content = read_yaml(path, wanted=wanted)
        try:
            if "data" not in content:
                raise ConfigError(f"data is missing; the file must have {wanted}")
            return TrainOptions(**convert_values(content, TrainOptions)).resolve()
        except UserError as error:
            raise ConfigError(f"{path}: {error}") from error


def convert_values(content: dict[Any, Any], options: type[Any]) -> dict[str, Any]:
    """Return the content of a YAML file of options, each converted to the type of its field.

    Raises:
        ConfigError: if a key is unknown or a value is not of the type.
    """
    hints = typing.get_type_hints(options, include_extras=True)
    values = {}
    for key, value in content.items():
        if key not in hints:
            raise unknown("option", str(key), list(hints))
        try:
            values[key] = convert(value, hints[key])
        except ValueError as error:
            raise ConfigError(f"`{key}` {error}, got {value!r}") from error
    return values


def check_values(options: Any) -> None:
    """Check the type and range of every field of a data class of options.

    Raises:
        ConfigError: if one does not match its annotation.
    """
    hints = typing.get_type_hints(type(options), include_extras=True)
    for field in dataclasses.fields(options):
        value, hint = getattr(options, field.name), hints[field.name]
        if not matches_type(value, hint):
            raise ConfigError(f"`{field.name}` must be {describe_type(hint)}, got {value!r}")


def _check_exclusions(config: TrainConfig) -> None:
    if config.gradient_accumulation_steps > config.batch_size:
        raise ConfigError(
            f"`gradient_accumulation_steps={config.gradient_accumulation_steps}` must be at most "
            f"`batch_size={config.batch_size}`"
        )
    if config.folds == 1:
        raise ConfigError("`folds` must be 0 (none) or at least 2, got 1")
    exclusive = [
        (
            config.resume and config.overwrite,
            ("`resume`", "`overwrite`"),
            "one continues the existing run, the other deletes it",
        ),
        (
            config.epochs is not None and config.steps is not None,
            ("`epochs`", "`steps`"),
            "use one of them",
        ),
    ]
    for both, (first, second), why in exclusive:
        if both:
            raise ConfigError(f"{first} and {second} exclude each other: {why}; leave one out")


def _check_preset_conflict(config: TrainConfig) -> None:
    """Refuse a preset if every option it decides has another preset's value.

    That is so for `train -c RUN/config.yaml --preset OTHER`, which would change nothing but what
    cannot be given as an option.
    """
    options = {field.name for field in dataclasses.fields(config)}
    own = PRESETS[config.preset]
    for name, preset in PRESETS.items():
        if preset.paper_protocol == own.paper_protocol:
            continue
        named = [field.name for field in dataclasses.fields(preset) if field.name in options]
        names = [n for n in named if getattr(preset, n) not in (None, getattr(own, n))]
        if names and all(getattr(config, n) == getattr(preset, n) for n in names):
            raise ConfigError(
                f"`preset={config.preset}` with all the values of preset {name}: leave these "
                f"options out ({', '.join(names)})"
            )
