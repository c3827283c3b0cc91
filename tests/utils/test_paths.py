import os
from pathlib import Path

import pytest

from delta_transfer.errors import UserError
from delta_transfer.utils.paths import user_path


def test_a_path_need_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    for text in ("file", "nothing", "nothing/at/all", "file/below"):
        assert user_path(f"~/{text}") == tmp_path / text
    assert user_path("sklearn/digits") == Path("sklearn/digits")


def test_a_link_to_itself_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(UserError, match=r"cannot access .*link' \(Too many levels of symbolic"):
        user_path(str(tmp_path / "link"))


def test_an_inaccessible_folder_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(UserError, match=r"cannot access .*'a/b' \(Permission denied\)"):
        user_path("a/b")
