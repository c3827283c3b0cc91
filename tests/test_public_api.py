"""What people build on changes only on purpose: names, parameters, defaults and members."""

import difflib
import textwrap

import pytest

import delta_transfer
from tests import public_api


def test_the_public_names_are_those_that_are_written_down():
    written = public_api.WRITTEN.read_text(encoding="utf-8")
    changed = difflib.unified_diff(
        written.splitlines(),
        public_api.described().splitlines(),
        "written down",
        "now",
        lineterm="",
    )
    if lines := "\n".join(changed):
        pytest.fail(
            f"the public interface is another one:\n{lines}\n"
            "If that is meant: `python -m tests.public_api`, and a line in CHANGELOG.md",
            pytrace=False,
        )


class Other:
    """A class as a user has it, in a module that counts as ours."""

    __module__ = "delta_transfer.made_up"
    constant = 3

    def __init__(self, first, /, second, *, third=len, fourth=None, fifth: int = 5) -> None:
        pass

    @classmethod
    def load(cls, path):
        pass

    @staticmethod
    def plain():
        pass

    @property
    def size(self):
        pass

    def call(self, a, *b, **c):
        pass

    def _hidden(self):
        pass


@pytest.fixture
def other(monkeypatch):
    monkeypatch.setattr(delta_transfer, "__all__", ["Other"])
    monkeypatch.setattr(delta_transfer, "Other", Other, raising=False)


def test_all_that_callers_see_is_described(other):
    expected = """\
        class Other(
                first,
                /,
                second,
                *,
                third=len,
                fourth=None,
                fifth=5,
            )
            .call(a, *b, **c)
            .constant
            .load(path) (classmethod)
            .plain() (staticmethod)
            .size (property)
        """
    assert public_api.described() == public_api.HEADING + "\n" + textwrap.dedent(expected)


def test_a_change_fails_with_its_lines(other, monkeypatch, tmp_path):
    monkeypatch.setattr(public_api, "WRITTEN", tmp_path / "public_api.txt")
    public_api.WRITTEN.write_text(public_api.described().replace("fifth=5", "fifth=4"))
    with pytest.raises(pytest.fail.Exception, match=r"(?s)-        fifth=4,\n\+        fifth=5,"):
        test_the_public_names_are_those_that_are_written_down()
