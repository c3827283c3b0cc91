import pytest
import torch
from PIL import Image

from delta_transfer.data.images.decode import ImageError
from delta_transfer.data.images.loader import DeviceDataLoader
from delta_transfer.data.task import ImageDataset, Split
from delta_transfer.errors import UserError
from delta_transfer.inference.fault_tolerant_loader import (
    ReadResult,
    ReadStats,
    fault_tolerant_loader,
)


def read(path: str) -> Image.Image:
    """An image of one colour; negative ones are damaged, and -3 in a way of its own."""
    if path == "-3":
        raise UserError("the disk is on fire")
    if path.startswith("-"):
        raise ImageError(f"cannot read '{path}': it is torn; replace it", reason="it is torn")
    return Image.new("RGB", (2, 2), (int(path), 0, 0))


def fill(image: Image.Image) -> torch.Tensor:
    return torch.tensor([float(image.getpixel((0, 0))[0])])


def load(split: Split, **options: int) -> DeviceDataLoader:
    dataset = ImageDataset(split, fill)
    return DeviceDataLoader(dataset, normalise=lambda x: x, device=torch.device("cpu"), **options)


def batches(numbers: list[int], *, batch_size: int, workers: int = 0) -> list:
    split = Split(tuple(map(str, numbers)), (0,) * len(numbers), read)
    loader = load(split, batch_size=batch_size, num_workers=workers)
    return [(inputs.flatten().tolist(), found) for inputs, found in fault_tolerant_loader(loader)]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_lack_what_cannot_be_read(workers):
    assert batches([5, -1, 7, -1, -3, -1, 9], batch_size=3, workers=workers) == [
        ([5, 7], ReadResult([0, 2], [(1, "it is torn")])),
        ([], ReadResult([], [(3, "it is torn"), (4, "the disk is on fire"), (5, "it is torn")])),
        ([9], ReadResult([6], [])),
    ]


def test_the_random_state_stays_as_it_was():
    before = torch.get_rng_state()
    batches([1, 2], batch_size=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_error_of_another_kind_is_one():
    with pytest.raises(ValueError, match="invalid literal"):
        batches([1], batch_size=1) and list(fault_tolerant_loader(load(Split(("x",), (0,), read))))


class TestTally:
    def test_it_counts_and_names(self, caplog):
        tally = ReadStats(["a", "b", "c"])
        inputs = torch.zeros(2, 1)
        counted = list(tally.track([(inputs, ReadResult([0, 2], [(1, "it is torn")]))]))
        assert counted == [(inputs, [0, 2])]
        assert tally.num_samples == 2
        tally.report_unreadable()
        assert caplog.messages == [
            "1 of 3 images cannot be read and are left out; replace or remove them: "
            "'b' (it is torn)"
        ]

    def test_it_is_silent_if_all_could_be_read(self, caplog):
        tally = ReadStats(["a"])
        list(tally.track([(torch.zeros(1, 1), ReadResult([0], []))]))
        tally.report_unreadable()
        assert not caplog.records

    def test_none_is_an_error(self):
        tally = ReadStats(["a", "b"])
        list(tally.track([(torch.empty(0), ReadResult([], [(0, "torn"), (1, "wet")]))]))
        with pytest.raises(UserError, match=r"none of the 2 .*: 'a' \(torn\), 'b' \(wet\)"):
            tally.report_unreadable()

    @pytest.mark.parametrize(
        ("images", "seconds", "text"),
        [
            (1000, 4.1, "1,000 images, 244 images/s"),
            (12000, 4, "12,000 images, 3000 images/s"),
            (10, 3, "10 images, 3.3 images/s"),
            (1, 0.5, "1 image, 2.0 images/s"),
            (0, 0, "0 images, 0.0 images/s"),
        ],
    )
    def test_it_says_how_fast(self, images, seconds, text):
        tally = ReadStats([])
        tally.num_samples, tally.elapsed_s = images, seconds
        assert str(tally) == text
