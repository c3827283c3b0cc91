import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from delta_transfer import estimate_attention
from delta_transfer.attention import cache as module
from delta_transfer.attention.cache import EstimationSettings, cache_folder, load_or_estimate
from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.utils import files
from tests.networks import conv_net

MEASUREMENT = EstimationSettings(
    weights_fingerprint="1" * 64,
    head_fingerprint="2" * 64,
    taps=("norm1", "conv3"),
    data_fingerprint="3" * 64,
    task_type="Multiclass()",
    preprocessing={"image_size": 96, "mean": [0.5, 0.5, 0.5], "preset": "default"},
    estimator="refined",
    tolerance=None,
    normalization=None,
    seed=0,
    batch_size=32,
    device="cpu",
)


@pytest.fixture(scope="module")
def attention() -> ChannelAttention:
    x, y = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    taps = MEASUREMENT.taps
    return estimate_attention(conv_net(), [(x, y)], num_outputs=3, taps=taps, estimator="gradient")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where attention is kept, which is not there yet."""
    monkeypatch.setenv("DELTA_TRANSFER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "attention"


class Measuring:
    """Gives the attention, and takes note of what it was asked."""

    def __init__(self, attention: ChannelAttention) -> None:
        self.attention = attention
        self.partial: list[Path | None] = []

    def __call__(self, partial: Path | None) -> ChannelAttention:
        self.partial.append(partial)
        return self.attention


@pytest.fixture
def measure(attention) -> Measuring:
    return Measuring(attention)


def file_of(folder: Path) -> Path:
    return folder / f"{MEASUREMENT.cache_key}.safetensors"


def same(first: ChannelAttention, second: ChannelAttention) -> bool:
    assert first.taps == second.taps
    return all(torch.equal(first.scores[tap], second.scores[tap]) for tap in first.taps)


class TestKey:
    def test_it_is_a_name_for_a_file_and_always_the_same(self):
        assert len(MEASUREMENT.cache_key) == 64
        assert int(MEASUREMENT.cache_key, 16)
        assert dataclasses.replace(MEASUREMENT).cache_key == MEASUREMENT.cache_key

    @pytest.mark.parametrize(
        "change",
        [
            {"weights_fingerprint": "4" * 64},
            {"head_fingerprint": "4" * 64},
            {"taps": ("conv3", "norm1")},
            {"taps": ("norm1conv3",)},
            {"data_fingerprint": "4" * 64},
            {"preprocessing": {**MEASUREMENT.preprocessing, "image_size": 97}},
            {"preprocessing": {**MEASUREMENT.preprocessing, "preset": "paper"}},
            {"estimator": "exact"},
            {"tolerance": 0.05, "normalization": (5.0, None, False)},
            {"seed": 1},
            {"batch_size": 31},
            {"device": "cuda"},
        ],
        ids=str,
    )
    def test_everything_that_scores_depend_on_changes_it(self, change):
        assert dataclasses.replace(MEASUREMENT, **change).cache_key != MEASUREMENT.cache_key

    def test_so_does_every_field(self):
        for field in dataclasses.fields(EstimationSettings):
            other = dataclasses.replace(MEASUREMENT, **{field.name: "something else"})
            assert other.cache_key != MEASUREMENT.cache_key, field.name

    @pytest.mark.parametrize("changed", ["delta-transfer", "torch", None])
    def test_so_do_the_versions_of_what_measures_and_that_of_the_key(self, monkeypatch, changed):
        before = MEASUREMENT.cache_key
        if changed is None:
            monkeypatch.setattr(module, "_FORMAT", module._FORMAT + 1)
        else:
            version = module.importlib.metadata.version
            monkeypatch.setattr(
                module.importlib.metadata,
                "version",
                lambda name: "9.9" if name == changed else version(name),
            )
        assert MEASUREMENT.cache_key != before

    @pytest.mark.parametrize(
        ("version", "same"),
        [("1.2.1.dev3+gabc", True), ("1.2.1", True), ("1.2.1rc1", False), ("1.2.2.dev3", False)],
    )
    def test_a_commit_of_ours_does_not_invalidate_it(self, monkeypatch, version, same):
        def key(ours):
            found = {"delta-transfer": ours, "torch": "2.10.0+cpu"}
            monkeypatch.setattr(module.importlib.metadata, "version", found.__getitem__)
            return MEASUREMENT.cache_key

        assert (key(version) == key("1.2.1.dev2+gdef.d20260101")) == same


class TestFolder:
    def test_it_is_in_the_users_cache_where_no_other_is_named(self, monkeypatch, tmp_path):
        monkeypatch.delenv("DELTA_TRANSFER_CACHE")
        monkeypatch.setattr(
            files.platformdirs, "user_cache_path", lambda name, appauthor: tmp_path / name
        )
        expected = tmp_path / "delta-transfer" / "attention"
        assert cache_folder() == expected
        monkeypatch.setenv("DELTA_TRANSFER_CACHE", "")
        assert cache_folder() == expected

    def test_another_may_lie_in_the_home_of_the_user(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("DELTA_TRANSFER_CACHE", "~/mine")
        assert cache_folder() == tmp_path / "mine" / "attention"

    def test_tests_do_not_touch_that_of_the_user(self, cache, monkeypatch):
        monkeypatch.undo()
        assert cache_folder() == cache / "attention"


class TestMeasuring:
    def test_it_is_done_once_and_a_hit_is_said(self, measure, attention, folder, caplog):
        caplog.set_level(logging.INFO, "delta_transfer")
        assert same(load_or_estimate(MEASUREMENT, measure), attention)
        assert not caplog.records
        found = load_or_estimate(MEASUREMENT, measure)
        assert same(found, attention)
        assert len(measure.partial) == 1
        (record,) = caplog.records
        assert record.message == f"channel attention: cached estimate {file_of(folder)}"
        for field in dataclasses.fields(ChannelAttention):
            if field.name != "data":
                first, second = getattr(found, field.name), getattr(attention, field.name)
                assert plain(first) == plain(second), field.name

    def test_another_measurement_is_made_beside_it(self, measure, folder):
        load_or_estimate(MEASUREMENT, measure)
        load_or_estimate(dataclasses.replace(MEASUREMENT, seed=1), measure)
        assert len(measure.partial) == 2
        assert len(list(folder.iterdir())) == 2

    def test_an_interrupted_one_has_a_checkpoint_beside_it(self, measure, folder):
        load_or_estimate(MEASUREMENT, measure)
        (partial,) = measure.partial
        assert partial == folder / f"{MEASUREMENT.cache_key}.checkpoint"
        assert partial.parent.is_dir()

    def test_an_error_leaves_nothing_but_that(self, folder):
        def fail(partial: Path | None) -> ChannelAttention:
            assert partial is not None
            partial.write_text("half")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt, match="rerun the same command"):
            load_or_estimate(MEASUREMENT, fail)
        assert [path.name for path in folder.iterdir()] == [f"{MEASUREMENT.cache_key}.checkpoint"]

    def test_an_interruption_promises_nothing_where_nothing_of_it_is_kept(self, folder):
        def stop(partial: Path | None) -> ChannelAttention:
            raise KeyboardInterrupt

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "another.checkpoint").touch()
        with pytest.raises(KeyboardInterrupt) as error:
            load_or_estimate(MEASUREMENT, stop)
        assert str(error.value) == ""

    @pytest.mark.parametrize("damage", ["half", "other", "empty", "text", "not a number", "folder"])
    def test_a_damaged_file_is_estimated_again_and_replaced(
        self, measure, attention, folder, damage, tmp_path
    ):
        file = file_of(folder)
        load_or_estimate(MEASUREMENT, measure)
        whole = file.read_bytes()
        if damage == "other":  # of another key, under this one's name
            load_or_estimate(dataclasses.replace(MEASUREMENT, seed=1), measure)
            (other,) = (path for path in folder.iterdir() if path != file)
            other.replace(file)
            measure.partial.pop()
        elif damage == "not a number":
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata()
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            tensors["scores/norm1"].fill_(torch.nan)
            file.write_bytes(save(tensors, metadata=metadata))
        elif damage == "folder":
            file.unlink()
            file.mkdir()
        else:
            content = {"half": whole[: len(whole) // 2], "empty": b"", "text": b"no tensors"}
            file.write_bytes(content[damage])
        assert same(load_or_estimate(MEASUREMENT, measure), attention)
        assert len(measure.partial) == 2
        if damage != "folder":  # which is nobody's
            assert file.read_bytes() == whole

    def test_a_place_that_cannot_be_written_is_no_error(
        self, measure, attention, tmp_path, monkeypatch, caplog
    ):
        caplog.set_level(logging.DEBUG, "delta_transfer")
        (tmp_path / "file").touch()
        monkeypatch.setenv("DELTA_TRANSFER_CACHE", str(tmp_path / "file"))
        for _ in range(2):
            assert same(load_or_estimate(MEASUREMENT, measure), attention)
        assert measure.partial == [None, None]
        assert {record.levelno for record in caplog.records} == {logging.DEBUG}

    def test_nor_is_a_folder_without_the_right_to_write(self, measure, folder, monkeypatch):
        load_or_estimate(MEASUREMENT, measure)
        monkeypatch.setattr(os, "access", lambda path, mode: path != folder)
        load_or_estimate(MEASUREMENT, measure)  # what is there can be read
        load_or_estimate(dataclasses.replace(MEASUREMENT, seed=1), measure)
        assert measure.partial[1:] == [None]

    def test_nor_is_a_full_disk(self, measure, attention, folder, monkeypatch, caplog):
        def fail(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        caplog.set_level(logging.DEBUG, "delta_transfer")
        monkeypatch.setattr("os.fsync", fail)
        assert same(load_or_estimate(MEASUREMENT, measure), attention)
        assert not list(folder.iterdir())
        assert {record.levelno for record in caplog.records} == {logging.DEBUG}


def plain(value: Any) -> str:
    """Every bit of a value."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {value.tolist()}"
    if isinstance(value, dict):
        return str({name: plain(part) for name, part in value.items()})
    return repr(value)
