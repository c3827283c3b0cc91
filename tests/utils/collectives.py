"""Functions that `test_collectives` runs in two processes."""

import threading

import pytest

from delta_transfer.utils.distributed import (
    all_gather,
    first_on_each_node,
    init_process_group,
    is_rank_zero,
    rank_zero_first,
    run_on_main_and_broadcast,
)


class LocalError(Exception):
    """An error that cannot be pickled, like those of many libraries."""

    def __init__(self, *, file: object) -> None:
        super().__init__("cannot read the table")
        self.file = file


def fail(kind: str) -> object:
    if kind == "unpicklable result":
        return threading.Lock()
    if kind == "known":
        raise KeyError("no such table")
    raise LocalError(file=threading.Lock())


def fail_in_main(kind: str) -> None:
    """Raise an error in the main process; afterwards the processes can still communicate."""
    expected = {
        "local": "LocalError: cannot read the table|^cannot read the table$",
        "unpicklable result": "cannot pickle",
        "known": "no such table",
    }[kind]
    with init_process_group("cpu"):
        with pytest.raises(Exception, match=expected):
            run_on_main_and_broadcast(lambda: fail(kind))
        assert all_gather(is_rank_zero()) == [True, False]


def fail_before_the_others(name: str) -> None:
    """Raise an error in the process that is first; the others do not run the body."""
    first = {"node": first_on_each_node, "main": rank_zero_first}[name]
    with init_process_group("cpu"):
        with pytest.raises(KeyError, match="no such table"), first():
            fail("known" if is_rank_zero() else "not called here")
        assert all_gather(is_rank_zero()) == [True, False]
