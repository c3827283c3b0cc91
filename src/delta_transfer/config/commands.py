"""The options of every command but train and search."""

import dataclasses
import re
import typing
from collections.abc import Container
from typing import Annotated, Any, Literal, TypeVar

from delta_transfer.config.train import (
    Count,
    CountOrZero,
    Fraction,
    Pixels,
    Positive,
    Seed,
    TrainOptions,
    check_values,
)
from delta_transfer.errors import ConfigError
from delta_transfer.utils.type_hints import Bounds

Device = Literal["auto", "cpu", "cuda", "mps"]
CommandOptions = TypeVar("CommandOptions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Checked:
    """Options whose types and ranges are checked."""

    def __post_init__(self) -> None:
        check_values(self)
        self._check_further()

    def _check_further(self) -> None:
        """Check what types and ranges do not say."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(_Checked):
    """Options of evaluate.

    Args:
        run: folder of a finished run.
        data: labelled images or molecules: a folder or CSV file as for train, or a named data set,
            of which the test split is used if there is one, else all of it.
        out: output folder for metrics, predictions and confusion matrix (default
            RUN/evaluation/DATA); an older evaluation in it is replaced.
        json: print JSON.
        data_root: folder of named data sets, which are downloaded to it (default the run's).
        device: auto (default), cpu, cuda or mps.
        batch_size: images per batch (default 32).
        num_workers: number of processes that load images (default chosen by the number of cores).
    """

    run: str
    data: str
    out: str | None = None
    json: bool = False
    data_root: str | None = None
    device: Device = "auto"
    batch_size: Count = 32
    num_workers: CountOrZero | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions(_Checked):
    """Options of predict.

    Args:
        run: folder of a finished run.
        paths: images, folders of images and CSV files with a column path; for a run on molecules
            SMILES and files of SMILES (.csv, .smi, .txt).
        top: number of classes to print per image (default 1, in JSON all).
        csv: write predictions with all probabilities to this file instead of printing them.
        overwrite: replace an existing file.
        json: print JSON.
        device: auto (default), cpu, cuda or mps.
        batch_size: images per batch (default 32).
        num_workers: number of processes that load images (default chosen by the number of cores).
    """

    run: str
    paths: tuple[str, ...]
    top: Count | None = None
    csv: str | None = None
    overwrite: bool = False
    json: bool = False
    device: Device = "auto"
    batch_size: Count = 32
    num_workers: CountOrZero | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(_Checked):
    """Options of export.

    Args:
        run: folder of a finished run.
        format: onnx (default; for onnxruntime and others), torch (a torch.export program) or
            safetensors (a folder that timm loads as local-dir:FOLDER, for timm networks).
        out: output folder for the network and its preprocessing (default RUN/export/FORMAT).
        overwrite: replace an older export in that folder.
    """

    run: str
    format: Literal["safetensors", "onnx", "torch"] = "onnx"
    out: str | None = None
    overwrite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class TapsOptions(_Checked):
    """Options of taps.

    Args:
        model: a timm name such as resnet50, pypi/efficientnet_lite0|1|2, or a graph network such as
            pretrain-gnns/gin; its weights are not loaded.
        image_size: image side in pixels, at least 16 (default the network's own).
        json: print JSON.
    """

    model: str
    image_size: Pixels | None = None
    json: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoOptions:
    """No options."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions(_Checked):
    """Options of compare that replace some of train.

    Args:
        methods: comma-separated methods (default probe,l2,l2sp,delta; list: delta-transfer
            methods).
        seeds: comma-separated seeds; each determines splits, subsets, batch order, augmentation and
            head initialization, the same for all methods.
        samples_per_class: comma-separated numbers of random training images per class, one
            comparison each; "all" is all images (default).
        out: output folder (default runs/compare-DATA-TIME). An existing comparison in it is
            resumed; you can add methods and seeds.
        overwrite: delete the folder's contents and start over.
        jobs: number of parallel runs (default the number of GPUs, or what cores and memory allow).
        num_threads: CPU threads of each run, on which the last digits of results depend (default a
            fair share of the cores, or as before in an existing folder).
        ray: address of a Ray cluster that executes the runs: auto, HOST:PORT, ray://HOST:PORT, or
            local to start one here; every node needs the data and --out at the same path.
    """

    methods: str = "probe,l2,l2sp,delta"
    seeds: str = "0,1,2"
    samples_per_class: str | None = None
    out: str | None = None
    overwrite: bool = False
    jobs: Count | None = None
    num_threads: Count | None = None
    ray: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoOptions(_Checked):
    """Options of demo.

    Args:
        out: output folder (default runs/demo-TIME).
        overwrite: replace the contents of that folder.
        seeds: comma-separated seeds; each draws other images.
        epochs: number of epochs (default 10).
        device: auto (default), cpu, cuda or mps.
    """

    out: str | None = None
    overwrite: bool = False
    seeds: str = "0,1,2"
    epochs: Count = 10
    device: Device = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AppOptions(_Checked):
    """Options of app.

    Args:
        run: folder of a finished run on images.
        host: address to listen on (default 127.0.0.1, this machine only). With any other address
            everybody who can reach it has access: there is no password.
        port: port to listen on (default 7860); 0 for any free port.
        max_mb: maximum upload size in MiB (default 64).
        examples: maximum number of training images to search for nearest neighbours (default 2000);
            0 disables the search, which starts faster.
        data_root: folder of the run's named data set (default the run's); nothing is downloaded.
        device: auto (default), cpu, cuda or mps.
    """

    run: str
    host: str = "127.0.0.1"
    port: Annotated[int, Bounds(at_least=0, at_most=65535)] = 7860
    max_mb: Count = 64
    examples: CountOrZero = 2000
    data_root: str | None = None
    device: Device = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchOptions(_Checked):
    """Options of bench.

    Args:
        name: a benchmark (see: delta-transfer bench --list), or a YAML file of your own.
        list: list the benchmarks, with DELTA's published result and whether the data is available.
        dry_run: show the downloads, their size and the expected time; train nothing.
        methods: comma-separated methods (default the benchmark's).
        seeds: comma-separated seeds (default the benchmark's).
        samples_per_class: number of random training images per class (default all).
        data_root: folder of data sets, and of weights that no library provides, which are
            downloaded to it (default a cache folder).
        weights: file of pretrained weights.
        out: output folder (default runs/bench-NAME); interrupted runs in it are resumed.
        overwrite: delete the folder's contents and start over.
        jobs: number of parallel runs, as for compare.
        device: auto (default), cpu, cuda or mps.
        num_workers: number of processes that load images (default chosen by the number of cores).
    """

    name: str | None = None
    list: bool = False
    dry_run: bool = False
    methods: str | None = None
    seeds: str | None = None
    samples_per_class: Count | None = None
    data_root: str | None = None
    weights: str | None = None
    out: str | None = None
    overwrite: bool = False
    jobs: Count | None = None
    device: Device = "auto"
    num_workers: CountOrZero | None = None

    def _check_further(self) -> None:
        if self.list == (self.name is not None):
            raise ConfigError("pass the NAME of a benchmark, or `list` to show all")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PushOptions(_Checked):
    """Options of push.

    Args:
        run: folder of a finished run.
        repo: repository on the Hugging Face Hub, ORG/NAME or USER/NAME; it is created, or gets one
            commit if it exists.
        dry_run: write the folder and upload nothing; needs no token.
        out: output folder of a dry run (default RUN/hub).
        overwrite: replace an older dry run in that folder.
        license: license of the model by its name on the Hub, for example apache-2.0 or cc-by-4.0
            (default none stated).
        private: create a private repository.
        data_name: name of the data in the model card (default the name of the data set, folder or
            file, without its path).
    """

    run: str
    repo: str
    dry_run: bool = False
    out: str | None = None
    overwrite: bool = False
    license: str | None = None
    private: bool = False
    data_name: str | None = None

    def _check_further(self) -> None:
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            raise ConfigError(
                f"`license={self.license}` is not a license of the Hub: use a name such as "
                "apache-2.0, mit or cc-by-4.0"
            )
        if self.data_name is not None and not self.data_name.strip():
            raise ConfigError("`data_name` is empty: pass a name, or leave the option out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainOptions(_Checked):
    """Options of pretrain.

    Args:
        data: molecules or graphs, whose labels are ignored: a file of SMILES (.smi or .txt, one at
            the beginning of each line, or .csv), rdkit/nci (about 4,900 molecules bundled with
            RDKit), moleculenet/NAME or tu/NAME. Their test split, and rows of a CSV file with test
            in the column split, are left out.
        out: output folder for the weights (default runs/pretrain-DATA-TIME).
        overwrite: replace the pretraining in that folder.
        model: graph network: pretrain-gnns/gin|gcn|graphsage for molecules, or
            pyg/GIN|GCN|GraphSAGE|GAT|PNA (pyg/GIN-3x128 has 3 layers of 128 features).
        weights: start from the weights in this file (default random weights).
        objective: attribute-masking (default; predicts masked node attributes from the
            neighbourhood) or context-prediction (predicts which surroundings belong to which node).
        mask_rate: fraction of the nodes that attribute-masking masks (default 0.15).
        epochs: number of epochs (default 20).
        batch_size: graphs per step (default 256).
        lr: peak learning rate of Adam (default 0.001); follows a cosine to zero.
        seed: seed of weights, batch order, masks and held-out graphs, and of the splits of
            moleculenet/NAME and tu/NAME.
        split: split of moleculenet/NAME: auto, scaffold or random, as for train.
        smiles_column: column of SMILES in a CSV file (default smiles).
        data_root: folder of named data sets, which are downloaded to it (default a cache folder).
        device: auto (default), cpu, cuda or mps.
    """

    data: str
    out: str | None = None
    overwrite: bool = False
    model: str = "pretrain-gnns/gin"
    weights: str | None = None
    objective: Literal["attribute-masking", "context-prediction"] = "attribute-masking"
    mask_rate: Fraction = 0.15
    epochs: Count = 20
    batch_size: Count = 256
    lr: Annotated[float, Bounds(above=0, at_most=1)] = 0.001
    seed: Seed = 0
    split: Literal["auto", "scaffold", "random"] = "auto"
    smiles_column: str | None = None
    data_root: str | None = None
    device: Device = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionOptions(_Checked):
    """Options of attention that are not options of train, or have another name there.

    Args:
        estimator: refined (default; one forward and backward pass, corrected on a few images),
            gradient (without the correction) or exact (ablates every channel; slow; default of
            preset paper).
        out: output file for train --attention (default runs/attention-DATA-TIME.safetensors); a
            figure is written next to it.
        overwrite: replace an existing file and its figure.
        preset: default, or paper (the protocol of DELTA's authors).
        samples: number of random training images (default all).
        tolerance: stop (gradient, exact) when the relative standard error is below this at every
            tap, for example 0.1; refined only reports whether it is.
        temperature: softmax temperature (default 5); larger is more uniform.
        json: print JSON.
    """

    estimator: Literal["gradient", "refined", "exact"] | None = None
    out: str | None = None
    overwrite: bool = False
    preset: Literal["default", "paper"] = "default"
    samples: Count | None = None
    tolerance: Positive | None = None
    temperature: Positive | None = None
    json: bool = False

    SHARED: typing.ClassVar = (
        *("data", "model", "weights", "taps", "score_clip", "clamp_negative_scores"),
        *("image_size", "samples_per_class", "seed", "val_fraction", "test_split", "data_root"),
        *("smiles_column", "label_columns", "split", "batch_size", "device", "num_workers"),
    )
    """The options of train that attention has too."""


def merge_with_train_options(
    command_options: type[Any], *, without: Container[str] = (), only: Container[str] | None = None
) -> type[Any]:
    """Return a data class with the options of a command and of train.

    Args:
        command_options: the command's options, which replace train's of the same name.
        without: names of train options to leave out.
        only: names of the train options to include (default all).
    """
    import docstring_parser

    found: dict[str, tuple[str, Any, Any]] = {}
    texts: dict[str, str] = {}
    for options in (command_options, TrainOptions):
        hints = typing.get_type_hints(options, include_extras=True)
        docs = docstring_parser.parse(options.__doc__ or "").params
        texts = {doc.arg_name: " ".join((doc.description or "").split()) for doc in docs} | texts
        for field in dataclasses.fields(options):
            if options is command_options or (
                field.name not in without and (only is None or field.name in only)
            ):
                default = dataclasses.field(default=field.default)
                found.setdefault(field.name, (field.name, hints[field.name], default))
    text = "".join(f"    {name}: {texts[name]}\n" for name in found)
    return dataclasses.make_dataclass(
        command_options.__name__,
        list(found.values()),
        namespace={"__doc__": f"Options.\n\nArgs:\n{text}"},
        frozen=True,
        kw_only=True,
    )


def split_options(
    parsed: Any, command_options: type[CommandOptions]
) -> tuple[CommandOptions, dict[str, Any]]:
    """Split what `merge_with_train_options` merged: a command's own options, and those of train.

    Args:
        parsed: options of the merged class.
        command_options: the class of the command's options.
    """
    values = dataclasses.asdict(parsed)
    names = [field.name for field in dataclasses.fields(command_options)]  # type: ignore[arg-type]
    return command_options(**{name: values.pop(name) for name in names}), values


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds in a comma-separated text.

    Raises:
        ConfigError: if one is not a whole number of at least 0, or is repeated.
    """
    try:
        seeds = tuple(int(seed) for seed in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"`seeds={text}` must be whole numbers separated by commas, such as 0,1,2"
        ) from error
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError(f"`seeds={text}`: list each seed once, 0 or more")
    return seeds


def parse_samples_per_class(text: str | None) -> tuple[int | None, ...]:
    """Return the numbers of images in a comma-separated text; None is all images.

    Raises:
        ConfigError: if one is not a whole number above 0 or "all", or is repeated.
    """
    parts = ["all"] if text is None else [part.strip() for part in text.split(",")]
    if not all(part == "all" or (part.isdecimal() and int(part) > 0) for part in parts):
        raise ConfigError(
            f"`samples_per_class={text}` must be whole numbers above 0 or all, separated by "
            "commas, such as 5,10,all"
        )
    if len(set(parts)) < len(parts):
        raise ConfigError(f"`samples_per_class={text}`: list each number once")
    return tuple(None if part == "all" else int(part) for part in parts)
