import errno
import logging
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from delta_transfer.backbones.base import InputSpec
from delta_transfer.config.train import TrainOptions
from delta_transfer.data.image_cache import writer as writer_module
from delta_transfer.data.image_cache.reader import ImageCacheReader
from delta_transfer.data.image_cache.shards import CacheShard, CacheShardWriter
from delta_transfer.data.image_cache.writer import ImageCacheWriter
from delta_transfer.data.images.resize import Resize
from delta_transfer.data.inspection import inspect_images
from delta_transfer.data.sources.folder import FolderReader
from delta_transfer.data.task import Split, TaskData
from delta_transfer.training.loaders import Dataloaders, resizes_by_split

SPEC = InputSpec(
    size=16, crop_pct=0.7, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), interpolation="bicubic"
)
SMALL = {name: (Resize(side=8),) for name in ("train", "val", "test")}
GENERATOR = np.random.default_rng(0)


def noise(*shape: int, dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(GENERATOR.integers(0, np.iinfo(dtype).max + 1, shape, dtype))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of cached images, for this test alone."""
    monkeypatch.setenv("DELTA_TRANSFER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of many kinds, shapes and depths."""
    root = tmp_path_factory.mktemp("odd")
    turned = Image.Exif()
    turned[0x0112] = 6
    noise(40, 31).save(root / "grey.png")
    noise(30, 25, dtype=np.uint16).save(root / "sixteen.png")
    noise(33, 44, 3).quantize(16).save(root / "palette.png")
    noise(24, 24, 4).save(root / "transparent.png")
    noise(50, 20, 3).save(root / "turned.jpg", exif=turned)
    noise(700, 9, 3).save(root / "tall.png")
    noise(2, 300, 3).save(root / "wide.png")
    noise(1, 1, 3).save(root / "dot.png")
    return root


@pytest.fixture
def some(tmp_path: Path) -> Path:
    """A folder of eight small images that may be written to."""
    root = tmp_path / "some"
    root.mkdir()
    for number in range(8):
        noise(12, 10, 3).save(root / f"{number}.png")
    return root


def task_of(root: Path) -> TaskData:
    paths = tuple(sorted(path.name for path in root.iterdir()))
    split = Split(paths, tuple(number % 2 for number in range(len(paths))), FolderReader(root))
    half = len(paths) // 2
    train, test = split.subset(range(half)), split.subset(range(half, len(paths)))
    return TaskData(name="t", classes=("a", "b"), train=train, val=train, test=test, val_drawn=True)


def cache_images(root: Path, wanted=SMALL, limit: int | None = None) -> TaskData:
    with ImageCacheWriter(wanted, max_bytes=limit) as writer:
        return inspect_images(task_of(root), num_threads=2, cache_writer=writer).task


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.shard"))


def resized(split: Split) -> dict[str, torch.Tensor]:
    """The independent reference: each image decoded and resized here."""
    found = {}
    for path in split.paths:
        image = split.read(path)
        scale = 8 / min(image.size)
        size = [int(side * scale) for side in image.size]
        made = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
        found[path] = torch.from_numpy(made.transpose(2, 0, 1).copy())
    return found


def assert_cached(task: TaskData) -> None:
    for split in (task.train, task.test):
        for path, expected in resized(split).items():
            assert torch.equal(split.image_cache.find(path, Resize(side=8)), expected)


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize("augment", ["default", "none", "trivialaugment"])
def test_batches_are_the_same_to_the_bit_and_nothing_is_decoded_for_them(odd, preset, augment):
    config = TrainOptions(
        data="x", preset=preset, augment=augment, batch_size=3, num_workers=0, device="cpu", seed=4
    ).resolve()
    task = cache_images(odd, resizes_by_split(SPEC, config, val_drawn=True))

    def batches(task: TaskData) -> Iterator[torch.Tensor]:
        loaders = Dataloaders(SPEC, config, torch.device("cpu"))
        training = loaders.train_dataloader(task.train)
        for epoch in (0, 3):
            training.sampler.set_epoch(epoch)
            yield from (inputs for inputs, _ in training)
        for split in (task.train, task.test):
            yield from (inputs for inputs, _ in loaders.eval_dataloader(split))
        yield from (inputs for inputs, _ in loaders.test_dataloader(task.test))

    expected = list(batches(task_of(odd)))
    for split in (task.train, task.val, task.test):
        object.__setattr__(split, "read", None)
    found = list(batches(task))
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert all(one.stride() == other.stride() for one, other in zip(found, expected, strict=True))


def test_resized_images_are_cached(some, folder):
    assert_cached(cache_images(some))
    (shard,) = shards(folder)
    before = shard.stat().st_ino
    assert_cached(cache_images(some))  # by what is there
    assert [path.stat().st_ino for path in shards(folder)] == [before]


def test_transforms_have_caches_of_their_own(some, folder):
    cache_images(some)
    task = cache_images(some, {"train": (Resize(side=9), Resize(side=8, square=True))})
    found = task.train.image_cache
    assert found.find("0.png", Resize(side=9)).shape == (3, 10, 9)
    assert found.find("0.png", Resize(side=8, square=True)).shape == (3, 8, 8)
    assert found.find("0.png", Resize(side=8)) is None
    assert found.find("7.png", Resize(side=9)) is None  # of the test split
    assert len(shards(folder)) == 3


def test_a_subset_and_copies_write_nothing(some, folder):
    cache_images(some)
    before = [path.stat() for path in shards(folder)]
    (some / "7.png").unlink()
    shutil.copy(some / "1.png", some / "8.png")
    assert_cached(cache_images(some))
    assert [path.stat().st_size for path in shards(folder)] == [each.st_size for each in before]


def test_an_image_that_changes_under_its_name_is_noticed(some):
    cache_images(some)
    noise(12, 10, 3).save(some / "3.png")
    assert_cached(cache_images(some))


def test_a_task_with_a_cache_can_be_pickled(some):
    task = cache_images(some)
    assert_cached(pickle.loads(pickle.dumps(task)))


@pytest.mark.parametrize("damage", ["bit", "index", "half", "end", "empty", "other"])
def test_a_damaged_file_is_detected_and_written_again(some, folder, damage):
    cache_images(some)
    (shard,) = shards(folder)
    content = bytearray(shard.read_bytes())
    content[40] ^= 4
    contents = {
        "bit": content,
        "index": shard.read_bytes().replace(b", 9, 8, ", b",9999,8,"),
        "half": shard.read_bytes()[: len(content) // 2],
        "end": shard.read_bytes()[:-1],
        "empty": b"",
        "other": b"Dear Sir" * 100,
    }
    assert contents[damage] != shard.read_bytes()
    shard.write_bytes(contents[damage])
    assert_cached(cache_images(some))
    assert_cached(cache_images(some))
    assert all(made.entries for made in map(CacheShard, shards(folder)))


def both(root: Path, barrier, results) -> None:
    barrier.wait()
    task = cache_images(root)
    assert_cached(task)
    results.put(len(task.train))


def test_shards_of_another_machine_are_ignored(folder):
    writer = CacheShardWriter(folder / "x")
    writer.add("a", torch.zeros(3, 4, 4, dtype=torch.uint8))
    shard = writer.finish()
    kept = ImageCacheReader({"r": {"path": (shard, shard.entries["a"])}})
    assert kept.on_this_machine().has("path", "r")
    shard.path.unlink()
    assert not kept.on_this_machine().has("path", "r")


def test_a_shard_is_replaced_only_by_one_of_the_same_content(folder):
    images = {name: torch.full((3, 4, 4 + i), i, dtype=torch.uint8) for i, name in enumerate("ab")}

    def shard(order: str) -> CacheShard:
        writer = CacheShardWriter(folder / "x")
        for name in order:
            writer.add(name, images[name])
        return writer.finish()

    first = shard("ab")
    assert shard("ab").path == first.path
    assert shard("ba").path != first.path
    for name, expected in images.items():
        assert torch.equal(first.read(first.entries[name]), expected)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_two_processes_at_once_do_no_harm(some, folder):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=both, args=(some, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(shards(folder)) in (1, 2)  # a file for each order in which they were written
    assert {path for path in folder.rglob("*") if path.is_file()} == set(shards(folder))
    assert_cached(cache_images(some))


class TestNothingCanBeCached:
    def assert_decoded(self, task: TaskData, caplog: pytest.LogCaptureFixture, reason: str) -> None:
        config = TrainOptions(
            data="x", image_size=16, num_workers=0, device="cpu", seed=4
        ).resolve()
        spec = InputSpec(
            size=16, crop_pct=0.9, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bilinear"
        )
        loaders = Dataloaders(spec, config, torch.device("cpu"))
        inputs = torch.cat([inputs for inputs, _ in loaders.eval_dataloader(task.train)])
        assert inputs.shape == (4, 3, 16, 16)
        (line,) = [each for each in caplog.messages if "decoded each time" in each]
        assert reason in line

    def test_in_a_folder_that_cannot_be_written(self, some, monkeypatch, caplog):
        caplog.set_level(logging.INFO)
        monkeypatch.setenv("DELTA_TRANSFER_CACHE", "/dev/null")
        self.assert_decoded(cache_images(some), caplog, "Not a directory")

    @pytest.mark.parametrize("after", [0, 3])
    @pytest.mark.parametrize("method", ["add", "finish"])
    def test_on_a_full_disk(self, some, folder, monkeypatch, caplog, after, method):
        caplog.set_level(logging.INFO)
        write = CacheShardWriter.add

        def add(self: CacheShardWriter, digest: str, pixels: torch.Tensor) -> None:
            if method == "add" and len(self._entries) == after:
                self._file.write(b"half of it")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(self, digest, pixels)

        def finish(self: CacheShardWriter) -> CacheShard:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(CacheShardWriter, "add", add)
            if method == "finish":
                patch.setattr(CacheShardWriter, "finish", finish)
            task = cache_images(some)
        assert not any(
            task.train.image_cache.has(path, Resize(side=8)) for path in task.train.paths
        )
        self.assert_decoded(task, caplog, "No space left")
        assert not [path for path in folder.rglob("*") if path.is_file()]
        assert_cached(cache_images(some))

    def test_it_is_gone_meanwhile(self, some, folder):
        task = pickle.loads(pickle.dumps(cache_images(some)))
        shutil.rmtree(folder)
        assert task.train.image_cache.find("0.png", Resize(side=8)) is None


class TestRoom:
    def test_the_limit_holds(self, some, folder, caplog):
        caplog.set_level(logging.INFO)
        size = next(iter(resized(task_of(some).train).values())).nbytes
        task = cache_images(some, limit=3 * size)
        splits = (task.train, task.test)
        kept = [s.image_cache.has(p, Resize(side=8)) for s in splits for p in s.paths]
        assert sum(kept) == 3
        assert len([each for each in caplog.messages if "decoded each time" in each]) == 1

    def test_the_least_recently_used_shards_are_removed(self, some, folder, tmp_path):
        sizes = {}
        for side, age in ((4, 300), (5, 100), (6, 200)):
            before = set(shards(folder))
            cache_images(some, {"train": (Resize(side=side),)})
            (sizes[side],) = set(shards(folder)) - before
            os.utime(sizes[side], (1e9 - age, 1e9 - age))
        total = sum(path.stat().st_size for path in shards(folder))
        cache_images(some, {"train": (Resize(side=4),)})  # used, and so the newest
        cache_images(some, {"train": (Resize(side=7),)}, limit=total + 10)
        assert sizes[4].exists()
        assert sizes[5].exists()
        assert not sizes[6].exists()

    def test_shards_of_this_run_stay(self, some, folder):
        cache_images(some)
        (first,) = shards(folder)
        task = cache_images(some, {"train": (*SMALL["train"], Resize(side=9))}, limit=10)
        assert shards(folder) == [first]
        assert task.train.image_cache.has("0.png", Resize(side=8))

    def test_the_default_limit_is_a_part_of_the_free_space(self, some, monkeypatch):
        usage = shutil.disk_usage(some)._replace(free=50)
        monkeypatch.setattr(writer_module.shutil, "disk_usage", lambda path: usage)
        assert not cache_images(some).train.image_cache.has("0.png", Resize(side=8))

    def test_unfinished_shards_are_removed_after_a_day(self, some, folder):
        cache_images(some)
        old, new = (shards(folder)[0].with_name(f".{name}.unfinished") for name in ("old", "new"))
        for path in (old, new):
            path.write_bytes(b"x")
        os.utime(old, (1e9, 1e9))
        cache_images(some)
        assert not old.exists()
        assert new.exists()

    def test_shards_have_a_maximum_size(self, some, folder, monkeypatch):
        monkeypatch.setattr(writer_module, "_MAX_SHARD_BYTES", 400)
        assert_cached(cache_images(some))
        assert len(shards(folder)) > 2
        assert_cached(cache_images(some))


def test_an_interruption_leaves_nothing_unfinished(some, folder):
    def interrupt() -> None:
        with ImageCacheWriter(SMALL) as writer:
            writer.add("train", "0.png", "0" * 32, Image.new("RGB", (9, 9)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert not [path for path in folder.rglob("*") if path.is_file()]
