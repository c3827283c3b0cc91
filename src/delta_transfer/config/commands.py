"""The options of every command but train and search."""

import dataclasses
import re
import typing
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from delta_transfer.config.train import TrainOptions
from delta_transfer.errors import UserError

Device = Literal["auto", "cpu", "cuda", "mps"]
CommandOptions = TypeVar("CommandOptions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of evaluate.

    Args:
        run: folder of a finished run.
        data: labelled images or molecules: a folder or a CSV file as for train, or a named data
            set. Its test split counts, or all of it if it has none.
        out: folder for the figures, predictions and confusion matrix; RUN/evaluation/DATA if not
            given. An older evaluation in it is replaced.
        json: print JSON.
        data_root: where named data sets lie or are downloaded to; that of the run if not given.
        device: auto, cpu, cuda or mps.
        batch_size: images at a time.
        num_workers: processes that load images; chosen by the number of cores if not given.
    """

    run: str
    data: str
    out: str | None = None
    json: bool = False
    data_root: str | None = None
    device: Device = "auto"
    batch_size: int = 32
    num_workers: int | None = None

    def __post_init__(self) -> None:
        check_least("--batch-size", self.batch_size, 1)
        check_least("--num-workers", self.num_workers, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Options of predict.

    Args:
        run: folder of a finished run.
        paths: images, folders of images, and CSV files with a column path; or, of a run on
            molecules, SMILES and files of them (.csv, .smi, .txt).
        top: how many classes to print for each image; 1 if not given, in JSON all.
        csv: write the predictions, with all probabilities, to this file instead of printing them.
        overwrite: replace that file.
        json: print JSON.
        device: auto, cpu, cuda or mps.
        batch_size: images at a time.
        num_workers: processes that load images; chosen by the number of cores if not given.
    """

    run: str
    paths: tuple[str, ...]
    top: int | None = None
    csv: str | None = None
    overwrite: bool = False
    json: bool = False
    device: Device = "auto"
    batch_size: int = 32
    num_workers: int | None = None

    def __post_init__(self) -> None:
        check_least("--top", self.top, 1)
        check_least("--batch-size", self.batch_size, 1)
        check_least("--num-workers", self.num_workers, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of export.

    Args:
        run: folder of a finished run.
        format: onnx (for onnxruntime and others), torch (a program of torch.export) or safetensors
            (a folder that timm loads by local-dir:, where the network is one of timm's).
        out: folder for the network and its preprocessing; RUN/export/FORMAT if not given.
        overwrite: replace an older export in that folder.
    """

    run: str
    format: Literal["safetensors", "onnx", "torch"] = "onnx"
    out: str | None = None
    overwrite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class TapsOptions:
    """Options of layers.

    Args:
        model: a timm name such as resnet50, pypi/efficientnet_lite0|1|2, or a network for graphs
            such as pretrain-gnns/gin; weights are not loaded.
        image_size: side of the images in pixels; the network's own if not given.
        json: print JSON.
    """

    model: str
    image_size: int | None = None
    json: bool = False

    def __post_init__(self) -> None:
        check_least("--image-size", self.image_size, 16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoOptions:
    """No options."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of compare, in the place of some of train.

    Args:
        methods: names with commas between (see: delta-transfer methods).
        seeds: with commas between; each draws splits, subsets, batch order, augmentation and the
            head's start, the same for all methods.
        samples_per_class: training images of each class, drawn at random: numbers with commas
            between, a comparison each; "all" stands for all images, which are taken if not given.
        out: folder of the comparison; runs/compare-DATA-TIME if not given. One that was broken off
            goes on in its folder, and one that is there may be given more methods and seeds.
        overwrite: start anew, in the place of what is in that folder.
        jobs: runs at the same time; as many as there are GPUs, or as cores and memory allow, if not
            given.
        num_threads: of each run on the CPU, on which its last digits depend; a fair share of the
            cores if not given, and in a folder that is there those of before.
        ray: address of a Ray cluster that makes the runs: auto, HOST:PORT or ray://HOST:PORT, or
            local, which starts one here; all its nodes need the data and --out under the same path.
    """

    methods: str = "probe,l2,l2sp,delta"
    seeds: str = "0,1,2"
    samples_per_class: str | None = None
    out: str | None = None
    overwrite: bool = False
    jobs: int | None = None
    num_threads: int | None = None
    ray: str | None = None

    def __post_init__(self) -> None:
        check_least("--jobs", self.jobs, 1)
        check_least("--num-threads", self.num_threads, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of demo.

    Args:
        out: folder of the runs; runs/demo-TIME if not given.
        overwrite: replace what is in that folder.
        seeds: comma between; each draws other images.
        epochs: passes over the training images.
        device: auto, cpu, cuda or mps.
    """

    out: str | None = None
    overwrite: bool = False
    seeds: str = "0,1,2"
    epochs: int = 10
    device: Device = "auto"


def merge_with_train_options(command_options: type[Any], *, without: Sequence[str]) -> type[Any]:
    """A data class with options of a command and those of train.

    Args:
        command_options: the command's, which take the place of train's of the same name.
        without: those of train that the command does not have.
    """
    import docstring_parser

    found: dict[str, tuple[str, Any, Any]] = {}
    texts: dict[str, str] = {}
    for options in (command_options, TrainOptions):
        hints = typing.get_type_hints(options)
        told = docstring_parser.parse(options.__doc__ or "").params
        texts = {doc.arg_name: " ".join((doc.description or "").split()) for doc in told} | texts
        for field in dataclasses.fields(options):
            default = dataclasses.field(default=field.default)
            found.setdefault(field.name, (field.name, hints[field.name], default))
    names = [name for name in found if name not in without]
    text = "".join(f"    {name}: {texts[name]}\n" for name in names)
    return dataclasses.make_dataclass(
        command_options.__name__,
        [found[name] for name in names],
        namespace={"__doc__": f"Options.\n\nArgs:\n{text}"},
        frozen=True,
        kw_only=True,
    )


def split_options(
    parsed: Any, command_options: type[CommandOptions]
) -> tuple[CommandOptions, dict[str, Any]]:
    """Split what `merge_with_train_options` merged: a command's own options, and those of train.

    Args:
        parsed: options of that class.
        command_options: the command's.
    """
    values = dataclasses.asdict(parsed)
    names = [field.name for field in dataclasses.fields(command_options)]  # type: ignore[arg-type]
    return command_options(**{name: values.pop(name) for name in names}), values


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds that `--seeds` names.

    Raises:
        UserError: if something is no seed, or there twice.
    """
    try:
        seeds = tuple(int(seed) for seed in text.split(","))
    except ValueError as error:
        raise UserError(f"--seeds {text}: give whole numbers with commas between, 0,1,2") from error
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds {text}: each seed once, 0 or more")
    return seeds


def parse_samples_per_class(text: str | None) -> tuple[int | None, ...]:
    """The images of each class that `--samples-per-class` names; None stands for all.

    Raises:
        UserError: if something is no number of images, or there twice.
    """
    parts = ["all"] if text is None else [part.strip() for part in text.split(",")]
    if not all(part == "all" or (part.isdecimal() and int(part) > 0) for part in parts):
        raise UserError(
            f'--samples-per-class {text}: give numbers above 0 with commas between, 5,10,20; "all" '
            "stands for all images"
        )
    if len(set(parts)) < len(parts):
        raise UserError(f"--samples-per-class {text}: give each once")
    return tuple(None if part == "all" else int(part) for part in parts)


def check_least(flag: str, value: int | None, least: int) -> None:
    """Raises UserError where a number that was given is too small."""
    if value is not None and value < least:
        raise UserError(f"{flag} must be at least {least}, got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AppOptions:
    """Options of app.

    Args:
        run: folder of a finished run on images.
        host: address to listen at. Any other than this machine's own lets others in, and nobody is
            asked for a password.
        port: to listen at; 0 for one that is free.
        max_mb: MiB that may be uploaded at once.
        examples: training images that the nearest ones are looked for among, at most; 0 for none,
            which starts faster.
        data_root: where the run's named data set lies; that of the run if not given. Nothing is
            downloaded.
        device: auto, cpu, cuda or mps.
    """

    run: str
    host: str = "127.0.0.1"
    port: int = 7860
    max_mb: int = 64
    examples: int = 2000
    data_root: str | None = None
    device: Device = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port must be from 0 (any that is free) to 65535, got {self.port}")
        check_least("--max-mb", self.max_mb, 1)
        check_least("--examples", self.examples, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of bench.

    Args:
        name: of a recipe (see: delta-transfer bench --list), or a YAML file of your own.
        list: list the recipes, with DELTA's published figure and whether the data is there.
        dry_run: say what would be downloaded, how large it is and how long it would take; nothing
            is trained.
        methods: names with commas between, in the place of the recipe's.
        seeds: with commas between, in the place of the recipe's.
        samples_per_class: so many training images of each class, drawn at random; all if not
            given.
        data_root: where data sets, and weights that no library brings, lie or are downloaded to; a
            cache folder if not given.
        weights: start from the weights in this file.
        out: folder of the runs; runs/bench-NAME if not given. What was broken off goes on there.
        overwrite: start anew, in the place of what is in that folder.
        jobs: runs at the same time, as for compare.
        device: auto, cpu, cuda or mps.
        num_workers: processes that load images; chosen by the machine if not given.
    """

    name: str | None = None
    list: bool = False
    dry_run: bool = False
    methods: str | None = None
    seeds: str | None = None
    samples_per_class: int | None = None
    data_root: str | None = None
    weights: str | None = None
    out: str | None = None
    overwrite: bool = False
    jobs: int | None = None
    device: Device = "auto"
    num_workers: int | None = None

    def __post_init__(self) -> None:
        check_least("--samples-per-class", self.samples_per_class, 1)
        check_least("--jobs", self.jobs, 1)
        check_least("--num-workers", self.num_workers, 0)
        if self.list == (self.name is not None):
            raise UserError(
                "give the NAME of a recipe, delta-transfer bench NAME, or --list alone, which "
                "shows all"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Options of push.

    Args:
        run: folder of a finished run.
        repo: where it goes on the Hugging Face Hub, ORG/NAME, the first of which may be your own
            name there; it is made if it is not there, and gets one commit if it is.
        dry_run: write the folder and upload nothing; needs no token.
        out: folder of a dry run; RUN/hub if not given.
        overwrite: replace what an older dry run has left in that folder.
        license: of the model, by its name on the hub, for example apache-2.0 or cc-by-4.0; none is
            stated if not given.
        private: make a repository that only you, or the organisation, can see.
        data_name: what the data is called in the model card; the name of the data set, or of the
            folder or file without those that it lies in, if not given.
    """

    run: str
    repo: str
    dry_run: bool = False
    out: str | None = None
    overwrite: bool = False
    license: str | None = None
    private: bool = False
    data_name: str | None = None

    def __post_init__(self) -> None:
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            raise UserError(
                f"--license {self.license!r} is no name of a licence on the hub: these have small "
                "letters, digits, dots and hyphens; give one such as apache-2.0, mit or cc-by-4.0"
            )
        if self.data_name is not None and not self.data_name.strip():
            raise UserError("--data-name is empty: give a name, or leave the option out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """Options of pretrain.

    Args:
        data: molecules or graphs, whose labels are not used: a file of SMILES (.smi or .txt, one
            at the beginning of each line, or .csv, whose rows with test in a column split are left
            out), rdkit/nci (about 4,900 molecules that RDKit brings), or moleculenet/NAME or
            tu/NAME, whose test split is left out.
        out: folder for the weights; runs/pretrain-DATA-TIME if not given.
        overwrite: replace the pretraining in that folder.
        model: network for graphs, pretrain-gnns/gin|gcn|graphsage for molecules or
            pyg/GIN|GCN|GraphSAGE|GAT|PNA (pyg/GIN-3x128 for 3 layers of 128 features).
        weights: start from the weights in this file; from random ones if not given.
        objective: what is learnt. attribute-masking hides what some nodes are, to be told from
            their neighbours; context-prediction asks which surroundings belong to which node.
        mask_rate: share of the nodes of each graph that attribute-masking hides.
        epochs: passes over the graphs.
        batch_size: graphs at a time.
        lr: learning rate of Adam at the start; it falls to zero along a cosine.
        seed: of first weights, order, what is hidden, and the graphs held out to measure by; for
            moleculenet/NAME and tu/NAME of their splits too, as for train.
        split: how moleculenet/NAME is split: auto, scaffold or random, as for train.
        smiles_column: of a CSV file; smiles if not given.
        data_root: where named data sets lie or are downloaded to.
        device: auto, cpu, cuda or mps.
    """

    data: str
    out: str | None = None
    overwrite: bool = False
    model: str = "pretrain-gnns/gin"
    weights: str | None = None
    objective: Literal["attribute-masking", "context-prediction"] = "attribute-masking"
    mask_rate: float = 0.15
    epochs: int = 20
    batch_size: int = 256
    lr: float = 0.001
    seed: int = 0
    split: Literal["auto", "scaffold", "random"] = "auto"
    smiles_column: str | None = None
    data_root: str | None = None
    device: Device = "auto"

    def __post_init__(self) -> None:
        check_least("--epochs", self.epochs, 1)
        check_least("--batch-size", self.batch_size, 1)
        check_least("--seed", self.seed, 0)
        if not 0 < self.mask_rate < 1:
            raise UserError(
                f"--mask-rate must be above 0 and below 1, for example 0.15, got {self.mask_rate:g}"
            )
        if not 0 < self.lr <= 1:
            raise UserError(
                f"--lr must be above 0 and at most 1, for example 0.001, got {self.lr:g}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """Options of attention.

    Args:
        data: folder of images, CSV file or named data set, as for train.
        model: pretrained network, as for train.
        weights: the network's weights, from this file in place of the model's own.
        estimator: refined (a forward and backward pass, corrected by a few exact images; the
            default), gradient (the pass alone) or exact (each channel switched off, slow;
            official).
        out: file for train --attention, with an image beside it;
            runs/attention-DATA-TIME.safetensors if not given.
        overwrite: replace that file and its image.
        preset: default, or paper, the protocol of DELTA's authors.
        taps: modules whose channels are measured: auto, or names and glob patterns with commas
            between (see: delta-transfer taps MODEL).
        samples: training images that scores are averaged over, drawn at random; all if not given.
        tolerance: measure no more images once attention has converged: once its relative
            standard error is so small at every tap, for example 0.1. Refined measures all and says
            whether it has.
        temperature: of the softmax that makes attention of scores; larger is closer to uniform. 5
            if not given.
        score_clip: no score counts as more than so many standard deviations from the mean of its
            tap.
        clamp_negative_scores: a score below zero, of a channel without which the loss is lower,
            counts as zero.
        image_size: side of the images in pixels; the network's own if not given.
        samples_per_class: training images of each class, drawn at random; all if not given.
        seed: draws splits and images.
        val_fraction: share of the training images held out where there is no validation split.
        test_split: name of the test split's folder, or a fraction of the training images to
            hold out for a test.
        data_root: where named data sets lie or are downloaded to; a cache folder if not given.
        smiles_column: of a CSV file of molecules, the column of their SMILES.
        label_columns: of such a file, the columns to learn, with commas between; all others that
            hold numbers if not given.
        split: how molecules are split: auto, scaffold or random, as for train.
        batch_size: images at a time; 32 (official: 64) if not given.
        device: auto, cpu, cuda or mps.
        num_workers: processes that load images; chosen by the number of cores if not given.
        json: print JSON.
    """

    data: str
    model: str = "pypi/efficientnet_lite0"
    weights: str | None = None
    estimator: Literal["gradient", "refined", "exact"] | None = None
    out: str | None = None
    overwrite: bool = False
    preset: Literal["default", "paper"] = "default"
    taps: str = "auto"
    samples: int | None = None
    tolerance: float | None = None
    temperature: float | None = None
    score_clip: float | None = None
    clamp_negative_scores: bool = False
    image_size: int | None = None
    samples_per_class: int | None = None
    seed: int = 0
    val_fraction: float = 0.15
    test_split: str = "test"
    data_root: str | None = None
    smiles_column: str | None = None
    label_columns: str | None = None
    split: Literal["auto", "scaffold", "random"] = "auto"
    batch_size: int | None = None
    device: Device = "auto"
    num_workers: int | None = None
    json: bool = False

    def __post_init__(self) -> None:
        # TrainOptions, which checks the other options, knows these by other names.
        check_least("--samples", self.samples, 1)
        for name in ("tolerance", "temperature", "score_clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"--{name.replace('_', '-')} must be above 0, got {value}")
