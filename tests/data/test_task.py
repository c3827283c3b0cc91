import pickle

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from delta_transfer.data.images.augment import eval_transform, train_transform
from delta_transfer.data.samplers import DistributedEpochSampler, EpochSampler
from delta_transfer.data.task import ImageDataset, Split

NORMAL = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "interpolation": "bilinear"}
AUGMENT = train_transform(size=12, crop_pct=0.6, **NORMAL)
PLAIN = eval_transform(size=12, crop_pct=0.6, **NORMAL)


def gradient(path: str) -> Image.Image:
    """An image that looks different wherever it is cropped."""
    return Image.linear_gradient("L").rotate(int(path) * 20 + 10).convert("RGB")


@pytest.fixture
def split() -> Split:
    return Split(tuple(str(number) for number in range(10)), tuple(range(10)), gradient)


def epoch_of(dataset: ImageDataset, epoch: int, *, workers: int) -> dict[int, torch.Tensor]:
    sampler = EpochSampler(len(dataset), seed=3)
    sampler.set_epoch(epoch)
    loader = DataLoader(dataset, batch_size=3, sampler=sampler, num_workers=workers)
    return {
        int(label): image
        for images, labels in loader
        for image, label in zip(images, labels, strict=True)
    }


class TestSplit:
    def test_subset_has_the_requested_order(self, split: Split) -> None:
        subset = split.subset([7, 2])
        assert (subset.paths, subset.labels, len(subset)) == (("7", "2"), (7, 2), 2)
        assert subset.read is split.read

    def test_unequal_lengths_are_an_error(self) -> None:
        with pytest.raises(ValueError, match="2 and 1"):
            Split(("a", "b"), (0,), gradient)


class TestImageDataset:
    def test_gives_a_tensor_and_a_label(self, split: Split) -> None:
        image, label = ImageDataset(split, AUGMENT, seed=0)[4]
        assert (image.shape, image.dtype, label) == ((3, 12, 12), torch.float32, 4)
        assert type(image) is torch.Tensor

    def test_augmentation_depends_on_seed_epoch_and_index_alone(self, split: Split) -> None:
        dataset = ImageDataset(split, AUGMENT, seed=0)
        first = dataset[(2, 5)][0]
        torch.rand(100)
        for index in range(10):
            dataset[(1, index)]
        assert torch.equal(dataset[(2, 5)][0], first)
        assert torch.equal(pickle.loads(pickle.dumps(dataset))[(2, 5)][0], first)
        assert not torch.equal(dataset[(3, 5)][0], first)
        assert not torch.equal(ImageDataset(split, AUGMENT, seed=1)[(2, 5)][0], first)

    def test_samples_are_augmented_independently(self) -> None:
        same = Split(("1",) * 10, tuple(range(10)), gradient)
        dataset = ImageDataset(same, AUGMENT, seed=0)
        assert len({dataset[index][0].numpy().tobytes() for index in range(10)}) > 5

    def test_an_index_alone_is_epoch_zero(self, split: Split) -> None:
        dataset = ImageDataset(split, AUGMENT, seed=0)
        assert torch.equal(dataset[5][0], dataset[(0, 5)][0])

    def test_leaves_the_global_random_state(
        self, split: Split, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reseeded = []
        for device in (torch.cuda, torch.mps, torch.xpu):
            monkeypatch.setattr(device, "manual_seed", reseeded.append)
        monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
        before = torch.get_rng_state()
        ImageDataset(split, AUGMENT, seed=0)[(2, 5)]
        assert torch.equal(torch.get_rng_state(), before)
        assert reseeded == []

    def test_gives_the_random_state_back_on_an_error(self, split: Split) -> None:
        def broken(image: Image.Image) -> torch.Tensor:
            torch.rand(3)
            raise RuntimeError("broken")

        before = torch.get_rng_state()
        with pytest.raises(RuntimeError, match="broken"):
            ImageDataset(split, broken, seed=0)[0]
        assert torch.equal(torch.get_rng_state(), before)

    def test_without_a_seed_the_epoch_makes_no_difference(self, split: Split) -> None:
        dataset = ImageDataset(split, PLAIN)
        assert torch.equal(dataset[5][0], dataset[(8, 5)][0])

    def test_without_a_seed_random_numbers_are_the_callers(self, split: Split) -> None:
        dataset = ImageDataset(split, lambda image: torch.rand(2))
        torch.manual_seed(5)
        drawn = dataset[0][0]
        torch.manual_seed(5)
        assert torch.equal(drawn, torch.rand(2))

    # Newer Pythons warn of every fork of a process that has threads, as DataLoader does.
    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    def test_workers_make_no_difference(self, split: Split) -> None:
        dataset = ImageDataset(split, AUGMENT, seed=0)
        alone = epoch_of(dataset, 4, workers=0)
        together = epoch_of(dataset, 4, workers=2)
        assert list(alone) == list(together)
        assert all(torch.equal(alone[label], together[label]) for label in alone)

    def test_an_interruption_makes_no_difference(self, split: Split) -> None:
        dataset = ImageDataset(split, AUGMENT, seed=0)
        through = [epoch_of(dataset, epoch, workers=0) for epoch in range(3)]
        resumed = epoch_of(ImageDataset(split, AUGMENT, seed=0), 2, workers=0)
        assert list(resumed) == list(through[2])
        assert all(torch.equal(resumed[label], through[2][label]) for label in resumed)


class TestEpochSampler:
    def test_is_a_permutation_that_depends_on_seed_and_epoch(self) -> None:
        def order(seed: int, epoch: int) -> list[int]:
            sampler = EpochSampler(50, seed=seed)
            sampler.set_epoch(epoch)
            pairs = list(sampler)
            assert {epoch for epoch, _ in pairs} == {epoch}
            return [index for _, index in pairs]

        assert sorted(order(0, 0)) == list(range(50))
        assert order(0, 0) == order(0, 0)
        assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9

    def test_has_a_length_and_starts_at_epoch_zero(self) -> None:
        sampler = EpochSampler(4, seed=1)
        assert len(sampler) == 4
        assert {epoch for epoch, _ in sampler} == {0}

    def test_leaves_the_global_random_state(self) -> None:
        before = torch.get_rng_state()
        list(EpochSampler(9, seed=0))
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 21])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shares_of_an_order_are_its_batches_taken_together(length, processes):
    size = 8
    batches = -(-length // size)
    shares = []
    for rank in range(processes):
        order = EpochSampler(length, seed=3)
        shares.append(
            DistributedEpochSampler(order, batch_size=size, rank=rank, world_size=processes)
        )
        shares[-1].set_epoch(2)
    whole = EpochSampler(length, seed=3)
    whole.set_epoch(2)
    own = [list(share) for share in shares]
    assert [len(share) for share in shares] == [len(rows) for rows in own]
    for batch in range(batches):
        start = batch * size // processes
        expected = list(whole)[batch * size : (batch + 1) * size]
        found = []
        for share, rows in zip(shares, own, strict=True):
            part = rows[start : start + size // processes]
            count, of = share.sizes(batch)
            assert part  # or there were fewer batches in this process than in others
            assert of == len(expected)
            found += part[:count]
        assert sorted(found) == sorted(expected)
    shares[0].resume(2, num_done=1)
    assert list(shares[0]) == own[0][1:]
    assert list(shares[0]) == own[0]
