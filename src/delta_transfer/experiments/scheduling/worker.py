"""Who makes the runs of a comparison or a search: this process, or processes of their own."""

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
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
from delta_transfer.training.signals import stop_fits
from delta_transfer.utils.diagnostics import explain

CUDA = "CUDA_VISIBLE_DEVICES"

PATIENCE = 120
"""Seconds in which runs that are stopped may finish their step and save."""

STOPPING = "stopping the runs{} after their step, and saving; once more to stop at once"

Group = tuple[int, int | None]  # seed and size: the runs of a group see the same images

Work = Callable[[RunSetup, TrainConfig, float], RunResult | None]
"""What is made of data that is prepared and options, from when on `time.perf_counter()` counts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """What came of a request.

    Args:
        description: of the images and the network, line by line.
        taps: that were prepared.
        identity: of the images, their splits and the pretrained weights.
        result: of the run; None if it failed, was only prepared, or is none that ends with one.
        failure: why it failed.
    """

    description: tuple[str, ...]
    taps: tuple[str, ...] = ()
    identity: str = ""
    result: RunResult | None = None
    failure: str = ""


class Runner:
    """Makes runs one after the other, and keeps what those of a group share.

    Args:
        methods: of the comparison.
    """

    def __init__(self, methods: Sequence[str]) -> None:
        self._methods = methods
        self._group: Group | None = None
        self._prepared: RunSetup | None = None
        self._seconds = 0.0

    def make(self, config: TrainConfig, work: Work | None) -> Reply:
        """Prepares a run, and makes it if there is work to do.

        Raises:
            UserError: if data, network or attention are not as they must be: then no method can
                run. What goes wrong in a run of its own is part of the reply.
        """
        with _silent():
            prepared = self._prepare(config)
            if work is None:
                return Reply(
                    description=prepared.description,
                    taps=prepared.taps,
                    identity=run_fingerprint(prepared),
                )
            started = time.perf_counter() - self._seconds
            try:
                result = work(prepared, config, started)
            except (UserError, MemoryError, torch.OutOfMemoryError) as error:
                told = None if isinstance(error, UserError) else explain(error)
                failure = told or str(error)
                return Reply(description=prepared.description, failure=failure)
            return Reply(description=prepared.description, result=result)

    def _prepare(self, config: TrainConfig) -> RunSetup:
        if self._prepared is None or self._group != group_of(config):
            self._prepared = None  # before there is another one
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
    """The work of a comparison: whole runs."""
    return train_prepared(prepared, config, Path(config.out or ""), started=started)


def group_of(config: TrainConfig) -> Group:
    """What a run shares with those of other methods."""
    return config.seed, config.samples_per_class


class Here:
    """A worker in this process, which works while it is asked for its answer."""

    def __init__(self, runner: Runner, threads: int) -> None:
        self._runner = runner
        self._threads = threads
        self._asked: tuple[TrainConfig, Work | None] | None = None

    def ask(self, config: TrainConfig, work: Work | None) -> None:
        """As `Separate.ask`."""
        self._asked = (config, work)

    def answer(self) -> Reply:
        """As `Separate.answer`."""
        assert self._asked is not None
        config, work = self._asked
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            return self._runner.make(config, work)
        finally:
            torch.set_num_threads(before)


class Separate:
    """A worker in a process of its own, on a GPU of its own if one is named."""

    def __init__(self, methods: Sequence[str], threads: int, gpu: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        hears, self._stopper = context.Pipe(duplex=False)
        # Not a daemon: those may not start the processes that load images.
        self.process = context.Process(target=_work, args=(theirs, hears, tuple(methods), threads))
        with _inherited(threads, gpu):
            self.process.start()
        theirs.close()
        hears.close()

    def ask(self, config: TrainConfig, work: Work | None) -> None:
        """Has a run prepared or made."""
        with contextlib.suppress(BrokenPipeError):  # then `answer` says so
            self.connection.send((config, work))

    def answer(self) -> Reply:
        """What came of it, once it is there.

        Raises:
            UserError: if the process has died.
            Exception: that ended the work there.
        """
        try:
            reply = self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            self.process.join()
            raise UserError(
                f"a process that made runs died (exit code {self.process.exitcode}), as it does "
                "when memory runs out: make fewer at a time, --jobs 1"
            ) from error
        if isinstance(reply, Exception):
            raise reply
        assert isinstance(reply, Reply)
        return reply

    def stop(self) -> None:
        """Asks the process to end, once a run that it makes has finished its step and saved."""
        with contextlib.suppress(BrokenPipeError):  # it has ended
            self._stopper.send(None)

    def close(self) -> None:
        """Ends the process, whatever it is at."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        self._stopper.close()


def _work(
    connection: Connection, stopper: Connection, methods: Sequence[str], threads: int
) -> None:
    """What a worker's process does until it is ended."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they are for the command, which ends this
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    threading.Thread(target=_end_when_asked, args=(stopper,), daemon=True).start()
    torch.set_num_threads(threads)
    runner = Runner(methods)
    # Whoever would read the answers is gone, or a run was stopped.
    over = contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), over:
        while True:  # progress bars go nowhere
            config, work = connection.recv()
            connection.send(answer(runner, config, work))


def answer(runner: Runner, config: TrainConfig, work: Work | None) -> Reply | Exception:
    """What came of a run, or the error that ended the work, to be sent to another process."""
    try:
        return runner.make(config, work)
    except Exception as error:
        return _portable(error)


def _end_with_parent() -> None:
    """However that ends: a run that nobody waits for would be in the way of its successor."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _end_when_asked(stopper: Connection) -> None:
    """After the step, where a network is trained; all else is made anew anyway."""
    with contextlib.suppress(EOFError):  # the parent has ended
        stopper.recv()
        if not stop_fits():
            os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error in a form that another process can read, with the place where it was raised."""
    if isinstance(error, UserError):
        return error
    told = explain(error)  # by its causes, which are not sent
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
def _inherited(threads: int, gpu: str | None) -> Iterator[None]:
    """Inside, what a new process inherits: threads, its GPU, and that Ctrl-C is not for it."""
    changes = {"OMP_NUM_THREADS": str(threads)} | ({} if gpu is None else {CUDA: gpu})
    before = {name: os.environ.get(name) for name in changes}
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if main:
            signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Inside, what the package logs goes to the files of runs alone."""
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
