"""What a node of a Ray cluster does of a comparison or a search."""

import contextlib
import dataclasses
import functools
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import torch

from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import UserError
from delta_transfer.experiments.scheduling.worker import Reply, Runner, Work, answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What all tasks of a comparison are told.

    Args:
        methods: of the comparison.
        threads: of each run.
        mark: a file that is there when the runs are made.
        cwd: the folder that paths are relative to.
    """

    methods: tuple[str, ...]
    threads: int
    mark: str
    cwd: str


def work(job: Job, config: TrainConfig, what: Work | None) -> Reply | Exception:
    """A task: prepares a run, on a node of the cluster, and makes it if there is work to do."""
    error = missing(job.cwd, [] if what is None else [job.mark])
    if error is not None:
        return error
    torch.set_num_threads(job.threads)
    return answer(_runner(job.methods), config, what)


def missing(cwd: str, paths: Sequence[str]) -> UserError | None:
    """A task: goes to a folder, if it can, and looks for files; the error if one is missing."""
    with contextlib.suppress(OSError):
        os.chdir(cwd)
    lost = next((path for path in paths if not Path(path).exists()), None)
    if lost is None:
        return None
    return UserError(
        f"{lost} is not there on {socket.gethostname()}, a node of the Ray cluster: the data and "
        "--out must lie in folders that all nodes have under the same path"
    )


@functools.lru_cache(maxsize=1)
def _runner(methods: tuple[str, ...]) -> Runner:
    """Of this process, which makes one run after the other."""
    return Runner(methods)
