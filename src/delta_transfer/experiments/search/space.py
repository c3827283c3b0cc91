"""What a search tries: the options of train that it varies, and in which range."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from delta_transfer.attention import ESTIMATORS
from delta_transfer.config.search import (
    Range,
    SearchOptions,
    parse_number_or_range,
    parse_whole_numbers,
)
from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import UserError
from delta_transfer.methods.base import Method
from delta_transfer.methods.registry import METHODS, method_of

if TYPE_CHECKING:
    import optuna


# Methods whose penalty changes with the number of taps.
TAPPED = ("delta", "delta_no_attention", "ldifs")

_STRENGTH = 100.0  # times and by which the range goes beyond the method's own
_LR = 10.0
_PROBABILITIES = {"stochnorm": (0.1, 0.9)}  # ranges of strengths that are none of a penalty

AUTO = "strength_auto"  # whether there are two trainings, averaged; else there is a strength


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """What is searched; the order of these is that in which they are drawn.

    Args:
        config: the options that all trials share; of what is searched, those of the default.
        auto: whether strength auto, two trainings, is one of the values of strength.
        strength: range of it; None if it is not searched.
        lr: likewise.
        epochs: numbers of them; not searched if there is one or none.
        taps: likewise.
    """

    config: TrainConfig
    auto: bool = False
    strength: Range | None = None
    lr: Range | None = None
    epochs: tuple[int, ...] = ()
    taps: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The options that differ from trial to trial."""
        varied = {
            "strength": self.strength is not None,
            "lr": self.lr is not None,
            "epochs": len(self.epochs) > 1,
            "taps": len(self.taps) > 1,
        }
        return tuple(name for name, searched in varied.items() if searched)

    def suggest(self, trial: "optuna.Trial") -> None:
        """Draws all parameters of a trial."""
        if self.strength is not None and not (
            self.auto and trial.suggest_categorical(AUTO, [True, False])
        ):
            trial.suggest_float("strength", *self.strength, log=True)
        if self.lr is not None:
            trial.suggest_float("lr", *self.lr, log=True)
        if len(self.epochs) > 1:
            trial.suggest_categorical("epochs", list(self.epochs))
        if len(self.taps) > 1:
            trial.suggest_categorical("taps", list(self.taps))

    def options(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The options of train that parameters stand for."""
        averaged = {"strength": "auto"} if params.get(AUTO) else {}
        drawn = {**params, **averaged}
        found = {name: drawn[name] for name in self.names}
        for name in ("strength", "lr"):
            if isinstance(found.get(name), float):
                found[name] = float(f"{found[name]:.4g}")  # no more digits than one can read
        if "epochs" in found:
            found["steps"] = None  # of a preset that has no epochs
        return found

    def configure(self, params: Mapping[str, Any], **options: Any) -> TrainConfig:
        """The options of the run that parameters stand for, with some others replaced."""
        return dataclasses.replace(self.config, **self.options(params), **options)

    @property
    def default(self) -> dict[str, Any]:
        """The parameters of the default, or what is nearest to it in the ranges."""
        params: dict[str, Any] = {AUTO: True} if self.auto else {}
        if self.strength is not None and not self.auto:
            params["strength"] = _within(self.strength, _own_strength(self.config))
        if self.lr is not None:
            assert not isinstance(self.config.lr, str)
            params["lr"] = _within(self.lr, self.config.lr)
        if len(self.epochs) > 1:
            own = self.config.epochs or self.epochs[0]
            params["epochs"] = min(self.epochs, key=lambda count: abs(math.log(count / own)))
        if len(self.taps) > 1:
            params["taps"] = self.taps[0]
        return params

    def with_taps(self, auto: Sequence[str]) -> "Space":
        """With the choices of taps, now that those of auto are known."""
        if not self.taps:
            return self
        fewer = [",".join(auto[-count:]) for count in range(len(auto) - 1, 0, -1)]
        return dataclasses.replace(self, taps=("auto", *fewer))


def find_space(config: TrainConfig, asked: SearchOptions) -> Space:
    """What is to be searched.

    Args:
        config: the options of train, what `asked` has to say of them included.
        asked: what is asked for.

    Raises:
        UserError: if the method has nothing to search, or nothing is left of it.
    """
    method = method_of(config)
    if not method.trains_network:
        others = [other.name for other in METHODS.values() if other.trains_network]
        raise UserError(
            f"--method {method.name} has nothing to search, it trains nothing but the probe: take "
            f"one of {', '.join(others)}"
        )
    strength = _strength_range(config, method, asked)
    space = Space(
        config=config,
        auto=strength is not None and bool(method.candidates) and config.batch_norm == "frozen",
        strength=strength,
        lr=_lr_range(config, asked),
        epochs=_epochs(config, asked),
        taps=("auto",) if _searches_taps(config, method, asked) else (),
    )
    if not space.names and not space.taps:
        raise UserError(
            "there is nothing left to search: strength, lr, epochs and taps all are given (use "
            "train), or mean nothing for the method; leave one out, or give a range such as "
            "--lr 1e-4:1e-2"
        )
    return space


def train_options(asked: SearchOptions) -> dict[str, Any]:
    """The options of train that are not searched, and the defaults of those that are."""
    strength, lr = (
        parse_number_or_range("strength", asked.strength),
        parse_number_or_range("lr", asked.lr),
    )
    epochs = parse_whole_numbers("epochs", asked.epochs)
    return {
        "strength": "auto" if strength == "search" or isinstance(strength, tuple) else strength,
        "lr": None if lr == "search" or isinstance(lr, tuple) else lr,
        "taps": "auto" if asked.taps == "search" else asked.taps,
        "epochs": epochs[0] if isinstance(epochs, tuple) and len(epochs) == 1 else None,
    }


def _strength_range(config: TrainConfig, method: Method, asked: SearchOptions) -> Range | None:
    given = parse_number_or_range("strength", asked.strength)
    if isinstance(given, tuple):
        if method.strength is None:
            raise UserError(f"--strength {asked.strength}: method {method.name} has none")
        return given
    if given != "search" or method.strength is None:
        return None
    return _PROBABILITIES.get(method.name) or _around(_own_strength(config), _STRENGTH)


def _epochs(config: TrainConfig, asked: SearchOptions) -> tuple[int, ...]:
    given = parse_whole_numbers("epochs", asked.epochs)
    if isinstance(given, tuple):
        return given
    own = config.epochs
    return () if own is None else tuple(dict.fromkeys((max(1, own // 2), own, 2 * own)))


def _searches_taps(config: TrainConfig, method: Method, asked: SearchOptions) -> bool:
    """Not where a file of attention names them."""
    measured = not method.needs_attention or config.attention in ESTIMATORS
    return asked.taps == "search" and method.name in TAPPED and measured


def _own_strength(config: TrainConfig) -> float:
    strength = method_of(config).strength
    assert strength is not None
    return strength


def _lr_range(config: TrainConfig, asked: SearchOptions) -> Range | None:
    given = parse_number_or_range("lr", asked.lr)
    if given == "search":
        assert not isinstance(config.lr, str)
        return _around(config.lr, _LR)
    return given if isinstance(given, tuple) else None


def _around(value: float, factor: float) -> Range:
    return float(f"{value / factor:.6g}"), float(f"{value * factor:.6g}")


def _within(limits: Range, value: float) -> float:
    return min(max(value, limits[0]), limits[1])
