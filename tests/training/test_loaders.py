import dataclasses

import pytest
import torch
from torchvision.transforms import v2

from delta_transfer.backbones.base import InputSpec
from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.data.image_cache.writer import ImageCacheWriter
from delta_transfer.data.images.augment import official_eval_transform, ten_crop_transform
from delta_transfer.data.images.resize import Resize
from delta_transfer.data.inspection import inspect_images
from delta_transfer.data.registry import load_data
from delta_transfer.data.task import TaskData
from delta_transfer.errors import UserError
from delta_transfer.training import loaders as module
from delta_transfer.training.loaders import (
    Dataloaders,
    count_workers,
    even_batch_size,
    resizes_by_split,
)
from delta_transfer.utils import devices
from delta_transfer.utils.seeds import derive_seed
from tests.run_folders import tiny

SPEC = InputSpec(size=32, crop_pct=0.875, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")


def made(config: TrainConfig, device: str = "cpu") -> Dataloaders:
    return Dataloaders(SPEC, config, torch.device(device))


def kept(task: TaskData, config: TrainConfig) -> TaskData:
    with ImageCacheWriter(resizes_by_split(SPEC, config, val_drawn=False)) as keeper:
        return inspect_images(task, num_threads=1, cache_writer=keeper).task


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("batch_size", [2, 8, 32])
def test_batches_are_about_equally_large(monkeypatch, batch_size, processes):
    monkeypatch.setattr(module, "world_size", lambda: processes)
    config = TrainOptions(data="x", batch_size=batch_size).resolve()
    for count in range(1, 200):
        size = even_batch_size(count, config)
        assert 1 <= size <= batch_size
        assert size % processes == 0
        batches = [min(size, count - start) for start in range(0, count, size)]
        assert len(batches) == -(-count // batch_size)  # no more than without
        # Of k batches, rounded up to processes, the last one lacks less than that of each.
        assert size - batches[-1] < processes * len(batches)


def test_the_protocol_of_the_authors_has_a_smaller_last_batch():
    config = TrainOptions(data="x", preset="paper", batch_size=32).resolve()
    assert even_batch_size(67, config) == 32


def test_training_batches_of_an_epoch_are_of_about_equal_size(images, tmp_path):
    task, config = load_data(str(images), seed=0), tiny(images, tmp_path, batch_size=11)
    assert [len(labels) for _, labels in made(config).train_dataloader(task.train)] == [8, 8, 8]


def test_plain_images_come_in_order_and_without_chance(images, tmp_path):
    task, config = load_data(str(images), seed=0), tiny(images, tmp_path, batch_size=5)
    first, second = (list(made(config).eval_dataloader(task.train)) for _ in range(2))
    assert [len(labels) for _, labels in first] == [5, 5, 5, 5, 4]
    assert torch.cat([labels for _, labels in first]).tolist() == list(task.train.labels)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("workers", "augment"),
    [(0, "default"), (2, "default"), (2, "randaugment"), (0, "trivialaugment")],
)
def test_training_images_are_a_function_of_seed_and_epoch(images, tmp_path, workers, augment):
    task = load_data(str(images), seed=0)

    def epoch(number: int, **options: int) -> torch.Tensor:
        config = tiny(images, tmp_path, augment=augment, **options)
        loader = made(config).train_dataloader(task.train)
        loader.sampler.set_epoch(number)
        return torch.cat([inputs for inputs, _ in loader])

    expected = epoch(3, seed=1)
    assert torch.equal(epoch(3, seed=1, num_workers=workers), expected)
    assert torch.equal(epoch(3, seed=1, batch_size=3), expected)
    assert not torch.equal(epoch(4, seed=1), expected)
    assert not torch.equal(epoch(3, seed=2), expected)


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_without_augmentation_they_are_the_plain_ones_in_another_order(images, tmp_path, preset):
    task = load_data(str(images), seed=0)
    config = tiny(images, tmp_path, augment="none", preset=preset)
    plain = torch.cat([inputs for inputs, _ in made(config).eval_dataloader(task.train)])
    loader = made(config).train_dataloader(task.train)
    loader.sampler.set_epoch(2)
    order = [index for _, index in loader.sampler]
    assert torch.equal(torch.cat([inputs for inputs, _ in loader]), plain[order])


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize("augment", ["randaugment", "trivialaugment"])
def test_policies_change_what_is_cropped_and_mirrored(images, tmp_path, preset, augment):
    task = load_data(str(images), seed=0)
    first, second = (
        made(tiny(images, tmp_path, augment=name, preset=preset)).train_dataloader(task.train)
        for name in ("default", augment)
    )
    policy = {"randaugment": v2.RandAugment(), "trivialaugment": v2.TrivialAugmentWide()}[augment]
    for index in range(10):
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(0, "augmentation", 3, index))
            image = task.train.read(task.train.paths[index])
            cropped = first.dataset.crop(first.dataset.transform(image))
            expected = policy(cropped)
        assert torch.equal(second.dataset[3, index][0], expected)
        assert torch.equal(first.dataset[3, index][0], cropped)


def test_order_and_augmentation_are_drawn_apart(images, tmp_path):
    task = load_data(str(images), seed=0)
    both = [made(tiny(images, tmp_path, seed=seed)).train_dataloader(task.train) for seed in (0, 1)]
    assert list(both[0].sampler) != list(both[1].sampler)
    images_of = [torch.stack([loader.dataset[2, i][0] for i in range(8)]) for loader in both]
    assert not torch.equal(*images_of)
    plain = next(iter(made(tiny(images, tmp_path)).eval_dataloader(task.train)))[0]
    assert not torch.equal(images_of[0], plain)


def test_no_worker_is_started_that_has_no_batch_to_load(images, tmp_path):
    task = load_data(str(images), seed=0)
    for workers, batch_size, expected in ((2, 8, 2), (2, 16, 1), (2, 32, 0)):
        config = tiny(images, tmp_path, num_workers=workers, batch_size=batch_size)
        assert made(config).eval_dataloader(task.train).num_workers == expected


def test_a_damaged_image_is_named(images, tmp_path):
    task = load_data(str(images), seed=0)
    (tmp_path / "bad.png").write_text("no image")
    split = dataclasses.replace(
        task.train, paths=(str(tmp_path / "bad.png"), *task.train.paths[1:])
    )
    loader = made(tiny(images, tmp_path)).eval_dataloader(split)
    with pytest.raises(UserError, match=r"cannot read the image '.*bad\.png'"):
        list(loader)


@pytest.mark.parametrize(
    ("cores", "asked", "expected"),
    [(2, None, 0), (1, None, 0), (3, None, 2), (64, None, 8), (64, 0, 0), (1, 5, 5)],
)
def test_workers_are_as_asked_or_by_the_number_of_cores(monkeypatch, cores, asked, expected):
    monkeypatch.setattr(devices.joblib, "cpu_count", lambda: cores)
    assert count_workers(asked) == expected


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(
    ("cores", "device", "asked", "expected"),
    [(64, "cpu", None, 0), (64, "cuda", None, 2), (2, "cuda", None, 0), (64, "cpu", 5, 5)],
)
def test_few_processes_load_what_is_kept(
    images, tmp_path, monkeypatch, cores, device, asked, expected
):
    config = tiny(images, tmp_path, num_workers=asked)
    task = kept(load_data(str(images), seed=0), config)
    monkeypatch.setattr(devices.joblib, "cpu_count", lambda: cores)
    assert made(config, device).train_dataloader(task.train).num_workers == expected
    half = dataclasses.replace(task.train, paths=("another", *task.train.paths[1:]))
    assert made(config, device).train_dataloader(half).num_workers == count_workers(asked)


def test_processes_load_what_is_kept_to_the_same_batches(images, tmp_path):
    task = load_data(str(images), seed=0)
    expected, found = (
        [
            inputs
            for inputs, _ in made(tiny(images, tmp_path, num_workers=workers)).train_dataloader(
                each.train
            )
        ]
        for each, workers in ((task, 0), (kept(task, tiny(images, tmp_path)), 2))
    )
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    ("batch_norm", "batch_size", "sizes"),
    [
        ("train", 2, [2] * 11),
        ("frozen", 2, [*[2] * 11, 1]),
        ("train", 1, [1] * 23),
    ],
)
def test_batch_norm_that_trains_is_given_no_image_alone(
    images, tmp_path, batch_norm, batch_size, sizes
):
    task = load_data(str(images), seed=0)
    config = tiny(images, tmp_path, batch_norm=batch_norm, batch_size=batch_size)
    train = task.train.subset(range(23))
    assert [len(labels) for _, labels in made(config).train_dataloader(train)] == sizes


class TestOfficial:
    """The preset's own transforms; what they do is tested beside them."""

    def test_plain_images_are_squares_of_the_whole(self, images, tmp_path):
        task, config = load_data(str(images), seed=0), tiny(images, tmp_path, preset="paper")
        (inputs, _), *_ = made(config).eval_dataloader(task.train)
        transform = official_eval_transform(size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
        image = task.train.read(task.train.paths[2])
        assert torch.equal(inputs[2], transform(image))

    def test_the_test_sees_ten_crops_in_batches_a_tenth_as_large(self, images, tmp_path):
        task = load_data(str(images), seed=0)
        config = tiny(images, tmp_path, preset="paper", batch_size=30)
        (inputs, _), *_ = made(config).test_dataloader(task.test)
        transform = ten_crop_transform(size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
        assert inputs.shape == (3, 10, 3, 32, 32)
        assert torch.equal(inputs[1], transform(task.test.read(task.test.paths[1])))
        plain, *_ = made(tiny(images, tmp_path)).test_dataloader(task.test)
        assert plain[0].shape == (8, 3, 32, 32)

    def test_training_images_change_their_proportions(self, images, tmp_path):
        task = load_data(str(images), seed=0)
        found = {
            preset: made(tiny(images, tmp_path, preset=preset)).train_dataloader(task.train)
            for preset in ("default", "paper")
        }
        resized = {preset: loader.dataset.transform for preset, loader in found.items()}
        assert resized == {"default": Resize(side=36), "paper": Resize(side=37, square=True)}
