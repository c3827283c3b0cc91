import errno
import io
import logging
import os
import sys
from pathlib import Path

import pytest

from delta_transfer.cli.terminal import Formatter, flush_output


@pytest.mark.parametrize(
    ("level", "line"),
    [
        (logging.INFO, "3 classes"),
        (logging.WARNING, "warning: 3 classes"),
        (logging.ERROR, "warning: 3 classes"),
    ],
)
def test_a_warning_says_that_it_is_one(level, line):
    record = logging.LogRecord("delta_transfer", level, "", 0, "%d classes", (3,), None)
    assert Formatter().format(record) == line


class Pipe(io.TextIOBase):
    """Output into a file of which nothing more is wanted."""

    def __init__(self, file: Path, code: int) -> None:
        self.file = file.open("w")
        self.code = code

    def fileno(self) -> int:
        return self.file.fileno()

    def flush(self) -> None:
        if self.code:
            raise OSError(self.code, os.strerror(self.code))


class TestFlushOutput:
    def test_what_was_printed_is_written(self, monkeypatch):
        written = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written))
        sys.stdout.write("hello\n")
        assert written.getvalue() == b""
        flush_output()
        assert written.getvalue() == b"hello\n"

    @pytest.mark.parametrize(
        ("code", "kind"), [(errno.EPIPE, BrokenPipeError), (errno.ENOSPC, OSError)]
    )
    def test_what_cannot_be_written_is_dropped(self, monkeypatch, tmp_path, code, kind):
        pipe = Pipe(tmp_path / "out", code)
        monkeypatch.setattr("sys.stdout", pipe)
        with pytest.raises(kind):
            flush_output()
        os.write(pipe.fileno(), b"the rest")
        assert (tmp_path / "out").read_bytes() == b""
        pipe.code = 0
        pipe.file.close()

    def test_output_that_was_closed_from_the_start(self, monkeypatch):
        monkeypatch.setattr("sys.stdout", None)
        flush_output()
        assert sys.stdout is None
