"""Execute runs one after another, reusing prepared data among runs of the same seed and size."""

import contextlib
import dataclasses
import functools
import logging
import pickle
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from delta_transfer.config.train import TrainConfig
from delta_transfer.data.task import TaskData
from delta_transfer.errors import EnvironmentError, UserError
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.runs.attention import load_given_attention
from delta_transfer.runs.plan import run_fingerprint
from delta_transfer.runs.preparation.folds import count_fit_samples
from delta_transfer.runs.preparation.prepare import prepare
from delta_transfer.runs.preparation.prepared import RunSetup
from delta_transfer.runs.run import train_prepared
from delta_transfer.runs.validation import check_data
from delta_transfer.utils.diagnostics import explain

Group = tuple[int, int | None]
"""Seed and training set size: all runs of a group train on the same images."""

Work = Callable[[RunSetup, TrainConfig, float], RunResult | None]
"""A function of prepared data, options and `time.perf_counter()` at the start.

It must be importable by name, so that other processes can find it.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """The outcome of a request to a worker.

    Args:
        description: of the data and the network, line by line.
        taps: the prepared taps.
        epochs: number of epochs of a training with these options on the data.
        fingerprint: of the images, their splits and the pretrained weights.
        result: of the run; None if it failed, was only prepared, or its work returns None.
        failure: the reason of a failure.
    """

    description: tuple[str, ...] = ()
    taps: tuple[str, ...] = ()
    epochs: int = 0
    fingerprint: str = ""
    result: RunResult | None = None
    failure: str = ""


class Runner:
    """Executes runs, and keeps the prepared data until a run of another group follows.

    Args:
        methods: all methods of the comparison, which are checked when data is prepared.
    """

    def __init__(self, methods: Sequence[str]) -> None:
        self._methods = methods
        self._group: Group | None = None
        self._prepared: RunSetup | None = None
        self._seconds = 0.0

    def make(self, config: TrainConfig, work: Work | None) -> Reply:
        """Prepare a run, and execute it if there is work.

        Raises:
            UserError: if the data, the network or the attention cannot be used, which affects all
                methods. The failure of a single run is part of the reply.
        """
        with _silent():
            prepared = self._prepare(config)
            reply = Reply(description=prepared.description)
            if work is None:
                samples = count_fit_samples(config, prepared.task)
                return dataclasses.replace(
                    reply,
                    taps=prepared.taps,
                    epochs=config.count_epochs(samples),
                    fingerprint=run_fingerprint(prepared),
                )
            try:
                result = work(prepared, config, time.perf_counter() - self._seconds)
            except (UserError, MemoryError, torch.OutOfMemoryError) as error:
                explanation = None if isinstance(error, UserError) else explain(error)
                return dataclasses.replace(reply, failure=explanation or str(error))
            return dataclasses.replace(reply, result=result)

    def _prepare(self, config: TrainConfig) -> RunSetup:
        if self._prepared is None or self._group != group_of(config):
            self._prepared = None  # two at once may not fit in memory
            started = time.perf_counter()
            each = [dataclasses.replace(config, method=method) for method in self._methods]

            def check(task: TaskData) -> None:
                for own in each:
                    check_data(own, task)

            prepared = prepare(config, check=check)
            for own in each:
                load_given_attention(prepared, own)
            self._group, self._prepared = group_of(config), prepared
            self._seconds = time.perf_counter() - started
        return self._prepared


def make_run(prepared: RunSetup, config: TrainConfig, started: float) -> RunResult:
    """Execute a complete run: the work of a comparison."""
    return train_prepared(prepared, config, Path(config.out or ""), started=started)


def group_of(config: TrainConfig) -> Group:
    """Return the group of a run."""
    return config.seed, config.samples_per_class


def reply_to(
    methods: tuple[str, ...], threads: int, config: TrainConfig, work: Work | None
) -> Reply | Exception:
    """Execute a run in a dedicated process; return errors in a form that can be pickled."""
    torch.set_num_threads(threads)
    try:
        return _runner(methods).make(config, work)
    except Exception as error:
        return _portable(error)


@functools.lru_cache(maxsize=1)
def _runner(methods: tuple[str, ...]) -> Runner:
    """Return the runner of this process, which is reused between requests."""
    return Runner(methods)


def _portable(error: Exception) -> Exception:
    """Return an error that another process can read, with a note of where it was raised."""
    if isinstance(error, UserError):
        return error
    explanation = explain(error)  # here, because its causes are not pickled
    if explanation is not None:
        return EnvironmentError(explanation)
    text = traceback.format_exc()
    error.add_note(text)
    try:
        pickle.loads(pickle.dumps(error))  # nosec B301  # our own, made in this line
    except Exception:  # an error may be anything
        return RuntimeError(text)
    return error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Restrict the package's log messages to the log files of runs."""
    package = logging.getLogger("delta_transfer")
    own, level, propagate = list(package.handlers), package.level, package.propagate
    package.handlers = [logging.NullHandler()]
    package.setLevel(logging.INFO)
    package.propagate = False
    try:
        yield
    finally:
        package.handlers = own
        package.setLevel(level)
        package.propagate = propagate
