import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from delta_transfer.data.registry import BUILTIN_DATASETS, load_data, load_labelled_data
from delta_transfer.errors import UserError


def test_samples_per_class_are_drawn_after_validation(flat: Path) -> None:
    whole = load_data(str(flat), seed=0)
    few = load_data(str(flat), seed=0, samples_per_class=3)
    assert few.val == whole.val
    assert Counter(few.train.labels) == {0: 3, 1: 3}
    assert set(few.train.paths) < set(whole.train.paths)
    assert few.notes == (
        *whole.notes,
        "3 training images of every class, drawn by seed 0: 6 of 25",
    )


def test_a_seed_draws_the_samples(make_images) -> None:
    root = make_images(
        [f"{split}/{name}/{i}.png" for split in ("train", "val") for name in "ab" for i in range(9)]
    )
    drawn = [load_data(str(root), seed=seed, samples_per_class=3).train.paths for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_class_with_fewer_samples_is_named(flat: Path) -> None:
    with pytest.raises(UserError, match=r"`samples_per_class=9` .* class 'cat' has 8: lower"):
        load_data(str(flat), seed=0, samples_per_class=9)


def test_an_unknown_name_lists_the_names_and_the_layout() -> None:
    with pytest.raises(UserError, match="unknown dataset 'skimage/patchs'") as caught:
        load_data("skimage/patchs", seed=0)
    parts = ("torchvision/NAME", "hf/NAME", "{train,val,test}/<class>/*")
    for part in (*BUILTIN_DATASETS, *parts, "path,label,split"):
        assert part in str(caught.value)


def test_an_empty_name_is_not_the_current_folder(
    flat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(flat)
    with pytest.raises(UserError, match="unknown dataset ''"):
        load_data("", seed=0)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("~nosuchuser/pets", r"'~nosuchuser/pets' \(\w.*\)"),
        ("a" * 300, r"'a{100}\.\.\.' \(File name too long\)"),
        ("pets\0", "embedded null"),
    ],
)
def test_what_the_system_cannot_look_for(name: str, reason: str) -> None:
    message = f"cannot access the file or folder .*{reason}"
    for load in (load_data, load_labelled_data):
        for data in (name, f"hf/{name}"):
            with pytest.raises(UserError, match=message):
                load(data, seed=0)
        with pytest.raises(UserError, match=message):
            load("torchvision/dtd", seed=0, data_root=name)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_val_fraction_out_of_range(flat: Path, fraction: float) -> None:
    with pytest.raises(UserError, match=r"`val_fraction=.*`: must be above 0 and below 1"):
        load_data(str(flat), seed=0, val_fraction=fraction)


def test_other_options_out_of_range(flat: Path) -> None:
    with pytest.raises(UserError, match="`samples_per_class=0`: must be at least 1"):
        load_data(str(flat), seed=0, samples_per_class=0)
    with pytest.raises(UserError, match="`seed=-1`: must be 0 or more"):
        load_data(str(flat), seed=-1)


def test_importing_the_package_imports_no_data_library() -> None:
    program = (
        "import sys, delta_transfer.data; names = 'skimage sklearn pooch torchvision datasets'; "
        "print(set(names.split()) & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (result.stdout.strip(), result.stderr) == ("set()", "")


def test_a_data_root_that_is_not_used_is_mentioned(flat: Path) -> None:
    notes = load_data(str(flat), seed=0, data_root="/data").notes
    assert notes[-1].startswith("`data_root=/data` is ignored: only torchvision/NAME and hf/NAME")


def test_what_draws_the_validation_split(flat: Path, make_images) -> None:
    assert load_data(str(flat), seed=0).val_drawn
    assert load_data("sklearn/digits", seed=0).val_drawn
    assert not load_data("skimage/patches", seed=0).val_drawn
    root = make_images([f"{split}/{name}/a.png" for split in ("train", "val") for name in "ab"])
    task = load_data(str(root), seed=0)
    assert (task.val_drawn, task.metric) == (False, "accuracy")


def test_a_file_that_is_not_a_csv_file(tmp_path: Path) -> None:
    (tmp_path / "pets.tsv").touch()
    with pytest.raises(UserError, match=r"pets\.tsv' is a file, not a folder: .* or a \.csv file"):
        load_data(str(tmp_path / "pets.tsv"), seed=0)


def test_a_folder_may_be_called_like_a_file(flat: Path) -> None:
    assert load_data(str(flat.rename(flat.with_name("pets.csv"))), seed=0).classes == ("cat", "dog")


class TestLoadLabelled:
    def test_of_a_name_it_is_the_test_split(self) -> None:
        classes, split, test = load_labelled_data("sklearn/digits", seed=0)
        assert (classes, split, test) == (
            tuple("0123456789"),
            load_data("sklearn/digits", seed=0).test,
            True,
        )

    def test_of_a_folder_without_one_it_is_everything(self, flat: Path, make_images) -> None:
        classes, split, test = load_labelled_data(str(flat), seed=0, test_split="0.2")
        assert (classes, len(split), test) == (("cat", "dog"), 30, False)
        root = make_images([f"{part}/cat/{i}.png" for part in ("train", "test") for i in range(3)])
        assert load_labelled_data(str(root / "train"), seed=0)[0] == ("cat",)

    def test_what_is_not_there(self) -> None:
        with pytest.raises(UserError, match="unknown dataset 'nothing'"):
            load_labelled_data("nothing", seed=0)
