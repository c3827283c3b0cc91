"""The Optuna study of a search: the next trial, and the outcomes."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from delta_transfer.errors import ConfigError, EnvironmentError
from delta_transfer.experiments.search.folder import STORAGE, Outcome
from delta_transfer.experiments.search.space import Space
from delta_transfer.utils.seeds import derive_seed

NAME = "delta-transfer"
NUMBER = "trial"  # user attribute: the number of a trial here, which an interruption preserves

_FINGERPRINT = "fingerprint"
_FOR_IMPORTANCES = 8  # least number of complete trials


class Study:
    """An Optuna study in a database, used by one process at a time.

    The next trial is a function of the seed and the results so far, even after interruptions. An
    interrupted trial is marked as failed in Optuna, and queued again with the same parameters and
    the same number here.

    Args:
        storage: address of the database; None for the file in the folder.
        folder: of the search.
        space: the search space.
        seed: of the sampler.
        fingerprint: of the images, their splits and the pretrained weights.
        new: delete an older search of that folder from the database.

    Raises:
        ConfigError: if the database cannot be used, or its trials used other images.
    """

    def __init__(
        self,
        storage: str | None,
        folder: Path,
        space: Space,
        *,
        seed: int,
        fingerprint: str,
        new: bool,
    ) -> None:
        self._optuna = import_optuna()
        self._states = self._optuna.trial.TrialState
        self._space = space
        self._seed = seed
        self._running: dict[int, Any] = {}
        address = storage or f"sqlite:///{(folder / STORAGE).absolute()}"
        name = NAME if storage is None else f"{NAME} {folder.absolute()}"
        with _explained(storage, folder):
            database = _open(address)
            if new and storage is not None:
                with contextlib.suppress(KeyError):  # there is none
                    self._optuna.delete_study(storage=database, study_name=name)
            self._study = self._optuna.create_study(
                storage=database, study_name=name, load_if_exists=True
            )
            known = self._study.user_attrs.get(_FINGERPRINT)
            if known is None:
                self._study.set_user_attr(_FINGERPRINT, fingerprint)
        if known not in (None, fingerprint):
            raise ConfigError(
                f"`out={folder}` holds a search on other images, splits or pretrained weights of "
                "the same names: use another `out`, or `overwrite` to start from scratch"
            )
        self._queue()

    def _queue(self) -> None:
        """Queue interrupted trials, or the default in a new study."""
        for trial in self._study.get_trials(states=(self._states.RUNNING,)):
            self._study.tell(trial.number, state=self._states.FAIL)
        for trial in self._trials().values():
            if trial.state == self._states.FAIL:
                again = self._optuna.create_trial(
                    state=self._states.WAITING,
                    params=trial.params,
                    distributions=trial.distributions,
                    user_attrs=trial.user_attrs,
                )
                self._study.add_trial(again)
        if not self._trials() and not self.waits:
            self._study.enqueue_trial(self._space.default)

    def _trials(self) -> dict[int, Any]:
        """Return the latest trial of each number, without incompletely drawn ones."""
        found = self._study.get_trials(deepcopy=False)
        return {one.user_attrs[NUMBER]: one for one in found if NUMBER in one.user_attrs}

    @property
    def params(self) -> dict[int, dict[str, Any]]:
        """The parameters of all started trials, by number."""
        return {number: dict(trial.params) for number, trial in self._trials().items()}

    @property
    def waits(self) -> bool:
        """True if the default, or an interrupted trial, is queued."""
        return bool(self._study.get_trials(deepcopy=False, states=(self._states.WAITING,)))

    def ask(self) -> tuple[int, dict[str, Any]]:
        """Return the number and the parameters of the next trial. The first is the default."""
        new = len(self._trials())
        seed = derive_seed(self._seed, "search", new) % 2**32
        self._study.sampler = self._optuna.samplers.TPESampler(seed=seed)
        trial = self._study.ask()
        self._space.suggest(trial)
        number = trial.user_attrs.get(NUMBER, new)
        trial.set_user_attr(NUMBER, number)  # last, as it marks the trial as completely drawn
        self._running[number] = trial
        return number, trial.params

    def tell(self, number: int, outcome: Outcome) -> None:
        """Tell Optuna the outcome of a trial; failed trials count as pruned."""
        trial = self._running.pop(number)
        for share, loss in outcome.losses.items():
            trial.report(loss, share)
        if outcome.state == "complete":
            self._study.tell(trial, outcome.loss)
        else:
            self._study.tell(trial, state=self._states.PRUNED)

    def importances(self) -> dict[str, float]:
        """Return the fraction of the loss variance that each option explains; {} for few trials."""
        complete = self._study.get_trials(deepcopy=False, states=(self._states.COMPLETE,))
        if len(complete) < _FOR_IMPORTANCES:
            return {}
        with warnings.catch_warnings(), contextlib.suppress(ValueError, RuntimeError):
            warnings.simplefilter("ignore")  # if all losses are equal
            return dict(self._optuna.importance.get_param_importances(self._study))
        return {}


def import_optuna() -> Any:
    """Import Optuna.

    Raises:
        EnvironmentError: if it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise EnvironmentError(
            "search requires the package optuna: pip install 'delta-transfer[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def check_storage(storage: str | None) -> None:
    """Check that Optuna is installed and can open a database; None is the file in the folder.

    Raises:
        UserError: if not.
    """
    import_optuna()
    if storage is not None:
        with _explained(storage, Path()):
            _open(storage)


def _open(address: str) -> Any:
    """Return a database that closes its connection after each access."""
    from sqlalchemy.pool import NullPool

    return import_optuna().storages.RDBStorage(address, engine_kwargs={"poolclass": NullPool})


@contextlib.contextmanager
def _explained(storage: str | None, folder: Path) -> Iterator[None]:
    """Convert errors of the database to a message."""
    import sqlalchemy.exc

    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{folder / STORAGE} is not the database of a search ({text}): use another `out`, or "
            "`overwrite` to start from scratch"
            if storage is None
            else f"`storage={storage}`: Optuna cannot open this database ({text}): use an address "
            "such as sqlite:///search.db, or leave it out"
        ) from error
