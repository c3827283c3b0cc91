"""The runs of a comparison or a search are shared out among workers, several at a time."""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait

import torch

from delta_transfer.config.train import TrainConfig
from delta_transfer.experiments.scheduling.worker import (
    CUDA,
    PATIENCE,
    STOPPING,
    Group,
    Here,
    Reply,
    Runner,
    Separate,
    Work,
    group_of,
    make_run,
)

logger = logging.getLogger(__name__)


class Jobs:
    """Workers that share out the runs of a comparison; they end when it is left.

    Args:
        methods: of the comparison.
        workers: how many; a single one works in this process.
        threads: of each.
        gpus: those that the workers take in turn; none on other devices.
    """

    def __init__(
        self, methods: Sequence[str], *, workers: int, threads: int, gpus: Sequence[str]
    ) -> None:
        self._methods = methods
        self._count = workers
        self._threads = threads
        self._gpus = gpus
        self._workers: list[Here | Separate] = []
        self._separate: list[Separate] = []
        self._groups: dict[int, Group] = {}  # that each worker has prepared

    def __enter__(self) -> "Jobs":
        if self._count == 1:
            self._workers = [Here(Runner(self._methods), self._threads)]
            return self
        try:
            for number in range(self._count):
                gpu = self._gpus[number % len(self._gpus)] if self._gpus else None
                self._separate.append(Separate(self._methods, self._threads, gpu))
        except BaseException:
            self.__exit__()
            raise
        self._workers = [*self._separate]
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *error: object) -> None:
        try:
            if self._separate and kind is not None and issubclass(kind, KeyboardInterrupt):
                self._stop()
        finally:
            for worker in self._separate:
                worker.close()

    def _stop(self) -> None:
        """Lets runs save where they are; a second Ctrl-C ends that."""
        logger.warning(STOPPING.format(""))
        for worker in self._separate:
            worker.stop()
        end = time.monotonic() + PATIENCE
        for worker in self._separate:
            worker.process.join(max(0.0, end - time.monotonic()))

    def prepare(self, config: TrainConfig) -> Reply:
        """Prepares a run and thereby shows whether data and network are as they must be."""
        self._workers[0].ask(config, None)
        self._groups[0] = group_of(config)
        return self._workers[0].answer()

    def run(self, configs: Sequence[TrainConfig]) -> Iterator[tuple[TrainConfig, Reply]]:
        """Makes runs; each is handed out when it is finished."""
        waiting = list(configs)

        def take(number: int) -> TrainConfig | None:
            if not waiting:
                return None
            others = {group for worker, group in self._groups.items() if worker != number}
            config = choose(waiting, own=self._groups.get(number), others=others)
            waiting.remove(config)
            return config

        return self._share(take, make_run, ahead=True)

    def work_on(
        self, take: Callable[[], TrainConfig | None], work: Work
    ) -> Iterator[tuple[TrainConfig, Reply]]:
        """Does some work for options that are asked for one by one.

        Args:
            take: gives the next ones whenever a worker is free, and what was handed out has been
                dealt with; None if there are no more.
            work: is done; its function can be imported by its name.
        """
        return self._share(lambda number: take(), work, ahead=False)

    def _share(
        self, take: Callable[[int], TrainConfig | None], work: Work, *, ahead: bool
    ) -> Iterator[tuple[TrainConfig, Reply]]:
        busy: dict[int, TrainConfig] = {}

        def give(number: int) -> None:
            config = take(number)
            if config is not None:
                self._groups[number], busy[number] = group_of(config), config
                self._workers[number].ask(config, work)

        for number in range(len(self._workers)):
            give(number)
        while busy:
            number = self._wait(list(busy))
            reply, config = self._workers[number].answer(), busy.pop(number)
            if ahead:
                give(number)
            yield config, reply
            if not ahead:
                give(number)

    def _wait(self, busy: Sequence[int]) -> int:
        """A worker that has an answer."""
        if not self._separate:
            return busy[0]
        ready = wait([self._separate[number].connection for number in busy])
        return next(number for number in busy if self._separate[number].connection in ready)


def choose(waiting: Sequence[TrainConfig], *, own: Group | None, others: set[Group]) -> TrainConfig:
    """The run that a worker takes next, so that little is prepared twice.

    One of the group that it has prepared; else of one that nobody has; else of the one with the
    most runs left.

    Args:
        waiting: the runs that are left, in their order.
        own: the worker's group.
        others: the groups of the other workers.
    """
    left = Counter(map(group_of, waiting))
    if own not in left:
        own = next((group for group in left if group not in others), left.most_common(1)[0][0])
    return next(config for config in waiting if group_of(config) == own)


def gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA has for them."""
    given = os.environ.get(CUDA)
    count = torch.cuda.device_count()
    names = [str(number) for number in range(count)] if given is None else given.split(",")
    return names[:count]
