"""Samples that the main process has looked at, read by each process on its own machine."""

import dataclasses
import socket

from delta_transfer.data.task import Split, Task
from delta_transfer.errors import UserError, first_few
from delta_transfer.utils.distributed import gathered, processes


def read_here(task: Task, own: Task) -> Task:
    """The main process's task with the pictures of this one's machine.

    Args:
        task: with what the main process reads and has kept.
        own: as this process has found it.

    Raises:
        UserError: in all processes, if one of them does not find a picture.
    """
    if processes() == 1:
        return task
    pairs = [(task.train, own.train), (task.val, own.val), (task.test, own.test)]
    there = {path for _, split in pairs if split is not None for path in split.paths}
    lost = [path for split, _ in pairs if split is not None for path in split.paths]
    lost = [path for path in lost if path not in there]
    told = gathered((socket.gethostname(), first_few(lost)))
    for host, paths in told:
        if paths:
            raise UserError(
                f"{task.name}: a process on {host} does not find {paths}, which the main "
                "process does: all machines need the same pictures"
            )
    train, val, test = (None if t is None or o is None else _local(t, o) for t, o in pairs)
    assert train is not None
    assert val is not None
    return dataclasses.replace(task, train=train, val=val, test=test)


def _local(split: Split, own: Split) -> Split:
    kept = None if split.kept is None else split.kept.here()
    return dataclasses.replace(split, read=own.read, kept=kept)
