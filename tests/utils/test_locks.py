"""A second process is rejected in a locked folder; a killed one leaves no lock."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from delta_transfer import train
from delta_transfer.cli import main
from delta_transfer.errors import UserError
from delta_transfer.experiments.comparison.compare import compare
from delta_transfer.utils.locks import LOCK, check_unlocked, lock_folder
from tests.run_folders import tiny
from tests.several import run

HOLD = """
import sys, time
from pathlib import Path
from delta_transfer.utils.locks import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(300)
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process hold the lock."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    try:
        yield other
    finally:
        other.kill()
        other.communicate()


def test_the_lock_is_held_until_its_process_is_killed(tmp_path):
    folder = tmp_path / "new" / "run"
    with held(folder) as other:
        who = f"process {other.pid} on {socket.gethostname()} is writing to {folder}: "
        for _ in range(2):  # a rejected process does not release it
            with pytest.raises(UserError, match=who), lock_folder(folder):
                pass
            with pytest.raises(UserError, match="wait for it, stop it"):
                check_unlocked(folder)
    assert (folder / LOCK).is_file()  # which locks nothing
    check_unlocked(folder)
    with lock_folder(folder):
        assert (folder / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "train --resume", "train --overwrite", "compare"])
def test_a_second_command_is_rejected_and_changes_nothing(images, tmp_path, capsys, command):
    folder = tmp_path / "run"
    name, *flags = command.split()
    with held(folder) as other:
        assert main.main([name, str(images), f"--out={folder}", *flags]) == 2
        said = capsys.readouterr().err
        assert (
            f"error: process {other.pid} on {socket.gethostname()} is writing to {folder}" in said
        )
        assert [path.name for path in folder.iterdir()] == [LOCK]


def test_a_lock_taken_during_preparation_is_respected(images, tmp_path, monkeypatch):
    folder, own = tmp_path / "run", FileLock(tmp_path / "run" / LOCK)

    def prepared(*args: object, **options: object) -> object:
        folder.mkdir()
        own.acquire()
        return prepare(*args, **options)

    from delta_transfer.runs.run import prepare

    monkeypatch.setattr("delta_transfer.runs.run.prepare", prepared)
    with pytest.raises(UserError, match=f"is writing to {folder}: wait"):
        train(tiny(images, folder, method="probe"))
    assert [path.name for path in folder.iterdir()] == [LOCK]
    own.release()


def test_the_lock_file_of_a_killed_process_is_reused(images, tmp_path):
    run, several = tmp_path / "run", tmp_path / "several"
    for folder in (run, several):
        folder.mkdir()
        (folder / LOCK).write_text("process 7 on elsewhere")
    config = tiny(images, run, method="probe")
    train(config)
    compare(config, several, methods=["probe"], seeds=[0], n_jobs=1)
    assert not list(tmp_path.rglob(LOCK))
    (several / LOCK).touch()
    train(tiny(images, several, method="probe", overwrite=True))
    assert not list(tmp_path.rglob(LOCK))


def test_an_empty_folder_is_removed(tmp_path):
    with pytest.raises(KeyError), lock_folder(tmp_path / "run"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_locked_is_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(self: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with lock_folder(tmp_path):
        pass
    assert "cannot be locked ([Errno 38] Function not implemented)" in caplog.text
    assert "make sure no other process writes to it" in caplog.text


def test_all_processes_of_a_run_are_rejected(tmp_path):
    with held(tmp_path):
        run("refused", tmp_path, module="tests.sharded_runs")
