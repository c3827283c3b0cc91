import os
from collections import Counter
from pathlib import Path

import pytest

from delta_transfer.data.sources.listing import (
    find_files,
    find_images,
    format_suffix_counts,
    subfolders,
)
from delta_transfer.errors import UserError


def test_finds_images_below_the_folder_and_skips_the_rest(make_images) -> None:
    wanted = ["cat/b.png", "cat/a.JPG", "cat/young/siamese/c.webp"]
    root = make_images([*wanted, "cat/.hidden.png", "cat/.cache/d.png", "dog/e.png"])
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "cat" / "folder.png").mkdir()
    assert find_images(root / "cat", root=root) == sorted(wanted)


def test_counts_other_files_by_their_suffix(make_images) -> None:
    root = make_images(["cat/a.png", "cat/young/b.jpe"])
    for name in ("c.heic", "young/d.HEIC", "e.txt", "f", ".g.heic", ".cache.d"):
        (root / "cat" / name).touch()
    found = find_files(root / "cat", root=root)
    assert found.images == ["cat/a.png", "cat/young/b.jpe"]
    assert found.ignored_suffixes == {".heic": 2, ".txt": 1, "": 1}


def test_endings_in_words_are_few() -> None:
    counts = Counter({f".{letter}": 1 for letter in "abcdefg"})
    assert format_suffix_counts(counts) == "1 .a, 1 .b, 1 .c, 1 .d, 1 .e and 2 more"


def test_follows_links_to_folders(make_images, tmp_path: Path) -> None:
    root = make_images(["cat/a.png"])
    elsewhere = tmp_path / "elsewhere"
    (root / "cat").rename(elsewhere)
    (root / "cat").symlink_to(elsewhere, target_is_directory=True)
    assert [folder.name for folder in subfolders(root)] == ["cat"]
    assert find_images(root / "cat", root=root) == ["cat/a.png"]


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_links_do_not_lead_in_circles_or_into_other_classes(make_images, target: str) -> None:
    root = make_images(["train/cat/a.png", "train/dog/b.png"])
    (root / "train" / "cat" / "again").symlink_to(target, target_is_directory=True)
    assert find_images(root / "train" / "cat", root=root) == ["train/cat/a.png"]


def test_a_folder_that_two_links_lead_to_counts_once(make_images) -> None:
    root = make_images(["cat/real/a.png"])
    (root / "cat" / "link").symlink_to("real", target_is_directory=True)
    assert len(find_images(root / "cat", root=root)) == 1


def test_a_broken_link_is_not_lost(make_images) -> None:
    root = make_images(["cat/a.png"])
    (root / "cat" / "b.png").symlink_to("nowhere.png")
    assert find_images(root / "cat", root=root) == ["cat/a.png", "cat/b.png"]


def test_relative_roots_work(make_images, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_images(["cat/a.png"])
    monkeypatch.chdir(root)
    assert find_images(Path("cat"), root=Path(".")) == ["cat/a.png"]
    monkeypatch.chdir(root / "cat")
    assert find_images(Path("../cat"), root=Path("..")) == ["cat/a.png"]


def test_a_folder_that_cannot_be_listed_is_named(
    make_images, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, os.strerror(13))

    root = make_images(["cat/a.png"])
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match=r"cannot list the folder '.*cat' \(Permission denied\)"):
        find_images(root / "cat", root=root)


def test_a_folder_that_cannot_be_looked_into_is_named(
    make_images, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, os.strerror(13))

    root = make_images(["cat/a.png"])
    monkeypatch.setattr(Path, "is_dir", refuse)
    for look in (subfolders, lambda folder: find_images(folder, root=root)):
        with pytest.raises(UserError, match=r"enter the folder '.*cat' \(Permission denied\)"):
            look(root / "cat")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="this user may look everywhere"
)
def test_a_folder_that_may_be_listed_but_not_entered(make_images) -> None:
    root = make_images(["cat/a.png"])
    (root / "cat").chmod(0o400)
    try:
        with pytest.raises(UserError, match=r"enter the folder '.*cat' \(Permission denied\)"):
            find_images(root / "cat", root=root)
    finally:
        (root / "cat").chmod(0o700)
