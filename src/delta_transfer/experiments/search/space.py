"""The search space: the options of train that a search varies, and their ranges."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from delta_transfer.attention import ESTIMATORS
from delta_transfer.config.presets import find_preset
from delta_transfer.config.search import (
    VARIED,
    Range,
    SearchOptions,
    parse_number_or_range,
    parse_whole_numbers,
)
from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import ConfigError
from delta_transfer.methods.registry import METHODS, method_of

if TYPE_CHECKING:
    import optuna


# Methods whose penalty depends on the taps.
TAPPED = ("delta", "delta_attention", "ldifs")

_STRENGTH = 100.0  # factor from the method's own strength to either end of the range
_LR = 10.0
_PROBABILITIES = {"stochnorm": (0.1, 0.9)}  # ranges of strengths that are probabilities

AUTO = "strength_auto"  # two trainings, averaged, instead of a fixed strength


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """A search space, whose parameters are drawn in the order of these fields.

    Args:
        config: the options that all trials share, and the default values of the searched ones.
        auto: True if strength auto, two trainings, is one of the values of strength.
        strength: its range; None if it is not searched.
        lr: its range; None if it is not searched.
        epochs: numbers of epochs; not searched if there is one or none, and None if they depend on
            the number of samples.
        taps: lists of names, comma-separated; not searched if there is one or none.
    """

    config: TrainConfig
    auto: bool = False
    strength: Range | None = None
    lr: Range | None = None
    epochs: tuple[int, ...] | None = ()
    taps: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The options that differ from trial to trial."""
        epochs = self.epochs is None or self.epochs[1:]
        values = (self.strength, self.lr, epochs, self.taps[1:])
        return tuple(name for name, some in zip(VARIED, values, strict=True) if some)

    def suggest(self, trial: "optuna.Trial") -> None:
        """Draw all parameters of a trial."""
        for name in self.names:
            values = getattr(self, name)
            if name in ("epochs", "taps"):
                trial.suggest_categorical(name, list(values))
            elif name == "lr" or not (self.auto and trial.suggest_categorical(AUTO, [True, False])):
                trial.suggest_float(name, *values, log=True)

    def options(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of train for some parameters."""
        drawn = {**params, "strength": "auto"} if params.get(AUTO) else params
        found = {name: drawn[name] for name in self.names}
        for name, value in found.items():
            if isinstance(value, float):
                found[name] = float(f"{value:.4g}")  # readable
        if "epochs" in found:
            found["steps"] = None  # a preset may set steps instead of epochs
        return found

    def configure(self, params: Mapping[str, Any], **options: Any) -> TrainConfig:
        """Return the options of the run for some parameters, with other options replaced."""
        return dataclasses.replace(self.config, **self.options(params), **options)

    @property
    def default(self) -> dict[str, Any]:
        """The parameters of the default, clipped to the ranges."""
        config = self.config
        epochs = self.epochs or ()
        count = config.epochs or next(iter(epochs), 1)
        own = {
            "strength": self.strength
            and _within(self.strength, method_of(config).default_strength),
            "lr": self.lr and _within(self.lr, config.lr),
            "epochs": min(epochs, key=lambda n: abs(math.log(n / count)), default=None),
            "taps": next(iter(self.taps), None),
        }
        auto = self.auto and find_preset(config.preset).strength == "auto"
        drawn = {name: own[name] for name in self.names if name != "strength" or not auto}
        return {AUTO: auto, **drawn} if self.auto else drawn

    def with_data(self, *, taps: Sequence[str], epochs: int) -> "Space":
        """Return the space with the choices that depend on data and network.

        Args:
            taps: those of auto.
            epochs: the default number of epochs on the data.
        """
        space = self
        if self.taps:
            fewer = [",".join(taps[-count:]) for count in range(len(taps) - 1, 0, -1)]
            space = dataclasses.replace(space, taps=("auto", *fewer))
        if self.config.epochs is None and self.config.steps is None:
            config = dataclasses.replace(self.config, epochs=epochs)
            space = dataclasses.replace(space, config=config)
        if self.epochs is None:
            space = dataclasses.replace(space, epochs=_around_epochs(epochs))
        return space


def find_space(config: TrainConfig, asked: SearchOptions) -> Space:
    """Return the search space.

    Args:
        config: the options of train, with those of `train_options(asked)`.
        asked: the options of search.

    Raises:
        ConfigError: if there is nothing to search.
    """
    method = method_of(config)
    if not method.trains_network:
        others = [other.name for other in METHODS.values() if other.trains_network]
        raise ConfigError(
            f"`method={method.name}` has nothing to search, because it only trains the probe: use "
            f"one of {', '.join(others)}"
        )
    strength = parse_number_or_range("strength", asked.strength)
    if method.strength_option is None and isinstance(strength, tuple):
        raise ConfigError(f"`strength={asked.strength}`: method {method.name} has no strength")
    if strength == "search" and method.default_strength is not None:
        around = _around(method.default_strength, _STRENGTH)
        strength = _PROBABILITIES.get(method.name, around)
    lr, epochs = parse_number_or_range("lr", asked.lr), parse_whole_numbers("epochs", asked.epochs)
    if lr == "search":
        lr = _around(config.lr, _LR)
    counts: tuple[int, ...] | None
    if epochs != "search":
        counts = epochs
    elif config.epochs is not None:
        counts = _around_epochs(config.epochs)
    else:
        counts = None if config.steps is None else ()
    # An attention file fixes the taps.
    estimated = not method.needs_attention or config.attention_source in ESTIMATORS
    taps = asked.taps == "search" and method.name in TAPPED and estimated
    space = Space(
        config=config,
        strength=strength if isinstance(strength, tuple) else None,
        lr=lr if isinstance(lr, tuple) else None,
        epochs=counts,
        taps=("auto",) if taps else (),
    )
    if space.strength and method.candidates:
        space = dataclasses.replace(space, auto=True)
    if not space.names and not space.taps:
        raise ConfigError(
            "there is nothing left to search: strength, lr, epochs and taps are all fixed, or not "
            "used by the method; leave one out, or use a range such as `lr=1e-4:1e-2`"
        )
    return space


def train_options(asked: SearchOptions) -> dict[str, Any]:
    """Return the fixed options of train, and the defaults of the searched ones."""
    strength, lr = (
        parse_number_or_range("strength", asked.strength),
        parse_number_or_range("lr", asked.lr),
    )
    epochs = parse_whole_numbers("epochs", asked.epochs)
    return {
        "strength": "auto" if strength == "search" or isinstance(strength, tuple) else strength,
        "lr": None if lr == "search" or isinstance(lr, tuple) else lr,
        "taps": "auto" if asked.taps == "search" else asked.taps,
        "epochs": epochs[0] if epochs != "search" and len(epochs) == 1 else None,
    }


def _around_epochs(count: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys((max(1, count // 2), count, 2 * count)))


def _around(value: Any, factor: float) -> Range:
    return float(f"{value / factor:.6g}"), float(f"{value * factor:.6g}")


def _within(limits: Range, value: Any) -> Any:
    return min(max(value, limits[0]), limits[1])
