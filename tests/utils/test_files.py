import errno
import hashlib
import os

import pytest

from delta_transfer.errors import ConfigError
from delta_transfer.utils.files import fingerprint, read_yaml, write_atomically


def test_text_and_bytes_are_written_with_the_mode_of_a_new_file(tmp_path):
    write_atomically(tmp_path / "text", "grün")
    write_atomically(tmp_path / "bytes", b"\x00\xff")
    assert (tmp_path / "text").read_text(encoding="utf-8") == "grün"
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    (tmp_path / "plain").touch()
    assert (tmp_path / "text").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "file"
    path.write_text("old and longer")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "file", "new")


def test_fingerprint_is_sha256_of_the_chunks_together():
    expected = hashlib.sha256(b"abc").hexdigest()
    assert fingerprint([b"a", memoryview(b"bc")]) == expected == fingerprint([b"abc"])


def test_a_full_disk_is_reported_with_the_file(tmp_path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(tmp_path / "result.json", "{}")
    assert caught.value.filename == str(tmp_path / "result.json")


@pytest.mark.parametrize("content", [b"data: 2020-13-45", b"data: [", b"data: \xff"])
def test_what_is_not_yaml_is_an_error_with_the_file_and_what_is_wanted(tmp_path, content):
    path = tmp_path / "options.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"options\.yaml is not YAML: .* contain options"):
        read_yaml(path, wanted="options")
