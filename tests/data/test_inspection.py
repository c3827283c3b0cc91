"""Every image is looked at once: what is unreadable, identical or rare."""

import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from delta_transfer.data.images.decode import ImageError
from delta_transfer.data.inspection import inspect_images
from delta_transfer.data.registry import load_data
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import UserError
from tests.data.conftest import MakeImages

Read = Callable[[str], Image.Image]


def numbered(number: int) -> Image.Image:
    """An image like no other."""
    image = Image.new("RGB", (3, 2), "white")
    image.putpixel((0, 0), (number % 256, number // 256 % 256, number // 65536))
    return image


@dataclass
class Images:
    """Reads an image of its own for every path but those that are copies or broken."""

    copies: Mapping[str, str]
    broken: frozenset[str]

    def __call__(self, path: str) -> Image.Image:
        if path in self.broken:
            raise ImageError(f"cannot read the image '{path}'", reason=f"bad {path}")
        return numbered(sum(256**i * ord(c) for i, c in enumerate(self.copies.get(path, path))))


def task(
    train: str, val: str, test: str | None, *, equal: str = "", broken: str = "", read: Read = None
) -> TaskData:
    """A task of images `a1 a2 b1`: the letter is the class. Equal are `a1=b1 a2=a3`."""
    pairs = [pair.split("=") for pair in equal.split()]
    read = read or Images({copy: first for first, copy in pairs}, frozenset(broken.split()))

    def split(text: str) -> Split:
        paths = tuple(text.split())
        return Split(paths, tuple("abc".index(path[0]) for path in paths), read)

    return TaskData(
        name="letters",
        classes=("ant", "bee", "cat"),
        train=split(train),
        val=split(val),
        test=None if test is None else split(test),
        notes=("a note",),
    )


def test_a_task_without_faults_stays_as_it_is() -> None:
    given = task("a1 b1", "a2 b2", "a3 b3")
    checked = inspect_images(given)
    assert checked.task == given
    assert checked.task.train is given.train
    assert checked.warnings == ()
    assert list(checked.content_hashes) == ["a1", "b1", "a2", "b2", "a3", "b3"]
    assert len(set(checked.content_hashes.values())) == 6


def test_there_may_be_no_test_split() -> None:
    checked = inspect_images(task("a1 b1", "a2 b2", None, broken="b2"))
    assert checked.task.test is None
    assert checked.task.val.paths == ("a2",)


@pytest.mark.parametrize("name", ["skimage/patches", "sklearn/digits"])
def test_the_data_sets_that_are_always_there_have_no_faults(name: str) -> None:
    given = load_data(name, seed=0)
    checked = inspect_images(given)
    assert (checked.task, checked.warnings) == (given, ())


def test_a_digest_is_of_pixels_and_size() -> None:
    def digest(image: Image.Image) -> str:
        return inspect_images(task("a1", "b1", None, read=lambda path: image)).content_hashes["a1"]

    dark = digest(Image.new("RGB", (2, 3)))
    assert dark == digest(Image.new("RGB", (2, 3)))
    assert dark != digest(Image.new("RGB", (3, 2)))
    assert dark != digest(Image.new("RGB", (2, 3), (0, 0, 1)))


def test_unreadable_images_are_left_out_and_named() -> None:
    given = task("a1 a2 b1 b2", "a3 b3 b4", "a5 b5", broken="a2 b3 b5")
    checked = inspect_images(given)
    assert checked.task.train.paths == ("a1", "b1", "b2")
    assert checked.task.train.labels == (0, 1, 1)
    assert checked.task.val.paths == ("a3", "b4")
    assert checked.task.test is not None
    assert checked.task.test.paths == ("a5",)
    assert checked.warnings == (
        "3 of 9 images cannot be read and are left out; replace or remove them: "
        "'a2' (bad a2), 'b3' (bad b3), 'b5' (bad b5)",
        "no test image of class 'bee' is left: its accuracy is unknown",
    )
    assert checked.task.notes == ("a note",)
    assert set(checked.content_hashes) == {"a1", "b1", "b2", "a3", "b4", "a5"}


def test_the_reason_of_a_file_is_reported(make_images: MakeImages) -> None:
    folders = [f"{split}/{name}" for split in ("train", "val") for name in ("cat", "dog")]
    root = make_images(f"{folder}/{number}.png" for folder in folders for number in range(2))
    (root / "train" / "cat" / "0.png").write_bytes(b"")
    cut = root / "val" / "dog" / "1.png"
    cut.write_bytes(cut.read_bytes()[:45])
    given = load_data(str(root), seed=0)
    (warning,) = inspect_images(given).warnings
    assert warning.startswith("2 of 8 images cannot be read")
    assert "'train/cat/0.png' (the file is empty)" in warning
    assert "'val/dog/1.png' (it is damaged (" in warning


def test_thousands_of_broken_files_make_a_short_message() -> None:
    names = [f"a{number}" for number in range(3000)]
    given = task(" ".join(["b1", *names]), "a b", None, broken=" ".join(names[1:]))
    (warning,) = inspect_images(given).warnings
    assert warning.endswith("'a4' (bad a4), 'a5' (bad a5) and 2994 more")
    assert len(warning) < 300
    with pytest.raises(UserError, match="and 2995 more") as caught:
        inspect_images(task(" ".join(["b1", *names]), "a b", None, broken=" ".join(names)))
    assert len(str(caught.value)) < 300


def test_a_long_reason_is_cut() -> None:
    def read(path: str) -> Image.Image:
        if path == "a1":
            raise UserError("no " * 1000)
        return numbered(ord(path[1]))

    (warning,) = inspect_images(task("a1 a2 b3", "a4 b5", None, read=read)).warnings
    assert len(warning) < 300


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("a1 b1 a2 b2 a3 b3", "none of the 6 images of letters can be read; replace them: 'a1'"),
        ("a1 b1", "none of the 2 training images .*: 'a1' \\(bad a1\\), 'b1' \\(bad b1\\)$"),
        ("a2 b2", "none of the 2 validation images of letters .* or remove this split: 'a2'"),
        ("a3 b3", "none of the 2 test images of letters .* or remove this split: 'a3'"),
        ("b1 a2", "no training image of class 'bee' can be read; .* leave the class out: 'b1'"),
    ],
)
def test_what_cannot_be_worked_with_is_an_error(broken: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        inspect_images(task("a1 b1", "a2 b2", "a3 b3", broken=broken))


def test_images_in_two_splits_are_reported() -> None:
    equal = "a1=a3 a1=a5 b1=b5 b3=b6 b2=a6"
    given = task("a1 a2 b1 b2", "a3 b3", "a5 b5 a6 b6", equal=equal)
    assert inspect_images(given).warnings == (
        "1 of 2 validation images are also among the training images: 'a1' = 'a3'; the validation "
        "loss is optimistic: remove one of each",
        "3 of 4 test images are also among the training images: 'a1' = 'a5', 'b1' = 'b5', "
        "'b2' (bee) = 'a6' (ant); test accuracy is optimistic: remove one of each",
        "2 of 4 test images are also among the validation images: 'a3' = 'a5', 'b3' = 'b6'; test "
        "accuracy is optimistic, as the epoch is selected on them: remove one of each",
    )


def test_a_path_in_two_splits_is_reported() -> None:
    (warning,) = inspect_images(task("a1 b1", "a2 b2", "a1 b3")).warnings
    assert "1 of 2 test images are also among the training images: 'a1' = 'a1'" in warning


def test_many_images_in_two_splits_make_a_short_message() -> None:
    numbers = range(2000)
    equal = " ".join(f"a{number}=ax{number}" for number in numbers)
    train = " ".join(["b0", *(f"a{number}" for number in numbers)])
    test = " ".join(f"ax{number}" for number in numbers)
    (warning,) = inspect_images(task(train, "a b", test, equal=equal)).warnings
    assert warning.startswith("2000 of 2000 test images")
    assert "and 1995 more" in warning
    assert len(warning) < 300


def test_training_images_of_two_classes_are_reported() -> None:
    checked = inspect_images(task("a1 a2 a3 b1 b2", "a4 b4", None, equal="a1=a2 a1=b1"))
    assert checked.warnings == (
        "identical training images of different classes: 1, such as 'a1' (ant) = 'b1' (bee); "
        "remove all but the right one",
    )
    assert checked.task.notes == ("a note",)


def test_duplicates_in_a_class_are_noted() -> None:
    checked = inspect_images(task("a1 a2 a3 b1 b2", "a4 b4", None, equal="a1=a2 a1=a3 b1=b2"))
    assert checked.warnings == ()
    assert checked.task.notes == (
        "a note",
        "duplicate training images within a class: 3, such as 'a1' = 'a2', 'b1' = 'b2'",
    )


def test_imbalance_is_noted_as_it_is_without_the_unreadable() -> None:
    checked = inspect_images(task("a1 a2 a3 b1 b2", "a4 b4", None, broken="b2"))
    assert checked.task.notes[1:] == (
        "imbalanced classes: 'ant' has 3 training images, 'bee' has 1; see also the mean class "
        "accuracy",
    )
    assert inspect_images(task("a1 a2 a3 b1 b2", "a4 b4", None)).task.notes == ("a note",)


def test_the_number_of_threads_changes_nothing() -> None:
    names = [f"{letter}{number}" for letter in "abc" for number in range(40)]
    equal = " ".join(f"{one}={other}" for one, other in zip(names[::3], names[5::3], strict=False))
    given = task(
        " ".join(names[::2]),
        " ".join(names[1::4]),
        " ".join(names[3::4]),
        equal=equal,
        broken=" ".join(names[::7]),
    )
    first, *others = (inspect_images(given, num_threads=threads) for threads in (1, 2, 3, 8, 200))
    assert first.warnings
    for other in others:
        assert other == first
        assert list(other.content_hashes) == list(first.content_hashes)


def test_so_many_threads_read_at_once() -> None:
    barrier, seen = threading.Barrier(3, timeout=30), set()

    def read(path: str) -> Image.Image:
        barrier.wait()
        seen.add(threading.get_ident())
        return numbered(ord(path[1]))

    inspect_images(task("a1 b2", "a3 b4", "a5 b6", read=read), num_threads=3)
    assert len(seen) == 3
    assert threading.main_thread().ident not in seen


@pytest.mark.parametrize("threads", [0, -1])
def test_at_least_one_thread_is_needed(threads: int) -> None:
    with pytest.raises(ValueError, match=f"threads must be at least 1, got {threads}"):
        inspect_images(task("a1 b2", "a3 b4", None), num_threads=threads)


def test_another_error_comes_through_and_stops_the_others() -> None:
    count = 0

    def read(path: str) -> Image.Image:
        nonlocal count
        count += 1
        if path == "a3":
            raise ZeroDivisionError("a fault of ours")
        return numbered(int(path[1:]))

    many = " ".join(f"a{number}" for number in range(100_000))
    with pytest.raises(ZeroDivisionError, match="a fault of ours"):
        inspect_images(task(f"{many} b0", "a1 b2", None, read=read), num_threads=2)
    assert count < 100_000


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system has no such signal")
@pytest.mark.usefixtures("ctrl_c")
def test_an_interruption_leaves_promptly() -> None:
    """The thread that reads sends what Ctrl-C sends, and the pass ends without the other files."""
    count, held = 0, threading.Event()

    def read(path: str) -> Image.Image:
        nonlocal count
        count += 1
        if count == 20:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        held.wait(0.001)
        return numbered(count)

    many = " ".join(f"a{number}" for number in range(100_000))
    with pytest.raises(KeyboardInterrupt):
        inspect_images(task(f"{many} b0", "a1 b2", None, read=read), num_threads=4)
    assert count < 50_000
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("check")]


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    alive, most, lock = 0, 0, threading.Lock()

    class Counted(Image.Image):
        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    def read(path: str) -> Image.Image:
        nonlocal alive, most
        image = numbered(int(path[1:]))
        image.__class__ = Counted
        with lock:
            alive += 1
            most = max(most, alive)
        return image

    many = " ".join(f"a{number}" for number in range(500))
    inspect_images(task(f"{many} b501", "a502 b503", None, read=read), num_threads=4)
    assert 0 < most <= 8
    assert alive == 0


def test_a_file_is_read_once(make_images: MakeImages, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_images(f"{name}/{n}.png" for name in ("cat", "dog") for n in range(5))
    opened: list[str] = []
    plain = Path.open

    def spy(path: Path, mode: str) -> object:
        opened.append(os.path.relpath(path, root))
        return plain(path, mode)

    monkeypatch.setattr(Path, "open", spy)
    given = load_data(str(root), seed=0)
    inspect_images(given, num_threads=2)
    assert sorted(opened) == sorted([*given.train.paths, *given.val.paths])
