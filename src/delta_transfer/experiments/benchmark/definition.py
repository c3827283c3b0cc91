"""Benchmarks: published results with the options of a comparison, one YAML file each."""

import dataclasses
import importlib.resources
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.errors import ConfigError, UserError, unknown
from delta_transfer.metrics.metrics import METRICS
from delta_transfer.utils.files import read_yaml
from delta_transfer.utils.type_hints import describe_type, matches_type

Kind = TypeVar("Kind")

# Options that the command bench sets, and those that a comparison does not have.
_EXCLUDED_OPTIONS = (
    *("method", "seed", "weights", "samples_per_class", "data_root"),
    *("out", "overwrite", "resume", "device"),
    *("devices", "num_nodes", "strategy"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedResult:
    """A published result.

    Args:
        value: as printed: percent, or 100 times the area under the curve.
        std: standard deviation, if printed.
        unverified: quoted from memory, not verified in the reference.
    """

    value: float
    std: float | None = None
    unverified: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Download:
    """A required file or data set.

    Args:
        name: of the download.
        url: its current location.
        manual: True if the user has to download it.
        file: its name in torch's cache if it is weights of a library; None for the data set.
        size_mb: its size; None if unknown.
        note: a remark, such as that the published link is dead.
    """

    name: str
    url: str
    manual: bool = False
    file: str | None = None
    size_mb: int | None = None
    note: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Pretrained weights that no library provides.

    Args:
        file: their path in the folder of data sets.
        instructions: how to get or make them.
    """

    file: str
    instructions: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published experiment: its options and its results.

    Args:
        name: of the benchmark.
        summary: the data, network and protocol in a line.
        reference: source of the published results.
        split: of the data.
        metric: of the published results.
        num_train_samples: size of the training set.
        options: of `TrainOptions`.
        methods: to compare.
        seeds: of each method.
        downloads: the data set and, if a library provides weights, these.
        published: results by method, including methods that we do not have.
        differences: from the publication, a sentence each.
        weights: pretrained weights; None for those of the network's library.
    """

    name: str
    summary: str
    reference: str
    split: str
    metric: str
    num_train_samples: int
    options: dict[str, Any]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    downloads: tuple[Download, ...]
    published: dict[str, PublishedResult]
    differences: tuple[str, ...] = ()
    weights: Weights | None = None

    def config(self, **more: Any) -> TrainConfig:
        """Return the options of a run, with those that the command sets.

        Raises:
            UserError: if one of them is wrong.
        """
        return TrainOptions(**{**self.options, **more}).resolve()


def definitions_folder() -> Path:
    """Return the folder of the benchmarks: in the installed package, or beside the sources."""
    packaged = Path(str(importlib.resources.files("delta_transfer"))) / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[4] / "recipes"


def list_benchmarks() -> list[Benchmark]:
    """Read all benchmarks of the package, sorted by name.

    Raises:
        UserError: if one is invalid.
    """
    return [read_benchmark(file) for file in sorted(definitions_folder().glob("*.yaml"))]


def find_benchmark(name: str) -> Benchmark:
    """Find a benchmark by name, or read it from the user's own file.

    Raises:
        UserError: if there is none, or it is invalid.
    """
    if name.endswith((".yaml", ".yml")):
        return read_benchmark(Path(name).expanduser())
    names = [file.stem for file in sorted(definitions_folder().glob("*.yaml"))]
    if name not in names:
        raise ConfigError(
            f"{unknown('benchmark', name, names)}; delta-transfer bench --list shows all; or use "
            "your own YAML file"
        )
    return read_benchmark(definitions_folder() / f"{name}.yaml")


def read_benchmark(file: Path) -> Benchmark:
    """Read a benchmark from a file.

    Raises:
        UserError: if the file cannot be read, has an unknown key, lacks one, or has invalid
            options.
    """
    values = read_yaml(file, wanted="a benchmark (see: delta-transfer bench --list)")
    benchmark = _build(Benchmark, values, where=str(file))
    if benchmark.metric not in METRICS:
        raise ConfigError(f"{file}: metric: {unknown('metric', benchmark.metric, list(METRICS))}")
    allowed = [
        field.name
        for field in dataclasses.fields(TrainConfig)
        if field.name not in _EXCLUDED_OPTIONS
    ]
    for name in benchmark.options:
        if name not in allowed:
            raise ConfigError(f"{file}: options: {unknown('option', name, allowed)}")
    if "data" not in benchmark.options:
        raise ConfigError(f"{file}: options: data is missing, the name of the data set")
    try:
        benchmark.config()
    except UserError as error:
        raise ConfigError(f"{file}: options: {error}") from error
    return benchmark


def _build(kind: type[Kind], values: object, *, where: str) -> Kind:
    """Build a data class from parsed YAML, and check its keys and values."""
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    needed = [field.name for field in fields if field.default is dataclasses.MISSING]
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must have the keys {', '.join(needed)}")
    for key in values:
        if key not in hints:
            raise ConfigError(f"{where}: {unknown('key', str(key), list(hints))}")
    for key in needed:
        if key not in values:
            raise ConfigError(f"{where}: {key} is missing; required are {', '.join(needed)}")
    return kind(
        **{name: _read(hints[name], value, f"{where}: {name}") for name, value in values.items()}
    )


def _read(hint: Any, value: Any, where: str) -> Any:
    """Convert a parsed value to its type."""
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    if value is None and type(None) in typing.get_args(hint):
        return None
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_read(parts[0], one, where) for one in value)
    if typing.get_origin(hint) is dict and isinstance(value, Mapping):
        return {str(key): _read(parts[1], one, f"{where}: {key}") for key, one in value.items()}
    if hint is Any:
        return value
    if type(None) in typing.get_args(hint):
        return _read(parts[0], value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, where=where)
    if hint in (str, int, float, bool) and matches_type(value, hint):
        return hint(value)
    raise ConfigError(f"{where} must be {describe_type(hint)}, got {value!r}")
