"""The tutorial is gone through as a newcomer would, and shows what really comes out."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.blocks import ROOT, Block, read_blocks, read_commands

TUTORIAL = ROOT / "docs" / "tutorial.md"
INSTALLS = ("python3", ".", "pip")  # the tests run in an environment that is there
POINTS = 3.0  # of percent, by which another processor may differ,
CLASS_POINTS = 16.0  # and of one class, of fifty images

TIMES = r"\d+(\.\d+)? ?(s\b|seconds|minutes|MiB|images/s)|images/s +[\d.]+"
PERCENT = r"(\d+\.\d)(?=%)"
NUMBER = r"\d+(\.\d+)?(e-\d+)?"


@pytest.mark.slow
def test_the_tutorial_shows_what_a_newcomer_gets(tmp_path: Path) -> None:
    tutor = Tutor(tmp_path)
    for block in read_blocks(TUTORIAL):
        tutor.take(block)
    assert tutor.compared >= 5


class Tutor:
    """Goes through the blocks of the page, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.compared = 0
        self._output = ""
        self._script = ""
        self._env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DELTA_TRANSFER_CACHE": str(folder / "cache"),
            "COLUMNS": "100",
        }

    def take(self, block: Block) -> None:
        """Runs commands, keeps scripts for the next one, compares output with that of the last."""
        if block.kind == "python":
            self._script = block.text
        elif block.kind == "shell":
            self._output = "".join(self._run(words) for words in read_commands(block.text))
        else:
            assert block.kind == "output", block.place
            check_shown(block.text, self._output, place=block.place)
            self.compared += 1

    def _run(self, words: list[str]) -> str:
        if words[0] in INSTALLS:
            return ""
        if words[0] == "export":
            self._env.update([words[1].split("=")])
            return ""
        if words[0] == "python":
            (self.folder / words[1]).write_text(self._script)
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


def check_shown(shown: str, real: str, *, place: str) -> None:
    """Raises an error unless each line that is shown came out, in this order, but for numbers.

    Of numbers, accuracies are compared (percent, and the means in a table), others may differ.
    """
    left = iter(real.splitlines())
    for line in shown.splitlines():
        if line.strip() in ("", "..."):
            continue
        like = next((found for found in left if _shape(found) == _shape(line)), None)
        assert like is not None, f"{place}: there is no line such as {line!r} in\n{real}"
        allowed = CLASS_POINTS if re.match(r" +\d+ \S+ +\d+ +\d+\.\d%", line) else POINTS
        for here, there in zip(_accuracies(line), _accuracies(like), strict=True):
            assert abs(here - there) <= allowed, f"{place}: {line!r} is now {like!r}"


def _shape(line: str) -> str:
    """A line without its numbers and their width."""
    bare = re.sub(NUMBER, "#", re.sub(TIMES, "", line).replace(" .", " #").replace(" -", " +"))
    return re.sub(r"[─\s]+", " ", bare.replace("+#", "#")).strip()


def _accuracies(line: str) -> list[float]:
    row = re.match(r"(?:probe|l2|delta) +\d+ +(\d+\.\d) ", line)
    return [float(number) for number in re.findall(PERCENT, line) + ([row[1]] if row else [])]


@pytest.mark.parametrize(
    ("shown", "real"),
    [
        ("done  test accuracy 88.2%", "done  test accuracy 84.9%, 3 seconds"),
        ("done  test accuracy 88.2%", "done  test accuracy 84.9%"),
        ("l2    3  86.4  1.8    19", "l2    3  82.4  1.8    19"),
        ("first\nsecond", "second\nfirst"),
        ("report  runs/first", "model  runs/first"),
    ],
)
def test_output_that_has_changed_is_noticed(shown: str, real: str) -> None:
    check_shown(real, real, place="here")
    with pytest.raises(AssertionError):
        check_shown(shown, real, place="here")


def test_times_last_digits_and_what_is_left_out_may_differ() -> None:
    real = "a 3.1\nb\ndone  test accuracy 88.4% (linear probe 82.2%), epoch 9 kept, 42 seconds"
    shown = "a 2.7\n...\ndone  test accuracy 88.2% (linear probe 82.2%), epoch 10 kept, 51 seconds"
    check_shown(shown, real, place="here")
