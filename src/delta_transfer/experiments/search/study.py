"""Optuna's study of a search: what is tried next, and what has come of it."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from delta_transfer.errors import UserError
from delta_transfer.experiments.search.folder import STORAGE, Outcome
from delta_transfer.experiments.search.space import Space
from delta_transfer.utils.seeds import derive_seed

NAME = "delta-transfer"
_IDENTITY = "identity"

_TOLD = 8  # trials of which importances tell something


def import_optuna() -> Any:
    """The library, which is loaded when it is asked for.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "search needs the package optuna: pip install 'delta-transfer[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Study:
    """The trials in a database; one process at a time asks and tells.

    What is tried next is a function of the seed and of what has come of the trials before, however
    often the search was broken off.

    Args:
        storage: address of the database; None for the file in the folder.
        folder: of the search.
        space: what is searched.
        seed: draws what is tried.
        identity: of the images, their splits and the pretrained weights.
        new: forget a search of before in that database.

    Raises:
        UserError: if there is no such database, or its trials are of other images.
    """

    def __init__(
        self,
        storage: str | None,
        folder: Path,
        space: Space,
        *,
        seed: int,
        identity: str,
        new: bool,
    ) -> None:
        self._optuna = import_optuna()
        self._space = space
        self._seed = seed
        own = f"sqlite:///{(folder / STORAGE).absolute()}"
        name = NAME if storage is None else f"{NAME} {folder.absolute()}"
        with _explained(storage, folder):
            if new and storage is not None:
                with contextlib.suppress(KeyError):  # there is none
                    self._optuna.delete_study(storage=_open(storage), study_name=name)
            self._study = self._optuna.create_study(
                storage=_open(storage or own), study_name=name, load_if_exists=True
            )
            known = self._study.user_attrs.get(_IDENTITY)
            if known is None:
                self._study.set_user_attr(_IDENTITY, identity)
        if known not in (None, identity):
            raise UserError(
                f"--out {folder} holds a search on other images, splits or pretrained weights, "
                "though their names are the same: give another --out, or --overwrite to start anew"
            )

    @property
    def params(self) -> dict[int, dict[str, Any]]:
        """The parameters of all trials that have begun, by their numbers."""
        return {trial.number: dict(trial.params) for trial in self._begun()}

    def begun(self) -> list[tuple[int, dict[str, Any]]]:
        """The trials that have begun and of which nothing was told, as they are left of a kill."""
        states = self._optuna.trial.TrialState
        return [self._draw(trial) for trial in self._begun() if trial.state == states.RUNNING]

    def ask(self) -> tuple[int, dict[str, Any]]:
        """What is tried next: a number and parameters. The first is the default."""
        count = len(self._begun())
        if not self._study.get_trials(deepcopy=False):
            self._study.enqueue_trial(self._space.default)
        self._seed_sampler(count)
        trial = self._study.ask()
        self._space.suggest(trial)
        return trial.number, trial.params

    def tell(self, number: int, outcome: Outcome) -> None:
        """What has come of a trial; one that has failed is as bad as one that was pruned."""
        pruned = self._optuna.trial.TrialState.PRUNED
        trial = self._trial(self._study.get_trials(deepcopy=False)[number])
        reported = self._study.get_trials(deepcopy=False)[number].intermediate_values
        for share, loss in outcome.losses.items():
            if share not in reported:
                trial.report(loss, share)
        if outcome.state == "complete":
            self._study.tell(number, outcome.loss)
        else:
            self._study.tell(number, state=pruned)

    def importances(self) -> dict[str, float]:
        """How much of what varied in the loss each option accounts for; empty of few trials."""
        complete = self._optuna.trial.TrialState.COMPLETE
        if len(self._study.get_trials(deepcopy=False, states=(complete,))) < _TOLD:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of losses that are all alike
            try:
                found: Mapping[str, float] = self._optuna.importance.get_param_importances(
                    self._study
                )
            except (ValueError, RuntimeError):
                return {}
        return dict(found)

    def _begun(self) -> list[Any]:
        waiting = self._optuna.trial.TrialState.WAITING
        return [t for t in self._study.get_trials(deepcopy=False) if t.state != waiting]

    def _draw(self, found: Any) -> tuple[int, dict[str, Any]]:
        """A trial that has begun, with what was not drawn yet when it was broken off."""
        self._seed_sampler(found.number)
        trial = self._trial(found)
        self._space.suggest(trial)
        return trial.number, trial.params

    def _trial(self, found: Any) -> Any:
        return self._optuna.Trial(self._study, found._trial_id)

    def _seed_sampler(self, number: int) -> None:
        seed = derive_seed(self._seed, "search", number) % 2**32
        self._study.sampler = self._optuna.samplers.TPESampler(seed=seed)


def check_storage(storage: str | None) -> None:
    """Checks that there is Optuna, and that it has access to a database.

    Args:
        storage: its address; None for a file of our own.

    Raises:
        UserError: if not.
    """
    import_optuna()
    if storage is not None:
        with _explained(storage, Path()):
            _open(storage)


def _open(storage: str) -> Any:
    """A database that is closed after each access, so that nobody has to in the end."""
    from sqlalchemy.pool import NullPool

    optuna = import_optuna()
    return optuna.storages.RDBStorage(storage, engine_kwargs={"poolclass": NullPool})


@contextlib.contextmanager
def _explained(storage: str | None, folder: Path) -> Iterator[None]:
    """Inside, what is wrong with the database is said in a message."""
    import sqlalchemy.exc

    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        if storage is None:
            raise UserError(
                f"{folder / STORAGE} is no database of a search ({said}): give another --out, or "
                "--overwrite to start anew"
            ) from error
        raise UserError(
            f"--storage {storage}: Optuna has no access to such a database ({said}): give an "
            "address such as sqlite:///search.db, or leave it out"
        ) from error
