"""Make runs one after the other, and reuse what the runs of a seed and size have in common."""

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
from delta_transfer.errors import UserError
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.runs.attention import load_given_attention
from delta_transfer.runs.plan import run_fingerprint
from delta_transfer.runs.preparation.prepare import prepare
from delta_transfer.runs.preparation.prepared import RunSetup
from delta_transfer.runs.run import train_prepared
from delta_transfer.runs.validation import check_data
from delta_transfer.utils.diagnostics import explain

Group = tuple[int, int | None]
"""Seed and size of the training set: all runs of a group train on the same images."""

Work = Callable[[RunSetup, TrainConfig, float], RunResult | None]
"""Work on prepared data by some options; the last argument is `time.perf_counter()` at its start.

It can be imported by its name, so that other processes find it.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """The outcome of a request to a worker.

    Args:
        description: of the data and the network, line by line.
        taps: that were prepared.
        identity: of the images, their splits and the pretrained weights.
        result: of the run; None if it failed, was only prepared, or if its work returns none.
        failure: why it failed.
    """

    description: tuple[str, ...] = ()
    taps: tuple[str, ...] = ()
    identity: str = ""
    result: RunResult | None = None
    failure: str = ""


class Runner:
    """Makes runs, and keeps the prepared data until a run of another group comes.

    Args:
        methods: all methods of the comparison, which are checked when data is prepared.
    """

    def __init__(self, methods: Sequence[str]) -> None:
        self._methods = methods
        self._group: Group | None = None
        self._prepared: RunSetup | None = None
        self._seconds = 0.0

    def make(self, config: TrainConfig, work: Work | None) -> Reply:
        """Prepare a run, and make it if there is work to do.

        Raises:
            UserError: if the data, the network or the attention is unusable, which concerns all
                methods. The failure of a single run is part of the reply.
        """
        with _silent():
            prepared = self._prepare(config)
            reply = Reply(description=prepared.description)
            if work is None:
                taps, found = prepared.taps, run_fingerprint(prepared)
                return dataclasses.replace(reply, taps=taps, identity=found)
            try:
                result = work(prepared, config, time.perf_counter() - self._seconds)
            except (UserError, MemoryError, torch.OutOfMemoryError) as error:
                told = None if isinstance(error, UserError) else explain(error)
                return dataclasses.replace(reply, failure=told or str(error))
            return dataclasses.replace(reply, result=result)

    def _prepare(self, config: TrainConfig) -> RunSetup:
        if self._prepared is None or self._group != group_of(config):
            self._prepared = None  # two at a time may not fit in memory
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
    """Make a whole run: the work of a comparison."""
    return train_prepared(prepared, config, Path(config.out or ""), started=started)


def group_of(config: TrainConfig) -> Group:
    """Return what a run has in common with the runs of other methods."""
    return config.seed, config.samples_per_class


def reply_to(
    methods: tuple[str, ...], threads: int, config: TrainConfig, work: Work | None
) -> Reply | Exception:
    """Make a run in a process that does nothing else; return errors in a form that can be sent."""
    torch.set_num_threads(threads)
    try:
        return _runner(methods).make(config, work)
    except Exception as error:
        return _portable(error)


@functools.lru_cache(maxsize=1)
def _runner(methods: tuple[str, ...]) -> Runner:
    """Return the runner of this process, which outlives a request."""
    return Runner(methods)


def _portable(error: Exception) -> Exception:
    """Return an error that another process can read, with a note of where it was raised."""
    if isinstance(error, UserError):
        return error
    told = explain(error)  # here, because its causes are not sent
    if told is not None:
        return UserError(told)
    text = traceback.format_exc()
    error.add_note(text)
    try:
        pickle.loads(pickle.dumps(error))  # nosec B301  # our own, made in this line
    except Exception:  # an error may be anything
        return RuntimeError(text)
    return error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Send what the package logs to the log files of runs alone."""
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
