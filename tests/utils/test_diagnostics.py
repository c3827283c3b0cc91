import errno
import gc
import os
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from delta_transfer.data.images.decode import ImageError
from delta_transfer.errors import UserError
from delta_transfer.utils.diagnostics import explain, message


class Damaged(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise ImageError("cannot read 'a.png': replace it")


@pytest.mark.parametrize("workers", [0, 1])
def test_the_message_is_the_same_from_a_worker_process(monkeypatch, workers):
    # Torch waits so many seconds for the workers of a loader that was cut off.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    batches = iter(DataLoader(Damaged(), num_workers=workers))
    with pytest.raises(UserError) as caught:
        next(batches)
    assert message(caught.value) == "cannot read 'a.png': replace it"
    # The reason of a run's failure comes without its kind from another process.
    assert message(UserError(str(caught.value))) == "cannot read 'a.png': replace it"
    del batches, caught
    gc.collect()


def os_error(code: int, file: str | None = "/runs/a/model.safetensors") -> OSError:
    return OSError(code, os.strerror(code), file)


class TestExplain:
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
    def test_a_full_disk(self, code):
        assert explain(os_error(code)) == (
            f"'/runs/a/model.safetensors' could not be written ({os.strerror(code)}): free some "
            "space, or write to another folder with `out`"
        )
        assert explain(os_error(code, None)) == (
            f"the output could not be written ({os.strerror(code)}): free some space, or write "
            "to another folder with `out`"
        )

    @pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
    def test_a_file_that_may_not_be_written_or_read(self, code):
        text = explain(os_error(code))
        assert text is not None
        assert text.startswith("no access to '/runs/a/model.safetensors' (")
        assert os.strerror(code) in text
        assert "`out`" in text

    def test_a_file_by_its_path(self):
        assert "'/a/b'" in str(explain(PermissionError(errno.EACCES, "no", Path("/a/b"))))

    @pytest.mark.parametrize(
        "text",
        [
            "[enforce fail at inline_container.cc:1039] . PytorchStreamWriter failed writing file "
            "data/0: file write failed",
            "[enforce fail at inline_container.cc:858] . unexpected pos 64 vs 0",
        ],
    )
    def test_a_checkpoint_that_torch_could_not_write(self, text):
        assert "a checkpoint could not be written" in str(explain(RuntimeError(text)))

    @pytest.mark.parametrize(
        ("error", "where"),
        [
            (MemoryError(), "this machine"),
            (
                RuntimeError(
                    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
                    "allocate memory: you tried to allocate 9 bytes"
                ),
                "this machine",
            ),
            (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "the GPU"),
            (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), "the GPU"),
            (RuntimeError("CUDA error: out of memory"), "the GPU"),
        ],
    )
    def test_too_little_memory(self, error, where):
        assert explain(error) == (
            f"{where} has too little memory: lower `batch_size` or `image_size`"
        )

    @pytest.mark.parametrize(
        "text",
        [
            "DataLoader worker (pid(s) 4711) exited unexpectedly",
            "DataLoader worker (pid 4711) is killed by signal: Bus error. It is possible that "
            "dataloader's workers are out of shared memory.",
            "unable to open shared memory object </torch_4711_1> in read-write mode: Too many "
            "open files (24)",
            "unable to allocate shared memory(shm) for file </torch_4711_1>: Resource "
            "temporarily unavailable (11)",
            "Too many open files. Communication with the workers is no longer possible.",
        ],
    )
    def test_a_process_that_died(self, text):
        assert "`num_workers=0`" in str(explain(RuntimeError(text)))

    def test_what_an_error_was_raised_from_counts(self):
        below, above = os_error(errno.ENOSPC), RuntimeError("the logger failed")
        above.__cause__ = ValueError("the file failed")
        above.__cause__.__cause__ = below
        assert explain(above) == explain(below)

    def test_what_only_came_before_does_not_count(self):
        """A mistake of ours while another error is handled is still one."""
        mistake = KeyError("key")
        mistake.__context__ = os_error(errno.ENOSPC)
        assert explain(mistake) is None

    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("shapes do not match"),
            ValueError("out of memory"),  # no error of torch's
            KeyError("DataLoader worker (pid"),
            FileNotFoundError(errno.ENOENT, "No such file", "a"),
            OSError("no number"),
        ],
    )
    def test_a_mistake_of_ours_is_none_of_these(self, error):
        assert explain(error) is None
