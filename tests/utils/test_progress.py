import logging
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from delta_transfer.utils.progress import progress_bar


class TestProgressBar:
    @pytest.fixture(autouse=True)
    def terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rich takes what is captured for a terminal."""
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")

    @contextmanager
    def logged(self) -> Iterator[logging.StreamHandler[Any]]:
        """Inside, messages go to stderr, as in the command line."""
        handler, logger = logging.StreamHandler(), logging.getLogger("delta_transfer")
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield handler
        finally:
            logger.setLevel(level)
            logger.removeHandler(handler)

    @pytest.mark.parametrize(("name", "value"), [("FORCE_COLOR", ""), ("TERM", "dumb")])
    def test_there_is_none_without_a_terminal(self, capsys, monkeypatch, name, value):
        monkeypatch.setenv(name, value)
        with progress_bar("channels", "channels") as progress:
            assert progress is None
        assert capsys.readouterr().err == ""

    def test_a_terminal_shows_what_is_done(self, capsys):
        with progress_bar("channels", "images x channels") as progress:
            progress(25, 200)
            time.sleep(0.3)  # it is drawn ten times a second
        said = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capsys.readouterr().err)
        for part in ("channels", "12%", " 25/200 images x channels,", "left"):
            assert part in said

    def test_messages_are_whole_lines_above_it(self, capsys):
        with self.logged() as handler:
            with progress_bar("channels", "channels") as progress:
                progress(1, 2)
                logging.getLogger("delta_transfer.attention").warning("converged on 40 images")
            assert handler.stream is sys.stderr
        said = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capsys.readouterr().err)
        assert re.search(r"[\r\n]converged on 40 images\s*\n", said)

    def test_it_is_gone_after_an_error(self, capsys):
        before = sys.stderr
        with self.logged() as handler:
            with suppress(KeyboardInterrupt), progress_bar("channels", "channels"):
                assert handler.stream is not before
                raise KeyboardInterrupt
            assert handler.stream is sys.stderr is before
