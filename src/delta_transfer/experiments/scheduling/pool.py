"""Distribute the runs of a comparison or a search to parallel workers."""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import EnvironmentError, UserError
from delta_transfer.experiments.scheduling.worker import (
    Group,
    Reply,
    Runner,
    Work,
    group_of,
    make_run,
    reply_to,
)
from delta_transfer.training.signals import stop_fits

logger = logging.getLogger(__name__)

_PATIENCE = 120  # seconds for stopping runs to finish their step and save
_STOPPING = "stopping the runs%s after their step, and saving; press Ctrl-C again to stop at once"
_CUDA = "CUDA_VISIBLE_DEVICES"


class Worker(ABC):
    """Executes one run at a time."""

    keeps_group = True
    """True if its next run can reuse the data that was prepared for the last one."""

    @abstractmethod
    def submit(self, config: TrainConfig, work: Work | None) -> Future[Reply | Exception]:
        """Start to prepare a run, and to execute it unless `work` is None."""

    @abstractmethod
    def explain(self, error: Exception) -> Reply | Exception:
        """Convert the error of a future to a failed reply, or to an error to raise."""

    @abstractmethod
    def stop(self) -> None:
        """Ask the current run to finish its step, save and end."""

    @abstractmethod
    def close(self) -> None:
        """End the worker at once."""


class Pool:
    """A pool of workers. Leaving it lets runs save first, and then ends the workers.

    Args:
        workers: started one by one when the pool is entered.
        where: location of the runs, for the message that they are being stopped.
    """

    def __init__(self, workers: Iterable[Worker], where: str = "") -> None:
        self._starting = workers
        self._where = where
        self._workers: list[Worker] = []
        self._ends = contextlib.ExitStack()
        self._groups: dict[Worker, Group] = {}  # prepared by each worker
        self._busy: dict[Future[Reply | Exception], tuple[Worker, TrainConfig]] = {}

    def __enter__(self) -> "Pool":
        with self._ends as ends:
            for worker in self._starting:
                ends.callback(worker.close)
                self._workers.append(worker)
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        with self._ends:
            running = [future for future in self._busy if not future.done()]
            if running:
                logger.warning(_STOPPING, self._where)
                for future in running:
                    self._busy[future][0].stop()
                wait(running, timeout=_PATIENCE)

    def prepare(self, config: TrainConfig) -> Reply:
        """Prepare a run, to check that the data and the network can be used.

        Raises:
            UserError: if they cannot, or the worker died.
        """
        worker = self._workers[0]
        reply = _reply_of(worker, self._submit(worker, config, None))
        if reply.failure:
            raise UserError(reply.failure)
        return reply

    def run(self, configs: Sequence[TrainConfig]) -> Iterator[tuple[TrainConfig, Reply]]:
        """Execute runs, and yield each when it has finished."""
        waiting = list(configs)

        def take(worker: Worker) -> TrainConfig | None:
            if not waiting:
                return None
            others = {group for other, group in self._groups.items() if other is not worker}
            config = choose(waiting, own=self._groups.get(worker), others=others)
            waiting.remove(config)
            return config

        return self._share(take, make_run)

    def work_on(
        self, take: Callable[[], TrainConfig | None], work: Work
    ) -> Iterator[tuple[TrainConfig, Reply]]:
        """Execute work on options that `take` returns one by one.

        Args:
            take: returns the next options, or None if there are no more. It is called when a
                worker is free and all yielded replies have been handled.
            work: to execute.
        """
        return self._share(lambda worker: take(), work)

    def _share(
        self, take: Callable[[Worker], TrainConfig | None], work: Work
    ) -> Iterator[tuple[TrainConfig, Reply]]:
        free = list(self._workers)
        while True:
            for worker in free:
                if (config := take(worker)) is not None:
                    self._busy[self._submit(worker, config, work)] = worker, config
            if not self._busy:
                return
            done = wait(self._busy, return_when=FIRST_COMPLETED).done
            future = next(future for future in self._busy if future in done)
            worker, config = self._busy.pop(future)
            yield config, _reply_of(worker, future)
            free = [worker]

    def _submit(
        self, worker: Worker, config: TrainConfig, work: Work | None
    ) -> Future[Reply | Exception]:
        if worker.keeps_group:
            self._groups[worker] = group_of(config)
        return worker.submit(config, work)


def _reply_of(worker: Worker, future: Future[Reply | Exception]) -> Reply:
    error = future.exception()
    found = worker.explain(error) if isinstance(error, Exception) else future.result()
    if isinstance(found, Exception):
        raise found from error
    return found


def choose(waiting: Sequence[TrainConfig], *, own: Group | None, others: set[Group]) -> TrainConfig:
    """Choose a worker's next run, so that little data is prepared twice.

    It is the first of the group that the worker has prepared, or else of a group that no worker
    has prepared, or else of the group with the most remaining runs.

    Args:
        waiting: the remaining runs, in order.
        own: the worker's group.
        others: the groups of the other workers.
    """
    left = Counter(map(group_of, waiting))

    def rank(config: TrainConfig) -> tuple[bool, int]:
        group = group_of(config)
        return group != own, -len(waiting) if group not in others else -left[group]

    return min(waiting, key=rank)


def local_workers(
    methods: Sequence[str], *, count: int, threads: int, gpus: Sequence[str]
) -> Iterator[Worker]:
    """Start workers on this machine, on alternating GPUs; a single one is this process."""
    if count == 1:
        yield _Here(Runner(methods), threads)
        return
    for number in range(count):
        yield _Separate(methods, threads, gpus[number % len(gpus)] if gpus else None)


class _Here(Worker):
    """A worker in this process, whose run is finished when `submit` returns."""

    def __init__(self, runner: Runner, threads: int) -> None:
        self._runner = runner
        self._threads = threads

    def submit(self, config: TrainConfig, work: Work | None) -> Future[Reply | Exception]:
        future: Future[Reply | Exception] = Future()
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:  # errors and Ctrl-C are raised here
            future.set_result(self._runner.make(config, work))
        finally:
            torch.set_num_threads(before)
        return future

    def explain(self, error: Exception) -> Exception:
        return error

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Separate(Worker):
    """A worker in its own process, on one GPU if one is named."""

    def __init__(self, methods: Sequence[str], threads: int, gpu: str | None) -> None:
        self._arguments = tuple(methods), threads
        context = multiprocessing.get_context("spawn")
        listener, self._stopper = context.Pipe(duplex=False)
        # One executor each: one with several processes does not tell which of them takes a run.
        self._executor = ProcessPoolExecutor(1, context, _begin, (listener,))
        before = set(multiprocessing.active_children())
        with _inherited(threads, gpu):
            self._executor.submit(os.getpid)  # starts the process
        (self.process,) = set(multiprocessing.active_children()) - before
        listener.close()

    def submit(self, config: TrainConfig, work: Work | None) -> Future[Reply | Exception]:
        try:
            return self._executor.submit(reply_to, *self._arguments, config, work)
        except BrokenProcessPool as error:  # it died while it was idle
            raise self.explain(error) from error

    def explain(self, error: Exception) -> Exception:
        self._executor.shutdown()  # to get the exit code
        return EnvironmentError(
            f"a worker process died (exit code {self.process.exitcode}), probably out of memory: "
            "use fewer parallel runs (`jobs=1`)"
        )

    def stop(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has already ended
            self._stopper.send(None)

    def close(self) -> None:
        self.process.kill()
        self._executor.shutdown()
        self._stopper.close()


def _begin(listener: Connection) -> None:
    """Initialise a worker's process."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the command handles them, and ends this
        signal.signal(number, signal.SIG_IGN)
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # for progress bars, to the end
    threading.Thread(target=_obey, args=(listener,), daemon=True).start()


def _obey(listener: Connection) -> None:
    """Stop a fit after its step on request; end at once if none runs, or the command has ended."""
    with contextlib.suppress(EOFError, OSError):  # the command has ended
        listener.recv()
        while stop_fits():
            listener.recv()
    os._exit(1)


@contextlib.contextmanager
def _inherited(threads: int, gpu: str | None) -> Iterator[None]:
    """Set what a new process inherits: threads, GPU, and ignoring Ctrl-C."""
    changes = {"OMP_NUM_THREADS": str(threads)} | ({} if gpu is None else {_CUDA: gpu})
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


def gpus() -> list[str]:
    """Return the GPUs that this process may use, by CUDA's names."""
    given = os.environ.get(_CUDA)
    count = torch.cuda.device_count()
    names = [str(number) for number in range(count)] if given is None else given.split(",")
    return names[:count]
