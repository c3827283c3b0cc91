import errno
import os

import pytest
import torch

from delta_transfer.training.checkpoints import AtomicCheckpointIO


def test_what_is_saved_is_read_again(tmp_path):
    path, saved = tmp_path / "last.ckpt", {"state_dict": {"weight": torch.arange(3.0)}, "epoch": 2}
    AtomicCheckpointIO().save_checkpoint(saved, path)
    found = AtomicCheckpointIO().load_checkpoint(path)
    assert found["epoch"] == 2
    assert torch.equal(found["state_dict"]["weight"], saved["state_dict"]["weight"])
    AtomicCheckpointIO().remove_checkpoint(path)
    AtomicCheckpointIO().remove_checkpoint(path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_one_whole(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert AtomicCheckpointIO().load_checkpoint(path)["epoch"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]
