"""Recipes: published rows of tables as options of a comparison, a YAML file each."""

import dataclasses
import importlib.resources
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.errors import UserError, unknown
from delta_transfer.metrics.metrics import METRICS
from delta_transfer.utils.files import read_yaml
from delta_transfer.utils.type_hints import describe_type, matches_type

Kind = TypeVar("Kind")

# What the command bench decides, or whoever calls it; and what no comparison has.
_EXCLUDED_OPTIONS = (
    *("method", "seed", "weights", "samples_per_class", "data_root"),
    *("out", "overwrite", "resume", "device"),
    *("devices", "num_nodes", "strategy"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedResult:
    """A figure of a published table.

    Args:
        value: as printed there: percent, or hundred times the area under the curve.
        std: standard deviation, where it is printed.
        unverified: it stands there by memory, and has not been read in the source.
    """

    value: float
    std: float | None = None
    unverified: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Download:
    """Something that a recipe needs.

    Args:
        name: it is.
        url: where it can be had now.
        manual: nothing downloads it.
        file: what torch's cache calls it if it is weights of a library; None of the data set.
        size_mb: how large it is; None where that is not known.
        note: what else to know, such as that the published link is dead.
    """

    name: str
    url: str
    manual: bool = False
    file: str | None = None
    size_mb: int | None = None
    note: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights to start from that no library brings.

    Args:
        file: what they are called below the folder of data sets.
        instructions: where they can be had, or how they are made.
    """

    file: str
    instructions: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published row: how it was made, as far as our options can say it, and its figures.

    Args:
        name: of the recipe.
        summary: the data, network and protocol in a line.
        reference: of the figures.
        split: of the data.
        metric: of the figures.
        num_train_samples: how many are learnt from.
        options: of `TrainConfig`.
        methods: that are compared.
        seeds: of each of them.
        downloads: the data set and, if a library brings weights, these.
        published: the figures by method, ours by their names and others by theirs.
        differences: what is not as it was published, a sentence each.
        weights: to start from; None for those of the network's library.
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
        """The options of a run, with those that the recipe leaves to the command.

        Raises:
            UserError: if one of them is wrong.
        """
        return TrainOptions(**{**self.options, **more}).resolve()


def definitions_folder() -> Path:
    """Where the recipes are: in the installed package, or beside the sources."""
    packaged = Path(str(importlib.resources.files("delta_transfer"))) / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[4] / "recipes"


def list_benchmarks() -> list[Benchmark]:
    """All recipes that come with the package, by name.

    Raises:
        UserError: if one of them is not as it must be.
    """
    return [read_benchmark(file) for file in sorted(definitions_folder().glob("*.yaml"))]


def find_benchmark(name: str) -> Benchmark:
    """The recipe of a name, or in a file of the user's own.

    Raises:
        UserError: if there is none, or it is not as it must be.
    """
    if name.endswith((".yaml", ".yml")):
        return read_benchmark(Path(name).expanduser())
    names = [file.stem for file in sorted(definitions_folder().glob("*.yaml"))]
    if name not in names:
        raise UserError(
            f"{unknown('recipe', name, names)}; delta-transfer bench --list shows all; or give a "
            "YAML file of your own"
        )
    return read_benchmark(definitions_folder() / f"{name}.yaml")


def read_benchmark(file: Path) -> Benchmark:
    """The recipe in a file.

    Raises:
        UserError: if the file cannot be read, has a key that there is not, lacks one, or holds
            options that are wrong.
    """
    values = read_yaml(file, wanted="a recipe (see: delta-transfer bench --list)")
    recipe = _build(Benchmark, values, where=str(file))
    if recipe.metric not in METRICS:
        raise UserError(f"{file}: metric: {unknown('metric', recipe.metric, list(METRICS))}")
    allowed = [
        field.name
        for field in dataclasses.fields(TrainConfig)
        if field.name not in _EXCLUDED_OPTIONS
    ]
    for name in recipe.options:
        if name not in allowed:
            raise UserError(f"{file}: options: {unknown('option', name, allowed)}")
    if "data" not in recipe.options:
        raise UserError(f"{file}: options: data is missing, the name of the data set")
    try:
        recipe.config()
    except UserError as error:
        raise UserError(f"{file}: options: {error}") from error
    return recipe


def _build(kind: type[Kind], values: object, *, where: str) -> Kind:
    """A data class from what YAML has made of it; its keys and their values are checked."""
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    needed = [field.name for field in fields if field.default is dataclasses.MISSING]
    if not isinstance(values, dict):
        raise UserError(f"{where} must hold the keys {', '.join(needed)}")
    for key in values:
        if key not in hints:
            raise UserError(f"{where}: {unknown('key', str(key), list(hints))}")
    for key in needed:
        if key not in values:
            raise UserError(f"{where}: {key} is missing; needed are {', '.join(needed)}")
    return kind(
        **{name: _read(hints[name], value, f"{where}: {name}") for name, value in values.items()}
    )


def _read(hint: Any, value: Any, where: str) -> Any:
    """A value of a key as its type has it."""
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
    raise UserError(f"{where} must be {describe_type(hint)}, got {value!r}")
