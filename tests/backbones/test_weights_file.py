import argparse
import contextlib
import gzip
import io
import os
import pickle
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from delta_transfer.backbones.weights_file import read_weights
from delta_transfer.errors import UserError
from tests.networks import conv_net


@pytest.fixture
def state() -> dict[str, Tensor]:
    return dict(conv_net().state_dict())


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "weights.pth"


def torch_bytes(value: object, *, old: bool = False) -> bytes:
    content = io.BytesIO()
    torch.save(value, content, _use_new_zipfile_serialization=not old)
    return content.getvalue()


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return list(found) == list(wanted) and all(torch.equal(found[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "ckpt"])
def test_a_state_dict_is_read_whatever_its_files_suffix(tmp_path, state, old, suffix):
    file = tmp_path / f"weights.{suffix}"
    file.write_bytes(torch_bytes(state, old=old))
    groups = read_weights(file)
    assert list(groups) == [""]
    assert same(groups[""], state)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
def test_safetensors_are_known_by_their_content(tmp_path, state, name):
    save_file(state, tmp_path / name)
    groups = read_weights(str(tmp_path / name))
    assert {n: t.tolist() for n, t in groups[""].items()} == {
        n: t.tolist() for n, t in state.items()
    }


def test_a_checkpoint_gives_each_of_its_state_dicts_and_nothing_else(file, state):
    network = conv_net()
    optimizer = torch.optim.AdamW(network.parameters())
    sum(p.sum() for p in network.parameters()).backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),  # as timm, DINO and MAE have it
        "state_dict": state,
        "optimizer": optimizer.state_dict(),
        "nested": {"deeper": {"state": state}, "note": "text"},
        "odd": {"meta": torch.ones(1, device="meta")},
    }
    file.write_bytes(torch_bytes(checkpoint))
    groups = read_weights(file)
    assert list(groups) == ["state_dict.", "nested.deeper.state."]
    assert all(same(group, state) for group in groups.values())


def test_a_checkpoint_that_contains_itself_is_read(file):
    checkpoint: dict[str, object] = {"x": torch.ones(1)}
    checkpoint["again"] = checkpoint
    file.write_bytes(torch_bytes(checkpoint))
    assert len(read_weights(file)) == 4


class Malicious:
    """Creates a file when it is unpickled without protection."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (os.system, (f"touch '{self.target}'",))


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_a_pickle_that_would_run_code_is_not_run(tmp_path, file, state, old):
    target = tmp_path / "written"
    file.write_bytes(torch_bytes({"state_dict": state, "extra": Malicious(target)}, old=old))
    with pytest.raises(UserError, match=r"system, which could run any code") as caught:
        read_weights(file)
    assert "weights_only=False" in str(caught.value)
    assert "safetensors.torch.save_file" in str(caught.value)
    assert not target.exists()
    torch.load(file, weights_only=False)  # the trap itself works
    assert target.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bare_pickle_is_not_run_either(tmp_path, file, protocol):
    target = tmp_path / "written"
    file.write_bytes(pickle.dumps(Malicious(target), protocol=protocol))
    with pytest.raises(UserError, match=r"not of torch.save|has no weights"):
        read_weights(file)
    assert not target.exists()


def test_a_pickled_module_is_rejected_with_its_class(file):
    file.write_bytes(torch_bytes(conv_net()))
    with pytest.raises(UserError, match=r"contains tests.networks.ConvNet"):
        read_weights(file)


def test_the_users_list_of_safe_classes_is_as_it_was(file, state):
    before = torch.serialization.get_safe_globals()
    file.write_bytes(torch_bytes({"state_dict": state, "args": argparse.Namespace()}))
    read_weights(file)
    assert set(torch.serialization.get_safe_globals()) == set(before)


def tar_bytes() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return content.getvalue()


def npz_bytes() -> bytes:
    content = io.BytesIO()
    np.savez(content, weight=np.ones(3))
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty; use safetensors, or"),
        (b"weight 1 2 3\n" * 50, "has no weights; use safetensors"),
        (b"\n<!DOCTYPE html><html>", "is a web page: download it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS.* git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is HDF5"),
        (b"\x93NUMPY\x01\x00", "is a NumPy array"),
        (gzip.compress(b"weights", mtime=0), "compressed with gzip: unpack it"),
        (tar_bytes(), "is a tar archive"),
        (npz_bytes(), "zip archive is not of torch.save"),
        (torch_bytes({"epoch": 3}), "the file has no tensors"),
        (torch_bytes(torch.ones(3)), "the file has no tensors"),
    ],
)
def test_other_formats_are_rejected_by_name(file, content, message):
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"^weights {file}: .*{message}"):
        read_weights(file)


def test_a_torchscript_archive_is_rejected_with_a_fix(file):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    with pytest.raises(UserError, match=r"TorchScript.*torch.jit.load\('weights.pth'\)"):
        read_weights(file)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_file_is_rejected(tmp_path, state, kind, share):
    file = tmp_path / ("cut.safetensors" if kind == "safetensors" else "cut.pth")
    if kind == "safetensors":
        save_file(state, file)
    else:
        file.write_bytes(torch_bytes(state, old=kind == "legacy"))
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"the file is damaged or truncated"):
        read_weights(file)


def test_a_damaged_file_never_fails_otherwise(file, state):
    generator = np.random.default_rng(0)
    for old in (False, True):
        content = torch_bytes(state, old=old)
        for _ in range(40):
            damaged = bytearray(content)
            for place in generator.integers(0, min(len(content), 2000), 5):
                damaged[place] = generator.integers(256)
            file.write_bytes(damaged)
            with contextlib.suppress(UserError):
                read_weights(file)


def test_an_empty_safetensors_file_is_rejected(tmp_path):
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="the file has no tensors"):
        read_weights(tmp_path / "none.safetensors")


def test_a_folder_or_a_missing_file_is_named(tmp_path, state):
    with pytest.raises(UserError, match=r"nothing.pth: file not found"):
        read_weights(tmp_path / "nothing.pth")
    with pytest.raises(UserError, match="is a folder: use a file in it"):
        read_weights(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"is a folder: use .*/model.safetensors"):
        read_weights(tmp_path)


def test_a_file_that_may_not_be_read_is_named(file, state, monkeypatch):
    file.write_bytes(torch_bytes(state))

    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        read_weights(file)
